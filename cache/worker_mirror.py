"""Mirrors of a cache on an object store that workers open for themselves, on any machine.

What is sent to a worker is an address and a folder, never a credential: those come from the
worker's own environment. Each worker process takes the first folder of its machine that no other
one uses, so that a worker which takes the place of a killed one finds its shards there.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from cache.errors import CacheError, CacheLockedError
from cache.layout import HEADER_NAME
from cache.mirror import Mirror
from cache.remote import RemoteFolder

__all__ = ["WorkerMirror"]

_FOLDER = "workers"
_FIRST_ANSWER_S = 60.0
"""A store that answered the coordinator and does not answer here: most often credentials lack."""


@dataclass(frozen=True, kw_only=True)
class WorkerMirror:
    """How a worker opens a mirror of its own.

    Attributes:
        url: of the cache, for messages.
        reopen: opens its objects.
        folder: where the mirrors of workers lie, on every machine.
        max_bytes: of shards in each of them.
    """

    url: str
    reopen: Callable[[], RemoteFolder] = field(compare=False)
    folder: Path
    max_bytes: int

    @classmethod
    def beside(cls, mirror: Mirror) -> "WorkerMirror":
        """Give what workers of a writer need to know of its mirror.

        Raises:
            CacheError: the objects can be opened in this process alone.
        """
        remote = mirror.remote
        if remote.reopen is None:
            raise CacheError(f"{remote.url} was opened in a way that no other process can repeat")
        return cls(
            url=remote.url,
            reopen=remote.reopen,
            folder=(mirror.path.parent / _FOLDER).absolute(),
            max_bytes=mirror.max_bytes,
        )

    def open(self) -> Mirror:
        """Open a mirror that no other process uses, its small files up to date.

        Raises:
            CacheUnreachableError: the store does not answer.
            OSError: the folder cannot be written.
        """
        remote = self.reopen()
        remote.within(_FIRST_ANSWER_S).head(HEADER_NAME)
        for number in count():
            folder = self.folder / f"{socket.gethostname()}-{number}"
            mirror = Mirror(folder, remote, max_bytes=self.max_bytes)
            try:
                _ = mirror.room  # the folder is ours
            except CacheLockedError:
                continue
            try:
                mirror.sync()
            except BaseException:
                mirror.close()
                raise
            return mirror
        raise AssertionError("unreachable")
