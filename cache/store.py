"""The interface of a store of arrays, which writers, readers and verification share.

A shard is one file per array, so that sizes and digests of a shard are those of files. Rows are
those of the array, counted from 0 over all shards.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cache.address import place_of
from cache.errors import CacheCorruptError
from cache.mending import repair_command
from cache.schema import ArraySpec
from cache.shard_index import ShardIndex

__all__ = ["ArrayStore", "damaged_shard"]

Values = npt.NDArray[np.generic]


class ArrayStore(Protocol):
    """Arrays of one cache, cut into shards."""

    def prepare(self) -> None:
        """Write what the folder must hold before the first shard, or mend it."""

    def metadata(self) -> dict[str, bytes]:
        """Give the content of the files that ``prepare`` writes, by their path in ``arrays/``."""

    def problem(self, array: ArraySpec) -> str | None:
        """Say why an array cannot be opened as the spec says, or give ``None``."""

    def group_problem(self) -> str | None:
        """Say why what all arrays lie in cannot be opened, or give ``None``."""

    def shard_file(self, array: ArraySpec, shard: int) -> str:
        """Give a shard's file relative to the cache folder, with forward slashes."""

    def write_shard(self, array: ArraySpec, shard: int, values: Values) -> None:
        """Write all rows of a shard and force them to the disk.

        Raises:
            OSError: the disk is full or failing. Parts of the shard may be left.
        """

    def reads_directly(self, array: ArraySpec) -> bool:
        """Whether ``read_index`` knows the array's files; else ``read_rows`` is the way."""

    def read_index(self, array: ArraySpec, shard: int, descriptor: int, size: int) -> ShardIndex:
        """Read where the rows of a shard lie in its file.

        Args:
            array: the array.
            shard: number of the shard.
            descriptor: its open file.
            size: the file's bytes.

        Raises:
            ValueError: the file's own description of itself is damaged.
        """

    def read_rows(self, array: ArraySpec, shard: int, rows: npt.NDArray[np.int64]) -> Values:
        """Read rows that all lie in ``shard``, in the given order, checksums verified.

        Raises:
            CacheCorruptError: stored bytes do not fit their checksum.
        """

    def read_rows_plainly(
        self, array: ArraySpec, shard: int, rows: npt.NDArray[np.int64]
    ) -> Values:
        """Do the same with the format's own library alone.

        Raises:
            CacheCorruptError: the library refuses the file.
        """

    def damage(self, array: ArraySpec, shard: int, reason: str) -> CacheCorruptError:
        """Make the error of a shard whose bytes cannot be trusted."""

    def stored_shards(self, array: ArraySpec) -> tuple[int, ...]:
        """Give the shards of which anything, finished or not, lies in the folder."""

    def remove_shard(self, array: ArraySpec, shard: int) -> None:
        """Remove all of a shard; nothing happens where there is none."""

    def remove_leftovers(self, array: ArraySpec, shard: int) -> tuple[str, ...]:
        """Remove what a killed writer left beside a finished shard; give the file names."""


def damaged_shard(
    cache: Path, file: str, array: ArraySpec, shard: int, reason: str
) -> CacheCorruptError:
    """Make the error of a shard whose bytes cannot be trusted, with what mends it."""
    return CacheCorruptError(
        f"{place_of(cache / file)}: rows of {array.name}, shard {shard} of {array.rows}, cannot be "
        f"read: {reason}. Find all damage and mend it: {repair_command(cache)}"
    )
