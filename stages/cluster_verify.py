"""Checking a cache's bytes on the workers of a cluster, a few shards a task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.durable import sha256_of_file
from cache.layout import HEADER_NAME
from cache.ledger import ShardFile
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
    """

    cache: Path
    shards: tuple[tuple[str, ...], ...]


def digest_on_workers(
    cluster: Cluster, cache: Path, shards: Sequence[tuple[ShardFile, ...]]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """SHA-256 of shards' files, for ``cache.verify.verify``.

    Args:
        cluster: who reads.
        cache: the cache folder; workers must see it under this name.
        shards: each shard's files.

    Yields:
        Number of the shard and the digest of each of its files, in any order.

    Raises:
        ClusterError: a worker does not see the folder, or the cluster is lost.
    """
    starts = range(0, len(shards), _SHARDS_OF_A_TASK)
    tasks = [
        FilesTask(
            cache=cache.absolute(),
            shards=tuple(
                tuple(file.file for file in files)
                for files in shards[start : start + _SHARDS_OF_A_TASK]
            ),
        )
        for start in starts
    ]
    for task, digests in cluster.run(_digest, tasks, name="verify"):
        for place, of_shard in enumerate(digests):
            yield starts[task] + place, of_shard


def _digest(task: FilesTask) -> tuple[tuple[str, ...], ...]:
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
