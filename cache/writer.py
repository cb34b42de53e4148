"""Writing a cache: whole shards, one after the other, resumable at any point.

A shard is written, flushed, reread, and only then published in the ledger. So a writer that is
killed at any moment loses the shard in hand and nothing else, and the finished cache has the
same bytes however often it was interrupted.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from cache.address import place_of
from cache.contradiction import refuse_contradiction
from cache.creation import discard_untrusted, prepare_folder, refuse_other_folder
from cache.errors import CacheMissingError
from cache.finishing import declare_complete
from cache.index import CacheIndex
from cache.layout import COMPLETE_NAME, CacheHeader
from cache.ledger import LedgerEntry
from cache.ledger_entry import EntryReader, without_sums
from cache.lock import FolderLock
from cache.mending import precompute_command
from cache.mirror import Mirror
from cache.remote_claims import remove_claims
from cache.remote_lock import RemoteLock
from cache.remote_publish import publish_made, take_over_made
from cache.schema import CacheSpec, RowSpace
from cache.shard_writer import ShardWriter
from cache.sizes import check_room, shard_bytes
from cache.store import ArrayStore
from cache.worker_token import give_token, remove_shard_locks, revoke_token
from cache.worker_writer import published_entry

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
        mirror: Mirror | None = None,
        remote_lock: RemoteLock | None = None,
    ) -> None:
        self.path = path
        self.spec: CacheSpec = header.spec
        self.index = index
        self.discarded = discarded
        self._header = header
        self._store = store
        self._lock = lock
        self._finished = finished
        self._mirror = mirror
        self._remote_lock = remote_lock
        self._shards = ShardWriter(path, header, store, mirror=mirror)
        self._shared = False
        self._ended = False

    @classmethod
    def create_or_resume(
        cls,
        path: Path,
        spec: CacheSpec,
        index: CacheIndex,
        *,
        replace: bool = False,
        mirror: Mirror | None = None,
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
            mirror: of a cache on an object store, whose ``path`` this is: a shard counts when it
                has arrived there, and the local copy may go from then on.

        Raises:
            CacheMissingError: the folder has other files and no cache.
            CacheStaleError: the folder holds a cache of another fingerprint or index.
            CacheCorruptError: its ``cache.json`` is damaged and no row says what it was; or the
                ledger is not the one that it was finished with.
            CacheLockedError: another process is writing it.
            CacheSpaceError: what is still missing does not fit on the disk.
        """
        remote_lock = None if mirror is None else mirror.lock_for_writing()
        most = None if mirror is None else mirror.max_bytes
        try:
            if mirror is not None and replace:
                refuse_other_folder(path, spec, index)
                mirror.files.remove_all()
            lock, header, store = prepare_folder(
                path, spec, index, replace=replace and mirror is None, most=most
            )
        except BaseException:
            if remote_lock is not None:
                remote_lock.release()
            raise
        try:
            if mirror is not None:
                take_over_made(mirror, header)
            glance = None if mirror is None else mirror.glance()
            finished, discarded = discard_untrusted(path, header, store, glance=glance)
            refuse_contradiction(path, header, finished)
            writer = cls(
                path=path,
                header=header,
                index=index,
                store=store,
                lock=lock,
                finished=finished,
                discarded=discarded,
                mirror=mirror,
                remote_lock=remote_lock,
            )
            missing = writer.missing_bytes()
            if missing:
                (path / COMPLETE_NAME).unlink(missing_ok=True)
            check_room(path, missing if most is None else min(missing, most))
            if mirror is not None:
                mirror.files.push(mirror.pool)
        except BaseException:
            lock.release()
            if remote_lock is not None:
                remote_lock.release()
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
        """End the workers' permission and release the lock; a second call does nothing."""
        try:
            if self._shared:
                revoke_token(self.path)
                remove_shard_locks(self.path)
        finally:
            self._shared = False
            self._lock.release()
            if self._remote_lock is not None and self._mirror is not None:
                self._remote_lock.release()
                if self._ended:  # else the next writer has use for them
                    remove_claims(self._mirror.remote, self._remote_lock.token)

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
        if (space, k) in self._finished or not 0 <= k < self.shard_count(space):
            raise ValueError(f"{space} shard {k} is finished or does not exist")
        if self._remote_lock is not None:
            self._remote_lock.check()
        self._finished[space, k] = without_sums(self._shards.write(space, k, arrays))

    def share(self) -> str:
        """Let ``cache.worker_writer.WorkerWriter`` write shards too, until this writer is closed.

        Returns:
            The token that workers need.

        Raises:
            CacheLockedError: a worker of an earlier writer does not end its shard; or another
                process took the lock of a cache on an object store.
        """
        if self._remote_lock is not None:
            self._remote_lock.check()
            return self._remote_lock.token  # in the lock, for the workers to see
        self._shared = True
        return give_token(self.path)

    def adopt(self, space: RowSpace, shards: Iterable[int]) -> None:
        """Count shards as finished that workers have made; publish those of an object store.

        Raises:
            CacheMissingError: its entry or a file is not there, or has another size.
            CacheCorruptError, CacheStaleError: an entry cannot be trusted.
            CacheLockedError: another process took the lock of a cache on an object store.
            CacheUnreachableError: the store does not answer.
        """
        reader = EntryReader(self._header)
        if self._mirror is not None and self._remote_lock is not None:
            found = publish_made(self._mirror, self._remote_lock, reader, space, tuple(shards))
            self._finished |= {(space, entry.shard): entry for entry in found}
            return
        for k in shards:
            self._finished[space, k] = published_entry(self.path, reader, space, k)

    def publish_files(self) -> None:
        """Have what lies beside the shards arrive in the object store, if the cache is on one.

        Raises:
            CacheUnreachableError: the store does not answer.
        """
        if self._mirror is not None and self._remote_lock is not None:
            self._remote_lock.check()
            self._mirror.files.push(self._mirror.pool)

    def finish(self) -> str:
        """Write ``statistics.json`` and the sealed ledger, and declare the cache complete.

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
                    f"{place_of(self.path)}: {len(missing)} of {self.shard_count(space)} {space} "
                    f"shards are not written (first: {missing[0]}). Go on: "
                    f"{precompute_command(self.path)}"
                )
        digest = declare_complete(self.path, self._header, self._finished)
        self.publish_files()
        self._ended = True
        return digest
