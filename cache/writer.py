"""Writing a cache: whole shards, one after the other, resumable at any point.

A shard is written, flushed, reread, and only then published in the ledger. So a writer that is
killed at any moment loses the shard in hand and nothing else, and the finished cache has the
same bytes however often it was interrupted.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from cache.creation import discard_untrusted, prepare_folder
from cache.durable import canonical_json, sha256_of_bytes, sha256_of_file, write_durably
from cache.errors import CacheCorruptError, CacheDataError, CacheMissingError
from cache.index import CacheIndex
from cache.layout import (
    COMPLETE_NAME,
    STATISTICS_NAME,
    CacheHeader,
    CompleteMark,
    write_complete_mark,
)
from cache.ledger import (
    LedgerEntry,
    ShardFile,
    cache_digest,
    entry_path,
    publish_entry,
    read_entry,
)
from cache.lock import FolderLock
from cache.schema import ArraySpec, CacheSpec, RowSpace
from cache.sizes import check_room, shard_bytes, space_errors
from cache.statistics import merge_sums, sum_channels
from cache.store import ArrayStore

__all__ = ["CacheWriter"]

Values = npt.NDArray[np.generic]


class CacheWriter:
    """The one writer of a cache folder; made by ``create_or_resume``.

    Use it as a context manager: leaving it releases the folder's lock. Use it from one thread.

    Attributes:
        path: the cache folder.
        spec: identity of the cache.
        index: its index.
        discarded: one line for each thing of an earlier writer that was thrown away, with why.
    """

    def __init__(
        self,
        *,
        path: Path,
        header: CacheHeader,
        index: CacheIndex,
        store: ArrayStore,
        lock: FolderLock,
        finished: dict[tuple[RowSpace, int], LedgerEntry],
        discarded: tuple[str, ...],
    ) -> None:
        self.path = path
        self.spec: CacheSpec = header.spec
        self.index = index
        self.discarded = discarded
        self._header = header
        self._store = store
        self._lock = lock
        self._finished = finished

    @classmethod
    def create_or_resume(
        cls, path: Path, spec: CacheSpec, index: CacheIndex, *, replace: bool = False
    ) -> "CacheWriter":
        """Start a cache at ``path``, or go on with the unfinished one that is there.

        On resume, leftovers of a killed writer, shards that are not in the ledger, and ledger
        entries that cannot be trusted (damaged, foreign, file missing or of another size) are
        removed; ``discarded`` tells. Files that the cache does not know are left alone.

        Args:
            path: an existing cache, an empty folder, or a folder to be made.
            spec: identity of the cache.
            index: all rows of the cache.
            replace: throw away the cache that is at ``path``, whatever it was made from.

        Raises:
            CacheMissingError: the folder has other files and no cache.
            CacheStaleError: the folder holds a cache of another fingerprint or index.
            CacheCorruptError: its ``cache.json`` is damaged.
            CacheLockedError: another process is writing it.
            CacheSpaceError: what is still missing does not fit on the disk.
        """
        lock, header, store = prepare_folder(path, spec, index, replace=replace)
        try:
            finished, discarded = discard_untrusted(path, header, store)
            writer = cls(
                path=path,
                header=header,
                index=index,
                store=store,
                lock=lock,
                finished=finished,
                discarded=discarded,
            )
            missing = writer.missing_bytes()
            if missing:
                (path / COMPLETE_NAME).unlink(missing_ok=True)
            check_room(path, missing)
        except BaseException:
            lock.release()
            raise
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        self._lock.release()

    def shard_count(self, space: RowSpace) -> int:
        """Give the number of shards of a row space."""
        return self.spec.shard_count(self._header.counts[space])

    def missing_shards(self, space: RowSpace) -> tuple[int, ...]:
        """Give the shards of a row space that are still to be written, ascending."""
        shards = range(self.shard_count(space))
        return tuple(k for k in shards if (space, k) not in self._finished)

    def rows_of_shard(self, space: RowSpace, k: int) -> range:
        """Give the rows of shard ``k``; the last shard may have fewer than the others."""
        return self.spec.shard_rows(k, self._header.counts[space])

    def missing_bytes(self) -> int:
        """Give the bytes of all shards that are still to be written."""
        return sum(
            shard_bytes(self.spec, self._header.counts, space, k)
            for space in self._header.counts
            for k in self.missing_shards(space)
        )

    def write_shard(self, space: RowSpace, k: int, arrays: Mapping[str, Values]) -> None:
        """Write all arrays of one shard and publish it.

        Args:
            space: the row space.
            k: number of a missing shard.
            arrays: every array of the space → values (rows of the shard, *shape of a row), of
                exactly the stored type.

        Raises:
            ValueError: the shard is finished or does not exist, or names, shapes or types are
                not those of the spec.
            CacheDataError: a value is not finite.
            CacheSpaceError: the disk is full; finished shards stay, nothing of this one does.
            CacheCorruptError: the disk gave back other bytes than were written.
        """
        specs = self._check_arrays(space, k, arrays)
        needed = shard_bytes(self.spec, self._header.counts, space, k)
        check_room(self.path, needed)
        try:
            with space_errors(self.path, needed):
                entry = self._write(space, k, specs, arrays)
                publish_entry(self.path, entry)
        except BaseException:
            entry_path(self.path, space, k).unlink(missing_ok=True)
            for array in specs:
                self._store.remove_shard(array, k)
            raise
        self._finished[space, k] = replace(entry, sums={})

    def _check_arrays(
        self, space: RowSpace, k: int, arrays: Mapping[str, Values]
    ) -> tuple[ArraySpec, ...]:
        specs = self.spec.arrays_of(space)
        if (space, k) in self._finished or not 0 <= k < self.shard_count(space):
            raise ValueError(f"{space} shard {k} is finished or does not exist")
        names = {array.name for array in specs}
        if set(arrays) != names:
            raise ValueError(f"{space} needs arrays {sorted(names)}, not {sorted(arrays)}")
        rows = self.rows_of_shard(space, k)
        for array in specs:
            values = arrays[array.name]
            shape = (len(rows), *array.shape)
            if values.shape != shape or values.dtype != np.dtype(array.dtype):
                raise ValueError(
                    f"{array.name} of {space} shard {k} is {values.dtype} {values.shape}, "
                    f"not {array.dtype} {shape}"
                )
            if array.is_float:
                _check_finite(array, rows, values)
        return specs

    def _write(
        self,
        space: RowSpace,
        k: int,
        specs: tuple[ArraySpec, ...],
        arrays: Mapping[str, Values],
    ) -> LedgerEntry:
        rows = self.rows_of_shard(space, k)
        files = {}
        for array in specs:
            values = np.ascontiguousarray(arrays[array.name])
            self._store.remove_shard(array, k)
            self._store.write_shard(array, k, values)
            name = self._store.shard_file(array, k)
            stored = self._store.read_rows(array, k, np.arange(rows.start, rows.stop))
            if stored.tobytes() != values.tobytes():
                raise CacheCorruptError(
                    f"{self.path / name}: reread values differ from those written. The disk or "
                    "the memory is failing: check them, then go on: efficient-medsam2 precompute"
                )
            files[array.name] = ShardFile(
                file=name,
                bytes=(self.path / name).stat().st_size,
                sha256=sha256_of_file(self.path / name),
            )
        return LedgerEntry(
            space=space,
            shard=k,
            start=rows.start,
            stop=rows.stop,
            fingerprint=self.spec.fingerprint(),
            arrays=files,
            sums={
                array.name: sum_channels(arrays[array.name])
                for array in specs
                if array.has_channel_statistics
            },
        )

    def finish(self) -> str:
        """Write ``statistics.json`` and declare the cache complete.

        Returns:
            The cache's digest, as ``CacheReader.digest`` gives it.

        Raises:
            CacheMissingError: shards are missing.
            CacheSpaceError: the disk is full.
        """
        for space in self._header.counts:
            missing = self.missing_shards(space)
            if missing:
                raise CacheMissingError(
                    f"{self.path}: {len(missing)} of {self.shard_count(space)} {space} shards "
                    f"are not written (first: {missing[0]}). Go on: efficient-medsam2 precompute "
                    f"--set cache.path={self.path}"
                )
        statistics = self._statistics()
        digest = cache_digest(self._header, self._finished)
        with space_errors(self.path, len(statistics)):
            write_durably(self.path / STATISTICS_NAME, statistics)
            write_complete_mark(
                self.path,
                CompleteMark(cache_digest=digest, statistics_sha256=sha256_of_bytes(statistics)),
            )
        return digest

    def _statistics(self) -> bytes:
        arrays = [array for array in self.spec.arrays if array.has_channel_statistics]
        merged = {
            array.name: merge_sums(
                read_entry(entry_path(self.path, array.rows, k), self._header).sums[array.name]
                for k in range(self.shard_count(array.rows))
            )
            for array in arrays
            if self.shard_count(array.rows)
        }
        record = {name: statistics.to_json() for name, statistics in merged.items()}
        return json.dumps(json.loads(canonical_json(record)), indent=1).encode() + b"\n"


def _check_finite(array: ArraySpec, rows: range, values: Values) -> None:
    for row, value in zip(rows, values, strict=True):
        if not np.isfinite(value).all():
            hint = " (float16 ends at 65504)" if array.dtype == "float16" else ""
            raise CacheDataError(
                f"{array.name} row {row} of {array.rows} has values that are not finite{hint}: "
                "the teacher's output for it is not usable. Look at that slice's image, or store "
                "this array as float32: efficient-medsam2 precompute --set cache.dtype=fp32"
            )
