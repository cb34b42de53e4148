"""The interface of a store of arrays, which writers, readers and verification share.

A shard is one file per array, so that sizes and digests of a shard are those of files. Rows are
those of the array, counted from 0 over all shards.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from cache.schema import ArraySpec

__all__ = ["ArrayStore"]

Values = npt.NDArray[np.generic]


class ArrayStore(Protocol):
    """Arrays of one cache, cut into shards."""

    def prepare(self) -> None:
        """Write what the folder must hold before the first shard, or mend it."""

    def problem(self, array: ArraySpec) -> str | None:
        """Say why an array cannot be opened as the spec says, or give ``None``."""

    def shard_file(self, array: ArraySpec, shard: int) -> str:
        """Give a shard's file relative to the cache folder, with forward slashes."""

    def write_shard(self, array: ArraySpec, shard: int, values: Values) -> None:
        """Write all rows of a shard and force them to the disk.

        Raises:
            OSError: the disk is full or failing. Parts of the shard may be left.
        """

    def read_rows(self, array: ArraySpec, shard: int, rows: npt.NDArray[np.int64]) -> Values:
        """Read rows that all lie in ``shard``, in the given order, checksums verified.

        Raises:
            CacheCorruptError: stored bytes do not fit their checksum.
        """

    def stored_shards(self, array: ArraySpec) -> tuple[int, ...]:
        """Give the shards of which anything, finished or not, lies in the folder."""

    def remove_shard(self, array: ArraySpec, shard: int) -> None:
        """Remove all of a shard; nothing happens where there is none."""

    def remove_leftovers(self, array: ArraySpec, shard: int) -> tuple[str, ...]:
        """Remove what a killed writer left beside a finished shard; give the file names."""
