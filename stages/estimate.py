"""What a cache would hold and take, before anything is written."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from cache import CacheSpec
from cache.errors import CacheError
from cache.index import CacheIndex
from cache.layout import read_header
from cache.ledger import load_ledger
from cache.schema import RowSpace
from efficient_medsam2.networks.device import pick_device
from stages.cache_arrays import cache_spec
from stages.cache_batch_size import cpu_batch_size
from stages.cache_rows import CacheRows, decide_rows
from stages.cache_settings import CacheConfig, PrecomputeConfig, tracks_for
from stages.cases import DataConfig, Dataset, open_dataset
from stages.estimate_records import CacheEstimate, TimeEstimate
from stages.estimate_sample import take_sample
from stages.estimate_size import cache_size, smaller_caches
from stages.estimate_time import extrapolate
from stages.teacher_source import TeacherConfig

if TYPE_CHECKING:
    from efficient_medsam2.teachers.load import Teacher

__all__ = ["estimate"]

_GPU_BATCH = 32


def estimate(
    data: DataConfig,
    teacher_config: TeacherConfig,
    cache_config: CacheConfig,
    config: PrecomputeConfig,
    *,
    folder: Path,
    trained_teacher: Path | None = None,
    device: str = "auto",
    sample: bool = True,
    free_bytes: int | None = None,
) -> CacheEstimate:
    """What a cache would hold and take; reads the labels, leaves nothing written.

    The time sample (seconds to a quarter of a minute) writes a few rows beside ``folder`` and
    removes them.

    Args:
        data: which images.
        teacher_config: which teacher.
        cache_config: how the cache is stored.
        config: what the teacher is asked.
        folder: where the cache is to lie.
        trained_teacher: model folder of the teacher that this run trains; size and time follow
            from its network, so before it is there the estimate says that alone.
        device: ``auto``, ``cpu`` or ``cuda``, for the sample.
        sample: whether the time is measured.
        free_bytes: free bytes of the disk; asked of the disk where None.

    Raises:
        DataError: the data cannot be used.
        WeightsError: the teacher's checkpoint is missing or wrong.
        OSError: the sample cannot be written.
    """
    from efficient_medsam2.teachers.load import load_teacher

    checkpoint = teacher_config.checkpoint
    if teacher_config.train:
        if trained_teacher is None or not trained_teacher.is_dir():
            note = "size of the cache: told by precompute, once the teacher is trained"
            return CacheEstimate(size=None, time=None, notes=(note,))
        checkpoint = trained_teacher
    begun = time.perf_counter()
    teacher = load_teacher(
        teacher_config.kind,
        checkpoint,
        size=teacher_config.size,
        image_size=teacher_config.image_size,
    )
    dataset = open_dataset(data)
    notes = list(dataset.notes)

    def decide(wanted: DataConfig) -> CacheRows:
        return decide_rows(
            dataset,
            data=wanted,
            views=config.views,
            prompts=config.prompts,
            tracks=tracks_for(teacher.model, config.tracks),
            size=teacher.model.image_size,
            step=lambda: None,
            note=notes.append,
        )

    rows = decide(data)
    start_s = time.perf_counter() - begun
    spec = cache_spec(teacher, rows, data, cache_config, config)
    size = cache_size(spec, rows, teacher.model, folder, free=free_bytes)
    if not size.fits:
        alternatives = smaller_caches(
            size, spec, rows, data=data, cache=cache_config, config=config, decide=decide
        )
        return CacheEstimate(size=size, time=None, alternatives=alternatives, notes=tuple(notes))
    took = None
    if sample and device == "cuda" and not torch.cuda.is_available():
        notes.append("time: not measured, because run.device is cuda and this machine has no GPU")
    elif sample:
        missing = _missing_shares(folder, spec, rows.index)
        took = _time(
            teacher,
            dataset.without(rows.skipped.keys()),
            rows,
            spec,
            data=data,
            config=config,
            folder=folder,
            device=device,
            missing=missing,
            start_s=start_s,
        )
    return CacheEstimate(size=size, time=took, notes=tuple(notes))


def _time(
    teacher: "Teacher",
    dataset: Dataset,
    rows: CacheRows,
    spec: CacheSpec,
    *,
    data: DataConfig,
    config: PrecomputeConfig,
    folder: Path,
    device: str,
    missing: dict[RowSpace, float],
    start_s: float,
) -> TimeEstimate:
    begun = time.perf_counter()
    place = pick_device(device)
    teacher.model.module.to(place)
    times = take_sample(
        teacher.model,
        dataset,
        rows,
        spec,
        data=data,
        batch_size=_batch_size(
            config,
            place,
            image_size=teacher.model.image_size,
            rows_per_shard=spec.rows_per_shard,
        ),
        autocast=_autocast(config, place),
        folder=folder,
    )
    return extrapolate(
        times,
        rows.index,
        missing=missing,
        start_s=start_s,
        sample_s=time.perf_counter() - begun,
        cores=_cores(),
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batch_size(
    config: PrecomputeConfig, device: torch.device, *, image_size: int, rows_per_shard: int
) -> int:
    """Rows at a time; on a GPU, whose memory is not tried here, what precompute usually finds."""
    if config.batch_size != "auto":
        return config.batch_size
    if device.type == "cuda":
        return min(_GPU_BATCH, rows_per_shard)
    return cpu_batch_size(image_size, rows_per_shard, psutil.virtual_memory().total)


def _autocast(
    config: PrecomputeConfig, device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
    return nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype=dtype)


def _missing_shares(folder: Path, spec: CacheSpec, index: CacheIndex) -> dict[RowSpace, float]:
    """Of each row space, how much a cache that was begun there still lacks."""
    missing: dict[RowSpace, float] = dict.fromkeys(index.counts(), 1.0)
    try:
        header = read_header(folder)
    except CacheError:
        return missing  # none there, or one that precompute refuses or replaces
    if (header.spec.fingerprint(), header.index_sha256) != (
        spec.fingerprint(),
        index.content_sha256,
    ):
        return missing
    finished = dict.fromkeys(index.counts(), 0)
    for entry in load_ledger(folder, header).entries.values():
        finished[entry.space] += entry.stop - entry.start
    return {space: 1 - finished[space] / max(rows, 1) for space, rows in index.counts().items()}
