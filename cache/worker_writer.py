"""Writing shards of a cache from a worker, with the permission of its one writer."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cache.creation import open_store, shard_problem
from cache.errors import CacheError, CacheMissingError
from cache.index import CacheIndex
from cache.index_files import INDEX_FOLDER, read_index
from cache.layout import CacheHeader, read_header
from cache.ledger import LedgerEntry, entry_path
from cache.ledger_entry import EntryReader, publish_entry
from cache.mirror import Mirror
from cache.remote_claims import RemotePermission
from cache.schema import CacheSpec, RowSpace
from cache.shard_writer import ShardWriter
from cache.worker_token import hold_shard, hold_token

__all__ = ["WorkerWriter", "published_entry"]

Values = npt.NDArray[np.generic]

SEEN_LATE_S = 60.0
"""A network file system may show another machine's new file as late as this (NFS: acdirmax)."""


class _Permission(Protocol):
    """What the writer of a cache lets a worker do."""

    def check(self) -> None:
        """Make sure that the writer is at work."""

    def is_made(self, space: RowSpace, k: int) -> bool:
        """Whether a shard is there already."""

    def shard(
        self, space: RowSpace, k: int
    ) -> AbstractContextManager[Callable[[LedgerEntry], None] | None]:
        """Keep others from a shard; gives what declares it finished, ``None`` where it is."""


class _FolderPermission:
    """To write into a folder that all machines share, by its token."""

    def __init__(self, path: Path, header: CacheHeader, token: str) -> None:
        self._path = path
        self._token = token
        self._entries = EntryReader(header)

    def check(self) -> None:
        with hold_token(self._path, self._token):
            pass

    def is_made(self, space: RowSpace, k: int) -> bool:
        file = entry_path(self._path, space, k)
        if not file.exists():
            return False
        try:
            entry = self._entries.read(file, sums=False)
        except CacheError:
            return False
        return all(shard_problem(self._path, part) is None for part in entry.arrays.values())

    @contextmanager
    def shard(
        self, space: RowSpace, k: int
    ) -> Generator[Callable[[LedgerEntry], None] | None, None, None]:
        with hold_token(self._path, self._token), hold_shard(self._path, space, k):
            yield None if self.is_made(space, k) else self._publish

    def _publish(self, entry: LedgerEntry) -> None:
        publish_entry(self._path, entry)


class WorkerWriter:
    """Writes the shards that are assigned to it; prepares and sweeps nothing.

    ``CacheWriter.share`` gives the token. A shard that another worker has finished meanwhile is
    left as it is.

    Args:
        path: the cache folder, as this machine sees it.
        token: the writer's.
        mirror: of a cache on an object store, whose ``path`` this is; the worker's own. Shards are
            uploaded, and the writer publishes them.

    Attributes:
        path: the cache folder.
        spec: identity of the cache.

    Raises:
        CacheMissingError: there is no cache at ``path``.
        CacheCorruptError: its header is damaged.
        CacheLockedError: the token is not that of the writer at work.
    """

    def __init__(self, path: Path, token: str, *, mirror: Mirror | None = None) -> None:
        self.path = path
        self._header: CacheHeader = read_header(path)
        self._permission: _Permission = (
            _FolderPermission(path, self._header, token)
            if mirror is None
            else RemotePermission(mirror, token)
        )
        self._permission.check()
        self.spec: CacheSpec = self._header.spec
        store = open_store(path, self._header)
        self._shards = ShardWriter(path, self._header, store, mirror=mirror)
        self._assigned: dict[RowSpace, tuple[int, ...]] = {}

    @property
    def counts(self) -> Mapping[RowSpace, int]:
        """Rows of each row space."""
        return self._header.counts

    def read_index(self) -> CacheIndex:
        """Read the cache's index.

        Raises:
            CacheCorruptError: an index file is damaged.
        """
        return read_index(self.path / INDEX_FOLDER, self._header.index_files)

    def assign(self, space: RowSpace, shards: tuple[int, ...]) -> None:
        """Set what ``missing_shards`` gives: these, as far as nobody has published them."""
        self._assigned = {space: shards}

    def missing_shards(self, space: RowSpace) -> tuple[int, ...]:
        """Give the assigned shards of a row space that are still to be written."""
        assigned = self._assigned.get(space, ())
        return tuple(k for k in assigned if not self._permission.is_made(space, k))

    def rows_of_shard(self, space: RowSpace, k: int) -> range:
        """Give the rows of shard ``k``."""
        return self.spec.shard_rows(k, self._header.counts[space])

    def missing_bytes(self) -> int:
        """Give 0: only the writer knows what the cache lacks."""
        return 0

    def write_shard(self, space: RowSpace, k: int, arrays: Mapping[str, Values]) -> None:
        """Write all arrays of one shard and publish it, as ``CacheWriter.write_shard`` does.

        Raises:
            CacheLockedError: the writer that gave the token has ended, or another has begun.
            ValueError, CacheDataError, CacheSpaceError, CacheCorruptError: see ``CacheWriter``.
        """
        with self._permission.shard(space, k) as publish:
            if publish is not None:
                self._shards.write(space, k, arrays, publish=publish)


def published_entry(path: Path, reader: EntryReader, space: RowSpace, k: int) -> LedgerEntry:
    """Read the ledger entry of a shard that a worker says it has published; waits until it is seen.

    Raises:
        CacheMissingError: the entry or a file is not there, or has another size.
        CacheCorruptError, CacheStaleError: the entry cannot be trusted.
    """
    file = entry_path(path, space, k)
    deadline = time.monotonic() + SEEN_LATE_S
    while not file.exists():
        if time.monotonic() >= deadline:
            raise _not_here(file, "is missing")
        time.sleep(0.1)
    # It is published last, so that its files are there with it.
    entry = reader.read(file, sums=False)
    for part in entry.arrays.values():
        problem = shard_problem(path, part)
        if problem:
            raise _not_here(path / part.file, problem)
    return entry


def _not_here(file: Path, problem: str) -> CacheMissingError:
    return CacheMissingError(
        f"{file} {problem}, though a worker has published it. Workers must write into the same "
        "folder as this process: name one that all machines share, --set cache.path=FOLDER"
    )
