"""A cache as a worker sees it: the folder that all machines share, or a mirror of its own.

What is opened serves all tasks of a run in its process.
"""

import time
from pathlib import Path

from cache import CacheReader
from cache.errors import CacheMissingError, CacheUnreachableError
from cache.mirror import Mirror
from cache.worker_mirror import WorkerMirror
from cache.worker_writer import WorkerWriter
from stages.cluster import worker_name
from stages.errors import ClusterError

__all__ = ["WorkerCache", "cache_of", "close_cache"]

_SEEN_LATE_S = 90.0
"""A network file system may show what other machines have written as late as this."""


class WorkerCache:
    """An open cache of a worker.

    Args:
        folder: of the cache, where all machines see it; of no use where ``mirror`` is given.
        token: permission to write.
        mirror: how to open a mirror of a cache on an object store.

    Attributes:
        path: the folder that looks like the cache.
        writer: writes shards.

    Raises:
        ClusterError: the cache is not to be seen from here.
        CacheLockedError: the permission is over.
        CacheUnreachableError: the store does not answer.
    """

    def __init__(self, folder: Path, token: str, mirror: WorkerMirror | None) -> None:
        self.origin = (folder, token, mirror)
        self._mirror = None if mirror is None else _open_mirror(mirror)
        self.path = folder if self._mirror is None else self._mirror.path
        try:
            self.writer = WorkerWriter(self.path, token, mirror=self._mirror)
        except CacheMissingError as error:
            self.close()
            raise _not_seen(folder, mirror) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the mirror."""
        if self._mirror is not None:
            self._mirror.close()

    def open_reader(self) -> CacheReader:
        """The cache with all slices: a pass over prompts or tracks begins when they are there."""
        deadline = time.monotonic() + _SEEN_LATE_S
        while True:
            if self._mirror is not None:
                self._mirror.sync()
            reader = CacheReader(self.path, mirror=self._mirror)
            there = len(reader.finished_rows("slices")) == self.writer.counts["slices"]
            if there or time.monotonic() > deadline:
                return reader
            time.sleep(1.0)


_opened: WorkerCache | None = None


def cache_of(folder: Path, token: str, mirror: WorkerMirror | None) -> WorkerCache:
    """A cache for this process, opened once; see ``WorkerCache``."""
    global _opened
    if _opened is None or _opened.origin != (folder, token, mirror):
        close_cache()
        _opened = WorkerCache(folder, token, mirror)
    return _opened


def close_cache() -> None:
    """Close what ``cache_of`` has opened in this process."""
    global _opened
    if _opened is not None:
        _opened.close()
        _opened = None


def _open_mirror(mirror: WorkerMirror) -> Mirror:
    try:
        return mirror.open()
    except CacheUnreachableError as error:
        raise CacheUnreachableError(f"worker {worker_name()}: {error}") from error
    except OSError as error:
        raise ClusterError(
            f"worker {worker_name()} cannot use {mirror.folder} for its mirror of {mirror.url} "
            f"({error.strerror}). Name a folder that all machines can make: --set "
            "cache.mirror.path=FOLDER"
        ) from error


def _not_seen(folder: Path, mirror: WorkerMirror | None) -> ClusterError:
    if mirror is None:
        return ClusterError(
            f"worker {worker_name()} does not see the cache folder {folder}. Put it where all "
            "machines see it under one name: --set cache.path=FOLDER"
        )
    return ClusterError(
        f"worker {worker_name()} finds no cache at {mirror.url}: it has another store at that "
        "address. Name it: --set 'cache.store_options={endpoint: http://HOST:9000}', or in the "
        "worker's environment: AWS_ENDPOINT"
    )
