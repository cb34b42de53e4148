"""A cache on an object store, seen through a local folder of bounded size.

The folder has two parts. ``cache/`` looks like the cache itself: header, index, ledger, teacher
and side files are there in full, shards as far as the bound allows. ``state/`` is the mirror's own.
Shards are fetched whole, because a whole GET is several times faster than many ranged ones; they
get their name only when size and SHA-256 are what the ledger says.
"""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakMethod

from cache.address import CACHE_FOLDER, STATE_FOLDER
from cache.errors import CacheError, CacheLockedError
from cache.layout import ARRAYS_FOLDER
from cache.ledger_entry import ShardFile
from cache.lock import FolderLock, in_turn
from cache.mirror_room import MirrorFigures, MirrorRoom
from cache.mirror_shards import MirrorShards
from cache.mirror_sync import MirrorFiles, is_shard
from cache.remote import RemoteFolder
from cache.remote_lock import RemoteLock

__all__ = ["CACHE_FOLDER", "Mirror", "MirrorFigures"]

_THREADS = 8
_WAITING = 64
"""Fetches that wait for a thread at most: what is asked later matters sooner."""

_AHEAD_SHARE = 0.5
"""Of the bound: so much is fetched ahead, so that it never pushes out what is about to be read."""


class Mirror:
    """The local side of one remote cache. May be used from several threads of one process.

    Use it as a context manager: leaving it ends the threads and gives the folder's lock back.

    Args:
        folder: the mirror's folder; made where it is missing. Used for this cache alone.
        remote: the cache's objects.
        max_bytes: of shards in ``folder`` at any moment; what is not a shard comes on top.

    Attributes:
        path: the folder that looks like the cache; for ``CacheReader`` and ``CacheWriter``.
        remote: the cache's objects.
        max_bytes: as given.
        files: everything that is not a shard.
    """

    def __init__(self, folder: Path, remote: RemoteFolder, *, max_bytes: int) -> None:
        self.path = folder / CACHE_FOLDER
        self.remote = remote
        self.max_bytes = max_bytes
        self._state = folder / STATE_FOLDER
        self._shards = MirrorShards(self.path, self._state / "arriving", remote)
        self.files = MirrorFiles(self.path, self._state, remote, drop=self._drop)
        self._starting = threading.Lock()
        self._lock: FolderLock | None = None
        self._room: MirrorRoom | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._asked: set[str] = set()
        self._forget: list[WeakMethod[Callable[[str], None]]] = []

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
        """End the threads and give the folder back; a second call does nothing."""
        self.remote.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __reduce__(self) -> str:
        raise TypeError("a mirror belongs to one process and cannot be handed to another")

    def figures(self) -> MirrorFigures:
        """Give what was done so far."""
        room = self._room
        return MirrorFigures(
            fetched=self._shards.fetched,
            fetched_bytes=self._shards.fetched_bytes,
            evicted=room.evicted if room else 0,
            bytes=room.used if room else 0,
            peak_bytes=room.peak if room else 0,
        )

    def sync(self, *, thorough: bool = False) -> None:
        """Bring everything but shards up to date, as far as it changed.

        Args:
            thorough: compare the bytes here too, and fetch again what is damaged on this disk.

        Raises:
            CacheLockedError: another process is fetching the cache for the first time.
            CacheUnreachableError: the store does not answer.
        """
        self.files.pull(self.pool, thorough=thorough, ours=self._lock is not None)

    @property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that talk to the store."""
        with self._starting:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache-mirror")
            return self._pool

    @property
    def room(self) -> MirrorRoom:
        """The room for shards; locks the folder at first use.

        Raises:
            CacheLockedError: another process uses the folder.
        """
        if self._room is None:
            with self._starting:
                if self._room is None:
                    self._room = self._claim()
        return self._room

    def _claim(self) -> MirrorRoom:
        self._state.mkdir(parents=True, exist_ok=True)
        try:
            with in_turn(self._state):
                self._lock = FolderLock(self._state)
        except CacheLockedError as error:
            raise CacheLockedError(
                f"{self._state.parent}: another process uses this mirror of {self.remote.url}. "
                "Wait until it ends, or give this one its own: --set cache.mirror.path=FOLDER"
            ) from error
        self._shards.clear_arriving()
        room = MirrorRoom(self.max_bytes, self._remove)
        shards = [
            (file.stat(), file)
            for file in (self.path / ARRAYS_FOLDER).rglob("*")
            if file.is_file() and is_shard(file.relative_to(self.path).as_posix())
        ]
        for status, file in sorted(shards, key=lambda pair: pair[0].st_mtime_ns):
            room.add(file.relative_to(self.path).as_posix(), status.st_size)
        return room

    def on_removal(self, forget: Callable[[str], None]) -> None:
        """Have a method called with the name of every shard file that is removed.

        The method's object is not kept alive.
        """
        self._forget.append(WeakMethod(forget))

    def _remove(self, name: str) -> None:
        for reference in list(self._forget):
            forget = reference()
            if forget is None:
                self._forget.remove(reference)
            else:
                forget(name)
        (self.path / name).unlink(missing_ok=True)

    def _drop(self, name: str) -> None:
        """Remove a shard file whose ledger entry is no longer what it was."""
        if self._room is None:
            (self.path / name).unlink(missing_ok=True)
        else:
            self._room.drop(name)

    @contextmanager
    def hold_all(self, files: Sequence[ShardFile]) -> Generator[bool, None, None]:
        """Keep files from going while the context lasts, if all of them are there.

        Yields:
            Whether they are; if not, none is kept.
        """
        names = {file.file: file.bytes for file in files}
        held = self.room.use(names)
        try:
            yield held
        finally:
            if held:
                self.room.unuse(names)

    @contextmanager
    def hold(self, file: ShardFile) -> Generator[None, None, None]:
        """Fetch a file where it is not there, and keep it while the context lasts.

        A thread must not hold one file while it asks for another.

        Raises:
            CacheSpaceError: the file is larger than the bound, or the disk is full.
            CacheCorruptError: the store has none, or one of other bytes than the ledger says.
            CacheUnreachableError: the store does not answer.
        """
        if self.room.use_one(file.file, file.bytes) == "taken":
            self._fetch(file)
        try:
            yield
        finally:
            self.room.unuse((file.file,))

    def expect(self, files: Sequence[ShardFile]) -> None:
        """Fetch files in the background, first things first, as far as half the room goes."""
        left = int(self.max_bytes * _AHEAD_SHARE)
        for file in files:
            left -= file.bytes
            if left < 0 or len(self._asked) >= _WAITING:
                return
            if not self.room.touch(file.file) and file.file not in self._asked:
                self._asked.add(file.file)
                self.pool.submit(self._fetch_ahead, file)

    def _fetch_ahead(self, file: ShardFile) -> None:
        try:
            # Who reads the file meets the same error, and raises it.
            with suppress(CacheError, OSError):
                if self.room.take({file.file: file.bytes}, wait=False):
                    self._fetch(file)
                    self.room.unuse((file.file,))
        finally:
            self._asked.discard(file.file)

    def _fetch(self, file: ShardFile) -> None:
        """Fetch a file for which room was taken."""
        try:
            self._shards.fetch(file)
        except BaseException:
            self.room.abandon((file.file,))
            raise
        self.room.arrived(file.file)

    def discard(self, file: ShardFile) -> None:
        """Remove a file whose bytes are damaged here, so that it is fetched again."""
        self.room.drop(file.file)

    @contextmanager
    def staged(self, files: Mapping[str, int]) -> Generator[None, None, None]:
        """Take room for shard files that are written in the context, and uploaded in it.

        Raises:
            CacheSpaceError: they are larger than the bound.
        """
        for name in files:
            self.room.drop(name)
        self.room.take(files, wait=True)
        try:
            yield
        except BaseException:
            self.room.abandon(files)
            raise
        for name in files:
            self.room.arrived(name)
        self.room.unuse(files)

    def lock_for_writing(self) -> RemoteLock:
        """Become the cache's one writer, and bring the local files up to date.

        Raises:
            CacheLockedError: another process writes it, or uses this mirror.
            CacheUnreachableError: the store does not answer.
        """
        _ = self.room  # the folder is ours before anything is removed
        lock = RemoteLock(self.remote)
        try:
            self.sync()
        except BaseException:
            lock.release()
            raise
        return lock

    def glance(self) -> Callable[[ShardFile], str | None]:
        """Give what tells, from one listing, whether a shard's object is there in its size."""
        return self._shards.glance()

    def upload(self, files: Sequence[ShardFile]) -> None:
        """Copy written shard files to the store, each checked after it arrived.

        Raises:
            CacheCorruptError: the store holds other bytes than were sent.
            CacheUnreachableError: the store does not answer.
        """
        self._shards.send(files, self.pool)

    def shard_sha256(self, file: ShardFile) -> str:
        """Give the SHA-256 of a shard's object; reads all of it."""
        return self.remote.sha256(file.file)[0]
