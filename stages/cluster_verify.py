"""Checking a cache's bytes on the workers of a cluster, a few shards a task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.durable import sha256_of_file
from cache.layout import HEADER_NAME
from cache.ledger import ShardFile
from cache.remote import RemoteFolder
from stages.cluster import Cluster, worker_name
from stages.errors import ClusterError

__all__ = ["FilesTask", "digest_on_workers"]

_SHARDS_OF_A_TASK = 8


@dataclass(frozen=True, kw_only=True)
class FilesTask:
    """Files to be read.

    Attributes:
        cache: the cache folder, absolute.
        shards: names of each shard's files.
        reopen: opens the objects of a cache on an object store.
    """

    cache: Path
    shards: tuple[tuple[str, ...], ...]
    reopen: Callable[[], RemoteFolder] | None = None


def digest_on_workers(
    cluster: Cluster,
    cache: Path,
    shards: Sequence[tuple[ShardFile, ...]],
    *,
    reopen: Callable[[], RemoteFolder] | None = None,
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """SHA-256 of shards' files, for ``cache.verify.verify``.

    Args:
        cluster: who reads.
        cache: the cache folder; workers must see it under this name.
        shards: each shard's files.
        reopen: opens the objects of a cache on an object store, of which every worker reads its
            share from there.

    Yields:
        Number of the shard and the digest of each of its files, in any order.

    Raises:
        ClusterError: a worker does not see the cache, or the cluster is lost.
        CacheUnreachableError: the store does not answer a worker.
    """
    starts = range(0, len(shards), _SHARDS_OF_A_TASK)
    tasks = [
        FilesTask(
            cache=cache.absolute(),
            shards=tuple(
                tuple(file.file for file in files)
                for files in shards[start : start + _SHARDS_OF_A_TASK]
            ),
            reopen=reopen,
        )
        for start in starts
    ]
    for task, digests in cluster.run(_digest, tasks, name="verify"):
        for place, of_shard in enumerate(digests):
            yield starts[task] + place, of_shard


def _digest(task: FilesTask) -> tuple[tuple[str, ...], ...]:
    if task.reopen is not None:
        remote = task.reopen()
        if remote.head(HEADER_NAME) is None:
            raise ClusterError(
                f"worker {worker_name()} finds no cache at {remote.url}: it has another store at "
                "that address. Name it in the worker's environment (AWS_ENDPOINT), or verify "
                "without --scheduler"
            )
        return tuple(tuple(_object_sha256(remote, name) for name in names) for names in task.shards)
    if not (task.cache / HEADER_NAME).is_file():
        raise ClusterError(
            f"worker {worker_name()} does not see the cache folder {task.cache}. Put it where all "
            "machines see it under one name, or verify without --scheduler"
        )
    return tuple(tuple(_sha256(task.cache / name) for name in names) for names in task.shards)


def _sha256(file: Path) -> str:
    try:
        return sha256_of_file(file)
    except OSError:
        return ""  # no file has this digest, so it is reported


def _object_sha256(remote: RemoteFolder, name: str) -> str:
    try:
        return remote.sha256(name)[0]
    except FileNotFoundError:
        return ""  # removed since the shards were listed
