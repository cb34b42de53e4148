"""Reading a cache: rows by number, never a silent zero.

A row is given only when its shard stands in the ledger, its file has the recorded size, and its
checksum holds.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.creation import open_store, shard_problem
from cache.durable import sha256_of_bytes
from cache.errors import CacheCorruptError, CacheMissingError
from cache.index import CacheIndex
from cache.index_files import INDEX_FOLDER, read_index
from cache.layout import STATISTICS_NAME, CacheHeader, read_complete_mark, read_header
from cache.ledger import Ledger, LedgerEntry, cache_digest, load_ledger
from cache.schema import ArraySpec, CacheSpec, RowSpace
from cache.statistics import ChannelStatistics

__all__ = ["CacheReader"]


class CacheReader:
    """An open cache. Safe to pickle: the copy opens the folder again.

    Args:
        path: the cache folder, complete or still being written (rows that are finished now).

    Raises:
        CacheMissingError: there is no cache at ``path``.
        CacheStaleError: it was written by a newer version, or has ledger entries of another cache.
        CacheCorruptError: its header, index or ledger is damaged.

    Attributes:
        path: the cache folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header: CacheHeader = read_header(path)
        self._ledger: Ledger = load_ledger(path, self._header)
        if self._ledger.problems:
            raise next(iter(self._ledger.problems.values()))
        self._store = open_store(path, self._header)

    def __reduce__(self) -> tuple[type["CacheReader"], tuple[Path]]:
        return CacheReader, (self.path,)

    @property
    def spec(self) -> CacheSpec:
        """Identity of the cache."""
        return self._header.spec

    @property
    def counts(self) -> Mapping[RowSpace, int]:
        """Rows of each row space, written or not."""
        return self._header.counts

    @cached_property
    def index(self) -> CacheIndex:
        """The index tables, read and checked at first use.

        Raises:
            CacheCorruptError: an index file is missing or damaged.
        """
        return read_index(self.path / INDEX_FOLDER, self._header.index_files)

    @cached_property
    def complete(self) -> bool:
        """Whether every shard was there, as the writer finished it, when this was opened."""
        mark = read_complete_mark(self.path)
        return mark is not None and mark.cache_digest == self.digest()

    @cached_property
    def statistics(self) -> Mapping[str, ChannelStatistics]:
        """Array name → per-channel figures, of every feature map array that has rows.

        Raises:
            CacheMissingError: the cache is not complete.
            CacheCorruptError: ``statistics.json`` is missing or damaged.
        """
        file = self.path / STATISTICS_NAME
        mark = read_complete_mark(self.path)
        if mark is None:
            raise CacheMissingError(
                f"{self.path}: the cache is not complete, so it has no statistics. "
                f"Finish it: {self._precompute}"
            )
        content = file.read_bytes() if file.is_file() else b""
        if sha256_of_bytes(content) != mark.statistics_sha256:
            problem = "has other bytes than were written" if content else "is missing"
            raise CacheCorruptError(f"{file} {problem}. Write it again: {self._precompute}")
        record: dict[str, Any] = json.loads(content)
        return {name: ChannelStatistics.from_json(value) for name, value in record.items()}

    @property
    def _precompute(self) -> str:
        return f"efficient-medsam2 precompute --set cache.path={self.path}"

    def digest(self) -> str:
        """Give the content identity of what is written, independent of the folder's place."""
        return cache_digest(self._header, self._ledger.entries)

    def finished_rows(self, space: RowSpace) -> npt.NDArray[np.int64]:
        """Give the rows of a space that can be read, ascending, int64 (n,)."""
        ranges = [
            np.arange(entry.start, entry.stop)
            for (of, _), entry in sorted(self._ledger.entries.items(), key=lambda item: item[0])
            if of == space
        ]
        return np.concatenate(ranges) if ranges else np.zeros(0, dtype=np.int64)

    def read(self, array: str, rows: npt.ArrayLike) -> npt.NDArray[Any]:
        """Read rows of one array.

        Args:
            array: name of the array.
            rows: (n,) row numbers in any order; a row may be asked more than once.

        Returns:
            (n, *shape of a row) in the stored type, in the order of ``rows``.

        Raises:
            KeyError: the cache has no such array.
            ValueError: ``rows`` is not a list of row numbers of this array.
            CacheMissingError: a row was never written.
            CacheCorruptError: a shard's file is missing, cut off or damaged.
        """
        spec = self._array(array)
        wanted = self._check_rows(spec, rows)
        out = np.empty((len(wanted), *spec.shape), dtype=spec.dtype)
        shards = wanted // self.spec.rows_per_shard
        for shard in np.unique(shards).tolist():
            positions = np.flatnonzero(shards == shard)
            self._check_shard(spec, shard, int(wanted[positions[0]]))
            out[positions] = self._store.read_rows(spec, shard, wanted[positions])
        return out

    def _array(self, name: str) -> ArraySpec:
        try:
            return self.spec.array(name)
        except KeyError as error:
            raise KeyError(f"{self.path}: {error.args[0]}") from None

    def _check_rows(self, array: ArraySpec, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        given = np.asarray(rows)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ValueError(f"rows must be a list of integers, not {given.dtype} {given.shape}")
        wanted = given.astype(np.int64)
        count = self.counts[array.rows]
        outside = wanted[(wanted < 0) | (wanted >= count)]
        if len(outside):
            raise ValueError(f"{array.name} has rows 0 to {count - 1}, not {outside[0]}")
        return wanted

    def _check_shard(self, array: ArraySpec, shard: int, row: int) -> None:
        entry: LedgerEntry | None = self._ledger.entries.get((array.rows, shard))
        if entry is None:
            raise CacheMissingError(
                f"{self.path}: row {row} of {array.name} was never written: shard {shard} of "
                f"{array.rows} is not in the ledger. Write it: {self._precompute}"
            )
        file = entry.arrays[array.name]
        problem = shard_problem(self.path, file)
        if problem:
            raise CacheCorruptError(
                f"{self.path / file.file} {problem}: row {row} of {array.name}, shard {shard} of "
                f"{array.rows}, cannot be read. Write it again: {self._precompute}"
            )
