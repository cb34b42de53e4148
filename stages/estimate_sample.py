"""A short measured sample of precompute: a few real slices, prompts and track steps.

Each part is timed on its own, wall clock and processor time: reading (open, squash, warp), the
teacher, and the disk (write, flush, reread, digest) in a temporary cache beside the real one,
which is removed again.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache import CacheSpec
from cache.schema import RowSpace
from efficient_medsam2.images import squash_labels, squash_slices
from efficient_medsam2.images.views import warp_image, warp_label
from efficient_medsam2.teachers.protocol import SliceTeacher
from stages.cache_rows import CacheRows
from stages.cases import DataConfig, Dataset
from stages.estimate_clock import Clock, Cost
from stages.estimate_disk import SampleDisk
from stages.estimate_teacher import SampleTeacher

__all__ = ["SampleTimes", "take_sample"]

_SLICES = 16
_CASES = 3
_READ_S = 4.0


@dataclass(frozen=True, kw_only=True)
class SampleTimes:
    """What one row costs in each part.

    Attributes:
        open: reader: a case of ``open_voxels`` voxels, opened until its first slice is there.
        open_voxels: mean voxels of the sampled cases.
        read: reader: a further slice.
        encode: teacher: a slice.
        write: disk: a row of each space.
        fetch: reader: the cached features of one slice.
        answer: teacher: a prompt.
        steps: teacher: a row of a track by its step; the last one stands for all later.
        counts: slices, prompts and track steps that were measured.
    """

    open: Cost
    open_voxels: float
    read: Cost
    encode: Cost
    write: Mapping[RowSpace, Cost]
    fetch: Cost
    answer: Cost
    steps: tuple[Cost, ...]
    counts: Mapping[str, int]


def take_sample(
    teacher: SliceTeacher,
    dataset: Dataset,
    rows: CacheRows,
    spec: CacheSpec,
    *,
    data: DataConfig,
    batch_size: int,
    autocast: Callable[[], Any],
    folder: Path,
) -> SampleTimes:
    """Measure a few rows of a cache to be.

    Args:
        teacher: on its device, in ``eval`` mode.
        dataset: the cases.
        rows: rows of the cache.
        spec: its arrays.
        data: how images are read.
        batch_size: rows that the teacher gets at a time.
        autocast: opens the precision of the teacher as a context manager.
        folder: the cache to be; the sample is written beside it.

    Raises:
        DataError: a sampled case cannot be read.
        OSError: the folder cannot be written.
    """
    reading = _read(dataset, rows, data, teacher.image_size)
    run = SampleTeacher(teacher, batch_size, autocast)
    encode, features = run.encode(reading.images)
    count = len(features["s16"])
    place = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    temporary = Path(tempfile.mkdtemp(prefix=".estimate-", dir=place))
    try:
        disk = SampleDisk(temporary / "cache", spec, rows.index.counts())
        made = {f"features_{level}": values for level, values in features.items()}
        images = {"image": reading.images[:count], "label": reading.labels[:count]}
        disk.write("slices", {**made, **images})
        fetch, answer, prompts = run.answer(disk.reader())
        steps, followed = run.follow(disk.reader())
        disk.write("prompts", {})
        disk.write("tracks", {})
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return SampleTimes(
        open=reading.open,
        open_voxels=reading.open_voxels,
        read=reading.read,
        encode=encode,
        write=disk.costs,
        fetch=fetch,
        answer=answer,
        steps=steps,
        counts={"slices": count, "prompts": prompts, "track_steps": followed},
    )


@dataclass(frozen=True, kw_only=True)
class _Reading:
    images: np.ndarray
    labels: np.ndarray
    open: Cost
    open_voxels: float
    read: Cost


def _read(dataset: Dataset, rows: CacheRows, data: DataConfig, size: int) -> _Reading:
    """Slices from a few cases spread over the data, as the reader of precompute gets them."""
    table = rows.index.slices
    codes, starts = np.unique(table.case_code, return_index=True)
    chosen = np.unique(np.linspace(0, len(codes) - 1, min(_CASES, len(codes))).round().astype(int))
    handles = {handle.case_id: handle for handle in dataset.handles}
    opening, reading = Clock(), Clock()
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    voxels: list[int] = []
    begun = time.perf_counter()
    for code, first in zip(codes[chosen], starts[chosen], strict=True):
        case = rows.index.cases.row(int(code))
        of_case = first + np.flatnonzero(table.case_code[first:] == code)
        opened = None
        for number, row in enumerate(of_case[: -(-_SLICES // len(chosen))].tolist()):
            with (opening if number == 0 else reading).over(1):
                opened = opened or handles[case.case_id].open()
                index, affine = int(table.slice_index[row]), table.affine(row)
                picture = squash_slices(opened.pictures(index, index + 1, data.intensity), size)[0]
                if picture.shape[0] < rows.channels:
                    picture = np.repeat(picture, rows.channels, axis=0)
                label = squash_labels(opened.labels(index, index + 1), size)[0]
                images.append(warp_image(picture, affine))
                labels.append(warp_label(label, affine))
        assert opened is not None
        opened.close()
        voxels.append(case.depth * case.height * case.width)
        if time.perf_counter() - begun > _READ_S:
            break
    read = reading.cost() if reading.units else opening.cost()
    return _Reading(
        images=np.stack(images),
        labels=np.stack(labels),
        open=_less(opening.cost(), read),
        open_voxels=float(np.mean(voxels)),
        read=read,
    )


def _less(whole: Cost, part: Cost) -> Cost:
    return Cost(
        wall_s=max(whole.wall_s - part.wall_s, 0.0), cpu_s=max(whole.cpu_s - part.cpu_s, 0.0)
    )
