"""What a worker does for precompute: shards of one pass, with a teacher that it loads once.

What a task leaves behind in its process serves the next one: the teacher, the index, the open
case, the open cache.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cache import CacheReader
from cache.schema import RowSpace
from cache.worker_mirror import WorkerMirror
from efficient_medsam2.networks.device import pick_device
from stages.cache_batch_size import fitting_batch_size
from stages.cache_calls import TeacherCalls, memory_errors
from stages.cache_overlap import RoleTimes
from stages.cache_passes import CachePasses
from stages.cache_rows import CacheRows
from stages.cache_settings import PrecomputeConfig
from stages.cases import CaseHandle, DataConfig
from stages.cluster import worker_name
from stages.cluster_cache import WorkerCache, cache_of
from stages.context import StageContext
from stages.errors import ClusterError
from stages.quiet import QuietProgress
from stages.teacher_source import TeacherConfig

if TYPE_CHECKING:
    from efficient_medsam2.teachers.load import Teacher

__all__ = [
    "PrecomputeJob",
    "ShardTask",
    "ShardsMade",
    "batch_size_here",
    "make_shards",
    "package_versions",
]

_PACKAGES = ("efficient-medsam2", "numpy", "timm", "torch", "transformers")
"""Those whose version may change the bytes of a cache."""


@dataclass(frozen=True, kw_only=True)
class PrecomputeJob:
    """What all tasks of one run have in common.

    Attributes:
        cache: the cache folder, absolute; every machine must see it there, but for
            one on an object store.
        token: permission to write.
        teacher: which one.
        weights_sha256: its weights, as the coordinator has them.
        data: how images are read; its source is not looked at.
        config: what the teacher is asked; its batch size is a number, but for
            ``batch_size_here``.
        channels: of the images.
        device: ``auto``, ``cpu`` or ``cuda``: each worker's own.
        versions: of the packages that decide the bytes.
        mirror: how to mirror a cache on an object store.
    """

    cache: Path
    token: str
    teacher: TeacherConfig
    weights_sha256: str
    data: DataConfig
    config: PrecomputeConfig
    channels: int
    device: str
    versions: Mapping[str, str]
    mirror: WorkerMirror | None = None


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Shards of one pass, and the cases that they are of (slices alone need them)."""

    job: PrecomputeJob
    space: RowSpace
    shards: tuple[int, ...]
    handles: tuple[CaseHandle, ...]


@dataclass(frozen=True, kw_only=True)
class ShardsMade:
    """What came of a task.

    Attributes:
        shards: all of the task's, now published.
        worker: who did it, and where.
        device: of its teacher.
        times: of reading, computing and writing.
    """

    shards: tuple[int, ...]
    worker: str
    device: str
    times: RoleTimes


def package_versions() -> dict[str, str]:
    """Versions of the packages that may change the bytes of a cache."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "a checkout"
    return found


def make_shards(task: ShardTask) -> ShardsMade:
    """Make and publish shards; those that are published already are left as they are.

    Raises:
        ClusterError: this worker has other packages or another teacher than the coordinator.
        CacheError: the folder is not to be seen from here, or the permission to write is over.
        DataError: a file is damaged.
        StageMemoryError: a batch does not fit into the memory.
    """
    # A teacher has the device to itself, however many threads this worker was started with.
    with _ONE_TASK:
        return _worker_of(task.job).make(task)


def batch_size_here(job: PrecomputeJob) -> int:
    """The batch size that this worker's device takes.

    Raises:
        ClusterError, CacheError: see ``make_shards``.
    """
    with _ONE_TASK:
        _check_versions(job)
        spec = _cache_of(job).writer.spec
        teacher = _teacher_of(job).model
        device = pick_device(job.device)
        teacher.module.to(device)
        calls = TeacherCalls(
            teacher, device=device, precision=job.config.precision, stored=spec.arrays
        )
        with memory_errors(2, device):
            return fitting_batch_size(
                calls, channels=job.channels, rows_per_shard=spec.rows_per_shard
            )


class _Worker:
    """This process at one job."""

    def __init__(self, job: PrecomputeJob) -> None:
        _check_versions(job)
        self.job = job
        self._cache = _cache_of(job)
        self._writer = self._cache.writer
        self._handles: dict[str, CaseHandle] = {}
        self._readers: dict[RowSpace, CacheReader] = {}
        self._space: RowSpace = "slices"
        self.device = pick_device(job.device).type
        index = self._writer.read_index()
        self._cases = index.cases
        self.passes = CachePasses(
            writer=self._writer,
            teacher=_teacher_of(job).model,
            handles=self._handles,
            rows=CacheRows(index=index, channels=job.channels, files={}, skipped={}),
            data=job.data,
            config=job.config,
            context=StageContext(
                directory=self._cache.path,
                inputs={},
                cache=self._cache.path,
                fingerprint="",
                seed=0,
                device=job.device,
                resume=True,
                progress=QuietProgress(),
            ),
            open_reader=self._open_reader,
            keep_case=True,
        )

    def make(self, task: ShardTask) -> ShardsMade:
        self._space = task.space
        if self.job.mirror is not None:  # no shared folder: each machine may have a copy
            for handle in task.handles:
                self._check_copy(handle)
        self._handles.update((handle.case_id, handle) for handle in task.handles)
        self._writer.assign(task.space, task.shards)
        make = {
            "slices": self.passes.slices,
            "prompts": self.passes.prompts,
            "tracks": self.passes.tracks,
        }[task.space]
        report = make()
        return ShardsMade(
            shards=task.shards, worker=worker_name(), device=self.device, times=report.times
        )

    def close(self) -> None:
        self.passes.close()

    def _check_copy(self, handle: CaseHandle) -> None:
        """Refuse files that are not those from which the coordinator took the rows."""
        if handle.case_id in self._handles:
            return
        wanted = self._cases.row(self._cases.codes[handle.case_id]).files
        found = handle.digests()
        other = [name for name, digest in wanted.items() if found.get(name) != digest]
        if other:
            raise ClusterError(
                f"worker {worker_name()} has another {handle.files.get(other[0], other[0])} than "
                "the coordinator. Copy the images to its machine again, or put them where all "
                "machines see them: --set data.source=FOLDER"
            )

    def _open_reader(self) -> CacheReader:
        """The cache with all slices, opened once for a pass."""
        if self._space not in self._readers:
            self._readers = {self._space: self._cache.open_reader()}
        return self._readers[self._space]


_ONE_TASK = threading.Lock()
_worker: _Worker | None = None
_teacher: "tuple[TeacherConfig, Teacher] | None" = None


def _worker_of(job: PrecomputeJob) -> _Worker:
    """This process at ``job``, set up once."""
    global _worker
    if _worker is None or _worker.job != job:
        if _worker is not None:
            _worker.close()
        _worker = None
        _worker = _Worker(job)
    return _worker


def _teacher_of(job: PrecomputeJob) -> "Teacher":
    """The job's teacher, loaded once in this process."""
    from efficient_medsam2.teachers.load import load_teacher

    global _teacher
    known = _teacher is not None and _teacher[0] == job.teacher
    if _teacher is None or not known or _teacher[1].weights_sha256 != job.weights_sha256:
        _teacher = None
        loaded = load_teacher(
            job.teacher.kind,
            job.teacher.checkpoint,
            size=job.teacher.size,
            image_size=job.teacher.image_size,
        )
        if loaded.weights_sha256 != job.weights_sha256:
            raise ClusterError(
                f"worker {worker_name()} has other weights of {job.teacher.kind} than the "
                f"coordinator ({loaded.weights_sha256[:12]}, not {job.weights_sha256[:12]}). Name "
                "one file that all machines see: --set teacher.checkpoint=FILE"
            )
        _teacher = (job.teacher, loaded)
    return _teacher[1]


def _cache_of(job: PrecomputeJob) -> WorkerCache:
    return cache_of(job.cache, job.token, job.mirror)


def _check_versions(job: PrecomputeJob) -> None:
    here = package_versions()
    other = [
        f"{name} {here[name]} (coordinator: {version})"
        for name, version in job.versions.items()
        if here[name] != version
    ]
    if other:
        raise ClusterError(
            f"worker {worker_name()} has {', '.join(other)}: caches are made with the same "
            "packages on all machines. Start its dask worker from the environment of the "
            "coordinator"
        )
