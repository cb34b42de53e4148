"""From the cost of a row to the time of a run.

Reader, teacher and disk work at the same time, so a pass takes as long as the slowest of them
on the wall, but never less than their processor time spread over all cores.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cache import CacheIndex
from cache.schema import RowSpace
from stages.estimate_clock import Cost
from stages.estimate_records import TimeEstimate
from stages.estimate_sample import SampleTimes

__all__ = ["extrapolate"]

_PARTS = ("teacher", "reader", "disk")


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Seconds of one part of one pass."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def plus(self, cost: Cost, units: float) -> "_Work":
        return _Work(
            wall_s=self.wall_s + cost.wall_s * units, cpu_s=self.cpu_s + cost.cpu_s * units
        )


def extrapolate(
    sample: SampleTimes,
    index: CacheIndex,
    *,
    missing: Mapping[RowSpace, float],
    start_s: float,
    sample_s: float,
    cores: int | None = None,
) -> TimeEstimate:
    """Seconds of the whole run.

    Args:
        sample: cost of a row in each part.
        index: all rows.
        missing: share of each space's rows that is still to be written.
        start_s: loading the teacher and deciding the rows, as measured.
        sample_s: what the sample took.
        cores: processor cores; those of this machine where None.
    """
    counts = {space: rows * missing[space] for space, rows in index.counts().items()}
    voxels = _voxels(index) / sample.open_voxels * missing["slices"]
    work: dict[RowSpace, dict[str, _Work]] = {
        "slices": {
            "teacher": _Work().plus(sample.encode, counts["slices"]),
            "reader": _Work().plus(sample.open, voxels).plus(sample.read, counts["slices"]),
        },
        "prompts": {
            "teacher": _Work().plus(sample.answer, counts["prompts"]),
            "reader": _Work().plus(sample.fetch, counts["prompts"]),
        },
        "tracks": {
            "teacher": _tracks(sample, index, missing["tracks"]),
            "reader": _Work().plus(sample.fetch, counts["tracks"]),
        },
    }
    for space, parts in work.items():
        parts["disk"] = _Work().plus(sample.write[space], counts[space])
    cores = cores or os.cpu_count() or 1
    seconds = {space: _together(parts, cores) for space, parts in work.items()}
    busy = {name: sum(parts[name].wall_s for parts in work.values()) for name in _PARTS}
    all_busy = max(sum(busy.values()), 1e-9)
    return TimeEstimate(
        total_s=start_s + sum(seconds.values()),
        parts_s={"start": start_s, **{str(space): value for space, value in seconds.items()}},
        slices_per_second=counts["slices"] / max(seconds["slices"], 1e-9),
        shares={name: value / all_busy for name, value in busy.items()},
        sampled={**sample.counts, "seconds": sample_s},
    )


def _together(parts: Mapping[str, _Work], cores: int) -> float:
    slowest = max(part.wall_s for part in parts.values())
    return max(slowest, sum(part.cpu_s for part in parts.values()) / cores)


def _voxels(index: CacheIndex) -> float:
    """Of all cases together: opening one takes in proportion to its size."""
    table = index.cases.arrow
    sides = [table[name].to_numpy().astype(float) for name in ("depth", "height", "width")]
    return float(np.prod(sides, axis=0).sum())


def _tracks(sample: SampleTimes, index: CacheIndex, share: float) -> _Work:
    """The teacher's work on all track rows: later steps see more memories and cost more."""
    work = _Work()
    if not sample.steps:
        return work
    rows_by_step = np.bincount(index.tracks.step)
    for step, rows in enumerate(rows_by_step.tolist()):
        work = work.plus(sample.steps[min(step, len(sample.steps) - 1)], rows * share)
    return work
