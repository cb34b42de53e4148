"""The teacher's three passes over a cache, their shards made by the workers of a cluster.

This process holds the cache's lock, prepares the folder, gives out what is missing and finishes
the cache. Each worker reads cases, runs the teacher and writes whole shards itself, so nothing
but names crosses the network. A task is a run of neighbouring shards, because tracks are followed
in groups that reach over the ends of shards, and because reading and writing overlap inside a
task. Shards are finished one by one: a worker that is killed costs the shard in its hands. Those of
a cache on an object store are uploaded by the workers, each from a mirror of its own, and published
by this process.

The bytes are those of a single process of the same kind of machine: batches and groups of tracks
are cut by the batch size alone, never by tasks.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cache import CacheWriter, required_bytes
from cache.schema import ROW_SPACES, RowSpace
from cache.sizes import shard_bytes
from cache.worker_mirror import WorkerMirror
from stages.cache_batch_size import kept_batch_size
from stages.cache_meter import PassReport, WrittenBytes
from stages.cache_overlap import RoleTimes
from stages.cache_rows import CacheRows
from stages.cache_settings import PrecomputeConfig
from stages.cases import CaseHandle, DataConfig, Dataset
from stages.cluster import Cluster, shard_runs
from stages.cluster_worker import (
    PrecomputeJob,
    ShardsMade,
    ShardTask,
    batch_size_here,
    make_shards,
    package_versions,
)
from stages.context import StageContext
from stages.teacher_source import TeacherConfig

__all__ = ["ClusterPasses"]

_DESCRIPTIONS = {
    "slices": "encoding slices",
    "prompts": "answering prompts",
    "tracks": "following tracks",
}


class ClusterPasses:
    """The three passes over one cache; the counterpart of ``CachePasses``.

    Args:
        writer: of the cache.
        cluster: who makes the shards.
        dataset: the cases that have rows.
        rows: the cache's rows.
        data: how images are prepared.
        teacher: which one; its checkpoint is a path that workers see too.
        weights_sha256: of the teacher.
        config: what the teacher is asked.
        context: device and progress.

    Attributes:
        batch_size: rows that the teacher gets at a time.

    Raises:
        ClusterError: no worker can be reached, or one does not fit this process.
    """

    def __init__(
        self,
        *,
        writer: CacheWriter,
        cluster: Cluster,
        dataset: Dataset,
        rows: CacheRows,
        data: DataConfig,
        teacher: TeacherConfig,
        weights_sha256: str,
        config: PrecomputeConfig,
        context: StageContext,
    ) -> None:
        self._writer = writer
        self._cluster = cluster
        self._handles = {handle.case_id: handle for handle in dataset.handles}
        self._rows = rows
        self._progress = context.progress
        self._devices: dict[str, str] = {}
        checkpoint = None if teacher.checkpoint is None else teacher.checkpoint.absolute()
        job = PrecomputeJob(
            cache=writer.path.absolute(),
            token=writer.share(),
            teacher=teacher.model_copy(update={"checkpoint": checkpoint, "train": False}),
            weights_sha256=weights_sha256,
            data=data,
            config=config,
            channels=rows.channels,
            device=context.device,
            versions=package_versions(),
            mirror=None if context.mirror is None else WorkerMirror.beside(context.mirror),
        )
        self.batch_size = kept_batch_size(
            config.batch_size,
            lambda: self._fitting_batch_size(job),
            folder=writer.path,
            resume=context.resume,
        )
        config = config.model_copy(update={"batch_size": self.batch_size})
        self._job = replace(job, config=config)
        total = required_bytes(writer.spec, rows.index.counts())["total"]
        self._written = WrittenBytes(
            writer.path, written=total - writer.missing_bytes(), total=total
        )

    def _fitting_batch_size(self, job: PrecomputeJob) -> int:
        """The smallest that any of a few workers found: those to come may be no larger."""
        tasks = [job] * self._cluster.worker_count()
        found = self._cluster.run(batch_size_here, tasks, name="batch-size", gpu=True)
        return min(size for _, size in found)

    def run(self) -> dict[RowSpace, PassReport]:
        """Make what is missing; a line on each pass goes to the progress.

        Raises:
            ClusterError: the cluster is lost, or a task kills its workers.
            DataError: a file is damaged.
            CacheError: the disk is full or failing.
            StageMemoryError: a batch does not fit into the memory of a worker.
        """
        return {space: self._pass(space) for space in ROW_SPACES}

    def _pass(self, space: RowSpace) -> PassReport:
        missing = self._writer.missing_shards(space)
        if not missing:
            return PassReport(name=space, rows=0, written=0)
        counts = self._rows.index.counts()
        rows = {shard: len(self._writer.rows_of_shard(space, shard)) for shard in missing}
        tasks = [
            ShardTask(job=self._job, space=space, shards=run, handles=self._cases_of(space, run))
            for run in shard_runs(missing, workers=self._cluster.worker_count())
        ]
        before, begun, times = self._written.written, time.perf_counter(), RoleTimes()
        todo = sum(rows.values())
        with self._progress.bar(
            total=counts[space],
            description=_DESCRIPTIONS[space],
            unit="row",
            initial=counts[space] - todo,
        ) as bar:
            for _, made in self._cluster.run(make_shards, tasks, name=space, gpu=True):
                self._writer.adopt(space, made.shards)
                for shard in made.shards:
                    self._written.add(shard_bytes(self._writer.spec, counts, space, shard))
                self._note_device(made)
                _add(times, made.times)
                bar.update(
                    sum(rows[shard] for shard in made.shards),
                    **self._written.figures(),
                    workers=str(self._cluster.worker_count()),
                )
        times = _on_the_wall(times, time.perf_counter() - begun)
        report = PassReport(
            name=space, rows=todo, written=self._written.written - before, times=times
        )
        self._progress.note(f"precompute: {report.line()}")
        return report

    def _cases_of(self, space: RowSpace, shards: Sequence[int]) -> tuple[CaseHandle, ...]:
        if space != "slices":
            return ()
        rows = np.concatenate([self._writer.rows_of_shard(space, shard) for shard in shards])
        codes = np.unique(self._rows.index.slices.case_code[rows])
        cases = self._rows.index.cases
        return tuple(self._handles[cases.row(int(code)).case_id] for code in codes)

    def _note_device(self, made: ShardsMade) -> None:
        if made.device not in self._devices.values() and self._devices:
            self._progress.note(
                f"precompute: {made.worker} computes on {made.device}, others on "
                f"{', '.join(sorted(set(self._devices.values())))}: which rows differ in their "
                "last bits depends on who made them. Name one: --set run.device=cuda"
            )
        self._devices[made.worker] = made.device


def _add(total: RoleTimes, part: RoleTimes) -> None:
    total.reader += part.reader
    total.teacher += part.teacher
    total.writer += part.writer
    total.seconds += part.seconds


def _on_the_wall(total: RoleTimes, seconds: float) -> RoleTimes:
    """The roles' shares of the workers' time, as times of a run of so many seconds."""
    share = seconds / total.seconds if total.seconds else 0.0
    return RoleTimes(
        reader=total.reader * share,
        teacher=total.teacher * share,
        writer=total.writer * share,
        seconds=seconds,
    )
