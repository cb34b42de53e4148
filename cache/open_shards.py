"""Open shard files: each opened once and checked, the oldest closed when many are open."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cache.address import place_of
from cache.errors import CacheCorruptError
from cache.ledger_entry import ShardFile
from cache.mending import repair_command
from cache.schema import ArraySpec
from cache.shard_index import ShardIndex
from cache.store import ArrayStore

__all__ = ["Lookup", "OpenShard", "OpenShards"]

Lookup = Callable[[ArraySpec, int, int], ShardFile]
"""(array, shard, row) → what the ledger says of the file; raises where it is not finished."""

_OPEN_FILES = 256


class OpenShard:
    """An open shard file; closed when nobody refers to it any more.

    Attributes:
        array: whose rows it holds.
        shard: which of that array.
        descriptor: of the open file.
        index: where its rows lie.
        checksums: crc32c of each row as it was recorded when it was written; None: not recorded.
    """

    __slots__ = ("array", "checksums", "descriptor", "index", "shard")

    def __init__(self, array: ArraySpec, shard: int, descriptor: int) -> None:
        self.array = array
        self.shard = shard
        self.descriptor = descriptor
        self.index: ShardIndex
        self.checksums: memoryview | None = None

    def __del__(self) -> None:
        os.close(self.descriptor)


class OpenShards:
    """The open shard files of one cache. May be used from several threads and after a fork.

    Args:
        cache: the cache folder.
        store: the store whose files are opened.
        rows_per_shard: rows of a full shard.
        lookup: what the ledger says of a file.

    Attributes:
        known: (name of an array, shard) → the open file, the oldest first.
    """

    def __init__(
        self, cache: Path, store: ArrayStore, *, rows_per_shard: int, lookup: Lookup
    ) -> None:
        self._cache = cache
        self._store = store
        self._rows_per_shard = rows_per_shard
        self._lookup = lookup
        self._process = os.getpid()
        self._lock = threading.Lock()
        self.known: dict[tuple[str, int], OpenShard] = {}

    def forget(self, array: str, shard: int) -> None:
        """Close a file where it is open: it is going to be removed."""
        self.known.pop((array, shard), None)

    def open(self, array: ArraySpec, shard: int, slot: int) -> OpenShard:
        """Open the shard that holds a row, its ``slot``-th, and check size and index.

        Raises:
            CacheMissingError: the row was never written.
            CacheCorruptError: the file is missing, has another size or a damaged index.
        """
        row = shard * self._rows_per_shard + slot
        recorded = self._lookup(array, shard, row)
        file = self._cache / recorded.file
        try:
            descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise self._unreadable(array, row, recorded, "is missing") from None
        opened = OpenShard(array, shard, descriptor)
        if hasattr(os, "posix_fadvise"):
            # Reading ahead would fetch neighbours that nobody asked for.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        size = os.fstat(descriptor).st_size
        if size != recorded.bytes:
            problem = f"has {size} bytes, not {recorded.bytes}"
            raise self._unreadable(array, row, recorded, problem)
        try:
            opened.index = self._store.read_index(array, shard, descriptor, size)
        except (ValueError, OSError) as error:
            raise self._store.damage(array, shard, str(error)) from error
        checksums = opened.index.checksums if recorded.row_crc32c is None else recorded.row_crc32c
        if checksums is not None:
            values: Any = np.ascontiguousarray(checksums, dtype=np.uint32)
            opened.checksums = memoryview(values)
        if self._process != os.getpid():  # another thread of the parent may have held the lock
            self._process, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            self.known[array.name, shard] = opened
            while len(self.known) > _OPEN_FILES:
                del self.known[next(iter(self.known))]
        return opened

    def _unreadable(
        self, array: ArraySpec, row: int, file: ShardFile, problem: str
    ) -> CacheCorruptError:
        return CacheCorruptError(
            f"{place_of(self._cache / file.file)} {problem}: row {row} of {array.name}, shard "
            f"{row // self._rows_per_shard} of {array.rows}, cannot be read. Write it again: "
            f"{repair_command(self._cache)}"
        )
