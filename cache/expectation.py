"""Telling a cache on an object store what training will read next, so that it is there in time."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cache.reader import CacheReader
from cache.shuffle import ShuffledRows

__all__ = ["expect_slices", "expect_tracks"]

_STEPS = 4


def expect_slices(
    reader: CacheReader, order: ShuffledRows, step: int, *, levels: Sequence[str]
) -> None:
    """Announce the slices of a step and of some that follow it; nothing for a local cache.

    Args:
        reader: the open cache.
        order: which rows make up the batch of a step.
        step: the step that is read now.
        levels: the feature levels that are read.
    """
    if reader.is_mirrored:
        arrays = ["image", "label", *(f"features_{level}" for level in levels)]
        reader.expect(_with_scales(reader, arrays), _rows(order, step))


def expect_tracks(
    reader: CacheReader, order: ShuffledRows, step: int, *, length: int, features: bool
) -> None:
    """Announce the tracks of a step and of some that follow it; nothing for a local cache.

    Args:
        reader: the open cache.
        order: which tracks make up the batch of a step.
        step: the step that is read now.
        length: steps of a track that are read.
        features: whether raw stride-16 features are read.
    """
    if not reader.is_mirrored:
        return
    table = reader.index.tracks
    rows = (table.first_rows[_rows(order, step)][:, None] + np.arange(length)).reshape(-1)
    arrays = [array.name for array in reader.spec.arrays_of("tracks")]
    reader.expect(arrays, rows)
    slices = ["image", "label", *(["features_s16"] if features else [])]
    reader.expect(_with_scales(reader, slices), table.slice_row[rows].astype(np.int64))


def _rows(order: ShuffledRows, step: int) -> npt.NDArray[np.int64]:
    # Not beyond the epoch, whose end is where another permutation begins.
    end = (step // order.steps_per_epoch + 1) * order.steps_per_epoch
    return np.concatenate([order.batch(s) for s in range(step, min(step + 1 + _STEPS, end))])


def _with_scales(reader: CacheReader, arrays: Iterable[str]) -> list[str]:
    names = []
    for name in arrays:
        scale = reader.spec.array(name).scale_name
        names += [name] if scale is None else [name, scale]
    return names
