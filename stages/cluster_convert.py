"""Converting a cache on the workers of a cluster: a few shards a task."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache import CacheReader, CacheWriter
from cache.errors import CacheMissingError
from cache.schema import ROW_SPACES, RowSpace
from cache.worker_writer import WorkerWriter
from stages.cache_conversion import convert_shard
from stages.cluster import Cluster, shard_runs, worker_name
from stages.errors import ClusterError

__all__ = ["ConvertTask", "convert_on_workers"]


@dataclass(frozen=True, kw_only=True)
class ConvertTask:
    """Shards to be converted.

    Attributes:
        source: the complete cache, absolute.
        target: the new cache, absolute.
        token: permission to write it.
        space: the row space.
        shards: of it.
    """

    source: Path
    target: Path
    token: str
    space: RowSpace
    shards: tuple[int, ...]


def convert_on_workers(
    cluster: Cluster, source: Path, writer: CacheWriter, step: Callable[[int], None]
) -> None:
    """Write what is missing of a converted cache.

    Args:
        cluster: who converts; workers must see both caches under the same names.
        source: the cache that is read.
        writer: of the new cache.
        step: called with the number of rows that were written.

    Raises:
        ClusterError: a worker does not see the folders, or the cluster is lost.
        CacheError: a shard is damaged, or the disk is full.
    """
    token = writer.share()
    for space in ROW_SPACES:
        tasks = [
            ConvertTask(
                source=source.absolute(),
                target=writer.path.absolute(),
                token=token,
                space=space,
                shards=run,
            )
            for run in shard_runs(writer.missing_shards(space), workers=cluster.worker_count())
        ]
        for number, _ in cluster.run(_convert, tasks, name=f"convert-{space}"):
            writer.adopt(space, tasks[number].shards)
            step(sum(len(writer.rows_of_shard(space, k)) for k in tasks[number].shards))


def _convert(task: ConvertTask) -> None:
    try:
        reader = CacheReader(task.source)
        writer = WorkerWriter(task.target, task.token)
    except CacheMissingError as error:
        raise ClusterError(
            f"worker {worker_name()} does not see {task.source} and {task.target}. Put both where "
            "all machines see them under one name"
        ) from error
    writer.assign(task.space, task.shards)
    for shard in writer.missing_shards(task.space):
        writer.write_shard(task.space, shard, convert_shard(reader, writer, task.space, shard))
