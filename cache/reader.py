"""Reading a cache: rows by number, never a silent zero.

A row is given only when its shard stands in the ledger, its file has the recorded size, and its
checksum holds.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.address import place_of
from cache.checksum import row_checksums
from cache.creation import open_store, shard_problem
from cache.direct_read import DirectReader
from cache.durable import sha256_of_bytes
from cache.encoding import decode
from cache.errors import CacheCorruptError, CacheMissingError
from cache.index import CacheIndex
from cache.index_files import INDEX_FOLDER, read_index
from cache.layout import STATISTICS_NAME, CacheHeader, read_complete_mark, read_header
from cache.ledger import Ledger, ShardFile, cache_digest, open_ledger
from cache.mending import precompute_command, repair_command
from cache.mirror import Mirror
from cache.mirrored_read import MirroredReader
from cache.schema import ArraySpec, CacheSpec, RowSpace
from cache.statistics import ChannelStatistics

__all__ = ["CacheReader"]


class CacheReader:
    """An open cache. Safe to pickle without a mirror: the copy opens the folder again.

    Args:
        path: the cache folder, complete or still being written (rows that are finished now).
        mirror: of a cache on an object store, whose ``path`` this is; fetches shards.

    Raises:
        CacheMissingError: there is no cache at ``path``.
        CacheStaleError: it was written by a newer version, or has ledger entries of another cache.
        CacheCorruptError: its header, index or ledger is damaged.

    Attributes:
        path: the cache folder.
    """

    def __init__(self, path: Path, *, mirror: Mirror | None = None) -> None:
        self.path = path
        self._header: CacheHeader = read_header(path)
        self._mark = read_complete_mark(path)
        self._ledger: Ledger = open_ledger(path, self._header, self._mark)
        if self._ledger.problems:
            raise next(iter(self._ledger.problems.values()))
        self._store = open_store(path, self._header)
        # A batch asks for them again and again; a spec would look for the name and parse the type.
        self._arrays = {a.name: (a, a.shape, np.dtype(a.dtype)) for a in self.spec.arrays}
        # No method of the reader: files are closed with its last reference, by no collector.
        self._finished_file = partial(_finished_file, path, self._ledger)
        self._direct = DirectReader(
            path,
            self._store,
            rows_per_shard=self.spec.rows_per_shard,
            lookup=self._finished_file,
        )
        self._mirrored: MirroredReader | None = None
        if mirror is not None:
            self._mirrored = MirroredReader(
                mirror,
                rows_per_shard=self.spec.rows_per_shard,
                lookup=self._finished_file,
                fill=self._fill_here,
                forget=self._direct.forget,
            )

    def __reduce__(self) -> tuple[type["CacheReader"], tuple[Path]]:
        if self._mirrored is not None:
            raise TypeError("a reader through a mirror belongs to one process")
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
        return self._mark is not None and self._mark.cache_digest == self.digest()

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
                f"{place_of(self.path)}: the cache is not complete, so it has no statistics. "
                f"Finish it: {self._precompute}"
            )
        content = file.read_bytes() if file.is_file() else b""
        if sha256_of_bytes(content) != mark.statistics_sha256:
            problem = "has other bytes than were written" if content else "is missing"
            raise CacheCorruptError(
                f"{place_of(file)} {problem}. Write it again: {repair_command(self.path)}"
            )
        record: dict[str, Any] = json.loads(content)
        return {name: ChannelStatistics.from_json(value) for name, value in record.items()}

    @property
    def _precompute(self) -> str:
        return precompute_command(self.path)

    def digest(self) -> str:
        """Give the content identity of what is written, independent of the folder's place."""
        if self._ledger.sealed and self._mark is not None:
            return self._mark.cache_digest
        return cache_digest(self._header, self._ledger.entries)

    def finished_rows(self, space: RowSpace) -> npt.NDArray[np.int64]:
        """Give the rows of a space that can be read, ascending, int64 (n,)."""
        size = self.spec.rows_per_shard
        rows = (self._ledger.shards(space)[:, None] * size + np.arange(size)).reshape(-1)
        return rows[rows < self.counts[space]]

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
        spec = self._known(array)[0]
        wanted = self._check_rows(spec, rows)
        out = np.empty((len(wanted), *spec.shape), dtype=spec.dtype)
        self._fill(wanted, [(spec, out)])
        return out

    def read_decoded(self, array: str, rows: npt.ArrayLike) -> npt.NDArray[Any]:
        """Read rows of one array as what they mean: float32 where they are stored encoded.

        For tools and tests; training decodes on its device, with ``cache.stored``.

        Raises:
            KeyError, ValueError, CacheMissingError, CacheCorruptError: see ``read``.
        """
        spec = self._known(array)[0]
        scales = None if spec.scale_name is None else self.read(spec.scale_name, rows)
        return decode(spec, self.read(array, rows), scales)

    def read_into(self, outs: Mapping[str, npt.NDArray[Any]], rows: npt.ArrayLike) -> None:
        """Read the same rows of several arrays into memory that the caller owns.

        Nothing is copied on the way. May be called from several threads at once.

        Args:
            outs: name of an array → (n, *shape of a row), C-contiguous, of the stored type; all
                arrays of one row space.
            rows: (n,) row numbers in any order; a row may be asked more than once.

        Raises:
            KeyError, CacheMissingError, CacheCorruptError: see ``read``.
            ValueError: ``rows`` is not a list of row numbers, or an ``out`` does not fit.
        """
        found = [(self._known(name), out) for name, out in outs.items()]
        if not found:
            return
        space = found[0][0][0].rows
        wanted = self._check_rows(found[0][0][0], rows)
        for (spec, row_shape, dtype), out in found:
            if spec.rows != space:
                raise ValueError(f"{spec.name} has rows of {spec.rows}, not {space}")
            shape = (len(wanted), *row_shape)
            if out.shape != shape or out.dtype != dtype:
                raise ValueError(
                    f"{spec.name} needs memory of {dtype} {shape}, not {out.dtype} {out.shape}"
                )
            flags = out.flags
            if not (flags.c_contiguous and flags.writeable):
                raise ValueError(f"{spec.name} needs memory that is contiguous and writeable")
        self._fill(wanted, [(spec, out) for (spec, _, _), out in found])

    @property
    def is_mirrored(self) -> bool:
        """Whether shards come from an object store."""
        return self._mirrored is not None

    def expect(self, arrays: Sequence[str], rows: npt.ArrayLike) -> None:
        """Say which rows are going to be read next, in order; a mirror fetches their shards."""
        if self._mirrored is not None:
            specs = [self._known(name)[0] for name in arrays]
            if specs:
                self._mirrored.expect(np.array(self._check_rows(specs[0], rows)), specs)

    def _fill(
        self, wanted: Sequence[int], outs: Sequence[tuple[ArraySpec, npt.NDArray[Any]]]
    ) -> None:
        if self._mirrored is None:
            self._fill_here(wanted, outs)
        elif wanted:
            self._mirrored.fill(np.array(wanted), outs)

    def _fill_here(
        self, wanted: Sequence[int], outs: Sequence[tuple[ArraySpec, npt.NDArray[Any]]]
    ) -> None:
        known = [self._store.reads_directly(array) for array, _ in outs]
        direct = [out for out, ours in zip(outs, known, strict=True) if ours]
        if direct:
            self._direct.read(wanted, direct)
        for (array, out), ours in zip(outs, known, strict=True):
            if not ours:
                self._fill_plainly(array, np.array(wanted), out)

    def _fill_plainly(
        self, array: ArraySpec, wanted: npt.NDArray[np.int64], out: npt.NDArray[Any]
    ) -> None:
        """Read an array whose layout is not ours through the format's own library."""
        shards = wanted // self.spec.rows_per_shard
        for shard in np.unique(shards).tolist():
            positions = np.flatnonzero(shards == shard)
            first = int(wanted[positions[0]])
            file = self._finished_file(array, shard, first)
            problem = shard_problem(self.path, file)
            if problem:
                raise CacheCorruptError(
                    f"{place_of(self.path / file.file)} {problem}: row {first} of {array.name}, "
                    f"shard {shard} of {array.rows}, cannot be read. Write it again: "
                    f"{repair_command(self.path)}"
                )
            values = self._store.read_rows_plainly(array, shard, wanted[positions])
            if file.row_crc32c is not None:
                slots = wanted[positions] - shard * self.spec.rows_per_shard
                if (row_checksums(values) != file.row_crc32c[slots]).any():
                    raise self._store.damage(array, shard, "rows are not those that were written")
            out[positions] = values

    def _known(self, name: str) -> tuple[ArraySpec, tuple[int, ...], np.dtype[Any]]:
        known = self._arrays.get(name)
        if known is None:
            has = list(self._arrays)
            raise KeyError(f"{self.path}: no array {name!r} in this cache; it has {has}")
        return known

    def _check_rows(self, array: ArraySpec, rows: npt.ArrayLike) -> list[int]:
        wanted: list[int]
        if isinstance(rows, list) and all(type(row) is int for row in rows):
            wanted = rows  # what a loader gives, batch after batch
        else:
            given = np.asarray(rows)
            if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
                found = f"{given.dtype} {given.shape}"
                raise ValueError(f"rows must be a list of integers, not {found}")
            wanted = given.tolist()
        count = self.counts[array.rows]
        if wanted and not (min(wanted) >= 0 and max(wanted) < count):
            outside = next(row for row in wanted if not 0 <= row < count)
            raise ValueError(f"{array.name} has rows 0 to {count - 1}, not {outside}")
        return wanted


def _finished_file(path: Path, ledger: Ledger, array: ArraySpec, shard: int, row: int) -> ShardFile:
    file = ledger.shard_file(array.rows, shard, array.name)
    if file is None:
        raise CacheMissingError(
            f"{place_of(path)}: row {row} of {array.name} was never written: shard {shard} of "
            f"{array.rows} is not in the ledger. Write it: {precompute_command(path)}"
        )
    return file
