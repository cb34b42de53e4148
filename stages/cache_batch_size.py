"""How many rows the teacher gets at a time.

The size is found from memory alone and never from a stopwatch: two runs on one machine choose the
same, so they write the same bytes (a matrix product may differ in its last bits with the number of
rows). It is kept in the cache's folder, so that a cache is finished as it was begun.
"""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cache.durable import write_durably
from stages.cache_calls import TeacherCalls
from stages.gpu_share import gpu_sharers
from stages.side_files import PROGRESS_NAME

__all__ = [
    "batch_size_for",
    "fitting_batch_size",
    "kept_batch_size",
]

_GPU_SHARE = 0.6
"""Of a GPU's memory for a batch through the encoder; tracks need the rest."""

_LARGEST_ON_GPU = 32
"""64 images of 1024 pixels would make 65 536 attention windows, one more than CUDA's grid takes."""

_CPU_SHARE = 0.25
"""Of the machine's memory: reading, writing and other programs need the rest."""

_CPU_PIXELS = 4 * 512 * 512
"""Pixels of a batch beyond which a CPU gains nothing: its cores are busy with fewer."""

_CPU_BYTES_PER_PIXEL = 1000
"""Of an encoder's activations, a generous bound for SAM 2's and SAM's."""


class _Begun(BaseModel):
    """Content of ``PROGRESS_NAME``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    batch_size: int = Field(ge=1)


def batch_size_for(
    wanted: int | str,
    calls: TeacherCalls,
    *,
    channels: int,
    rows_per_shard: int,
    folder: Path,
    resume: bool,
) -> int:
    """The batch size of a run, written down in the cache's folder.

    Args:
        wanted: a number, or ``auto``.
        calls: the teacher on its device.
        channels: of the images.
        rows_per_shard: no batch is larger.
        folder: of the cache.
        resume: whether what is there is being finished; its size is then kept.
    """
    return kept_batch_size(
        wanted,
        lambda: fitting_batch_size(calls, channels=channels, rows_per_shard=rows_per_shard),
        folder=folder,
        resume=resume,
    )


def kept_batch_size(
    wanted: int | str, fitting: Callable[[], int], *, folder: Path, resume: bool
) -> int:
    """The batch size of a run, written down in the cache's folder.

    Args:
        wanted: a number, or ``auto``.
        fitting: finds a size; asked for ``auto`` where none was written down.
        folder: of the cache.
        resume: whether what is there is being finished; its size is then kept.
    """
    file = folder / PROGRESS_NAME
    begun = _read(file) if resume else None
    kept = begun if wanted == "auto" else int(wanted)
    size = fitting() if kept is None else kept
    if size != begun:
        write_durably(file, _Begun(batch_size=size).model_dump_json().encode() + b"\n")
    return size


def fitting_batch_size(calls: TeacherCalls, *, channels: int, rows_per_shard: int) -> int:
    """The batch size that is useful and fits into the memory of the teacher's device.

    Args:
        calls: the teacher on its device.
        channels: of the images.
        rows_per_shard: no batch is larger.
    """
    if calls.device.type == "cuda":
        return _largest_on_gpu(calls, channels, min(rows_per_shard, _LARGEST_ON_GPU))
    memory = psutil.virtual_memory().total
    return cpu_batch_size(calls.teacher.image_size, rows_per_shard, memory)


def _read(file: Path) -> int | None:
    try:
        return _Begun.model_validate_json(file.read_bytes()).batch_size
    except (FileNotFoundError, ValidationError):
        return None


def cpu_batch_size(image_size: int, rows_per_shard: int, memory_bytes: int) -> int:
    """A power of two that fills the cores and fits into a share of the memory."""
    pixels = image_size * image_size
    fits = _CPU_SHARE * memory_bytes / (_CPU_BYTES_PER_PIXEL * pixels)
    most = min(_CPU_PIXELS / pixels, fits, rows_per_shard)
    size = 1
    while size * 2 <= most:
        size *= 2
    return size


def _largest_on_gpu(calls: TeacherCalls, channels: int, most: int) -> int:
    """Doubled until a batch needs more than this process's share of the memory."""
    total = torch.cuda.get_device_properties(calls.device).total_memory
    room = _GPU_SHARE * total / gpu_sharers()
    size, side = 1, calls.teacher.image_size
    while size * 2 <= most and _peak_bytes(calls, size * 2, channels, side) <= room:
        size *= 2
    return size


def _peak_bytes(calls: TeacherCalls, size: int, channels: int, side: int) -> float:
    """Memory that a batch needs at most; infinite where it does not fit."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(calls.device)
    try:
        image = torch.zeros(size, channels, side, side, dtype=torch.uint8)
        calls.encode(image).arrays()
    except torch.cuda.OutOfMemoryError:
        peak = float("inf")
    else:
        peak = float(torch.cuda.max_memory_allocated(calls.device))
    torch.cuda.empty_cache()
    return peak
