"""Rows straight from shard files into the caller's memory, every byte verified.

Each row's crc32c is compared with the one that the ledger recorded and with the one that lies
beside it, so that a damaged, exchanged or foreign shard never gives values.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.checksum import crc32c_library
from cache.ledger_entry import ShardFile
from cache.native_library import native_library
from cache.native_read import NativeRead
from cache.open_shards import Lookup, OpenShards
from cache.portable_read import PortableRead
from cache.row_sums import UNKNOWN, Outs, RowRead, RowSums
from cache.schema import ArraySpec
from cache.store import ArrayStore

__all__ = ["DirectReader", "read_shard", "way_of_reading"]

Values = npt.NDArray[Any]


def way_of_reading() -> str:
    """Say how rows are read here: through the built library, or by Python's calls alone."""
    library = native_library()
    return f"portable ({crc32c_library})" if library is None else f"native ({library.name})"


class DirectReader:
    """Reads rows of one cache. May be used from several threads and after a fork.

    Args:
        cache: the cache folder.
        store: the store whose files are read.
        rows_per_shard: rows of a full shard.
        lookup: what the ledger says of a file.
    """

    def __init__(
        self, cache: Path, store: ArrayStore, *, rows_per_shard: int, lookup: Lookup
    ) -> None:
        self._store = store
        self._rows_per_shard = rows_per_shard
        self._files = OpenShards(cache, store, rows_per_shard=rows_per_shard, lookup=lookup)
        library = native_library()
        self._way: RowRead = (
            PortableRead(store, self._files, rows_per_shard=rows_per_shard)
            if library is None
            else NativeRead(library, store, self._files, rows_per_shard=rows_per_shard)
        )

    def forget(self, array: str, shard: int) -> None:
        """Close a shard's file where it is open: the file is going to be removed."""
        self._files.forget(array, shard)

    def read(self, rows: Sequence[int], outs: Outs) -> None:
        """Read the same rows of several arrays of one row space.

        Args:
            rows: row numbers, in any order; one may be asked more than once.
            outs: array, and memory (rows, *shape of a row) of its type, C-contiguous.

        Raises:
            CacheMissingError: a row was never written.
            CacheCorruptError: a file is missing, cut off, damaged, exchanged or foreign.
        """
        if not rows:
            return
        sums = self._way.read(rows, outs)
        if sums is not None:
            self._refuse(sums)

    def _refuse(self, sums: RowSums) -> None:
        for (opened, slot), found, recorded, stored in zip(
            sums.where(), sums.found, sums.recorded, sums.stored, strict=False
        ):
            row = opened.shard * self._rows_per_shard + slot
            if stored != found:
                raise self._store.damage(
                    opened.array,
                    opened.shard,
                    f"row {row} does not fit the checksum beside it",
                )
            if recorded not in (UNKNOWN, found):
                raise self._store.damage(
                    opened.array,
                    opened.shard,
                    f"row {row} has not the checksum that was recorded for it: the file is "
                    "damaged, was exchanged with another one, or belongs to another cache",
                )


def read_shard(
    cache: Path, store: ArrayStore, array: ArraySpec, shard: int, *, rows_per_shard: int
) -> Callable[[npt.NDArray[np.int64]], Values]:
    """Give a function that reads rows of a shard as it lies there, whatever the ledger says.

    Raises:
        CacheCorruptError: the file is missing or damaged.
    """
    name = store.shard_file(array, shard)
    file = cache / name

    def lookup(array: ArraySpec, shard: int, row: int) -> ShardFile:
        if not file.is_file():
            raise store.damage(array, shard, f"the file is missing (row {row} is asked)")
        return ShardFile(file=name, bytes=file.stat().st_size, sha256="")

    reader = DirectReader(cache, store, rows_per_shard=rows_per_shard, lookup=lookup)

    def read(rows: npt.NDArray[np.int64]) -> Values:
        out = np.empty((len(rows), *array.shape), dtype=array.dtype)
        reader.read(rows.tolist(), [(array, out)])
        return out

    return read
