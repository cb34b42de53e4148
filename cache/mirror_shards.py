"""Shard files on their way between an object store and a mirror, each whole and checked."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import count
from pathlib import Path

from cache.durable import flush_folder
from cache.errors import CacheCorruptError
from cache.layout import ARRAYS_FOLDER
from cache.ledger_entry import ShardFile
from cache.mending import repair_command
from cache.remote import RemoteFolder
from cache.sizes import space_errors

__all__ = ["MirrorShards"]


class MirrorShards:
    """The shard files of one remote cache. May be used from several threads.

    Args:
        path: the local folder that looks like the cache.
        arriving: folder of files that are being fetched, on the same disk.
        remote: the cache's objects.

    Attributes:
        fetched: files that were fetched.
        fetched_bytes: their bytes.
    """

    def __init__(self, path: Path, arriving: Path, remote: RemoteFolder) -> None:
        self.fetched = 0
        self.fetched_bytes = 0
        self._path = path
        self._arriving = arriving
        self._remote = remote
        self._numbers = count()
        self._counting = threading.Lock()

    def clear_arriving(self) -> None:
        """Remove what a killed process was fetching."""
        self._arriving.mkdir(exist_ok=True)
        for leftover in self._arriving.iterdir():
            leftover.unlink()

    def fetch(self, file: ShardFile) -> None:
        """Fetch a file; it gets its name when it is whole.

        Raises:
            CacheSpaceError: the disk is full.
            CacheCorruptError: the store has none, or one of other bytes than the ledger says.
            CacheUnreachableError: the store does not answer.
        """
        temporary = self._arriving / str(next(self._numbers))
        place = self._path / file.file
        try:
            with space_errors(self._path, file.bytes):
                self._download(file, temporary)
                place.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(place)
                flush_folder(place.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        with self._counting:
            self.fetched += 1
            self.fetched_bytes += file.bytes

    def _download(self, file: ShardFile, temporary: Path) -> None:
        where = f"{self._remote.url}/{file.file}"
        mend = f"Find all damage and mend it: {repair_command(self._remote.url)}"
        for _ in range(2):  # a transfer may fail unnoticed once
            try:
                digest, meta = self._remote.download(file.file, temporary)
            except FileNotFoundError as error:
                raise CacheCorruptError(f"{where} is missing. {mend}") from error
            if digest == file.sha256:
                return
        raise CacheCorruptError(
            f"{where} has other bytes than were written ({meta.bytes} of {file.bytes} bytes, or "
            f"another SHA-256). {mend}"
        )

    def send(self, files: Sequence[ShardFile], pool: Executor) -> None:
        """Copy written files to the store, each checked after it arrived.

        Raises:
            CacheCorruptError: the store holds other bytes than were sent.
            CacheUnreachableError: the store does not answer.
        """
        names = [file.file for file in files]
        places = [self._path / name for name in names]
        list(pool.map(self._remote.put, names, places))

    def glance(self) -> Callable[[ShardFile], str | None]:
        """Give what tells, from one listing, whether a file's object is there in its size."""
        found = self._remote.list(ARRAYS_FOLDER)

        def problem(file: ShardFile) -> str | None:
            stored = found.get(file.file)
            if stored is None:
                return "is missing"
            differs = stored.bytes != file.bytes
            return f"has {stored.bytes} bytes, not {file.bytes}" if differs else None

        return problem
