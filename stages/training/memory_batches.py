"""Batches of the memory stage, and the parts in which they go through the student."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cache import CacheReader
from efficient_medsam2.networks.student import ResizeMode
from stages.training.track_batches import TrackStream, TrackWindows

__all__ = ["AnswerStep", "ForcedWindows", "RememberStep", "forced_windows", "window_parts"]


@dataclass(frozen=True, kw_only=True)
class ForcedWindows:
    """Windows, and whether the teacher's memories are remembered in this batch."""

    windows: TrackWindows
    forced: bool


@dataclass(frozen=True, kw_only=True)
class AnswerStep:
    """One slice of some windows of a batch; the steps of a window follow one another.

    Attributes:
        windows: they.
        forced: whether the teacher's memories are remembered.
        step: of the window.
        remember: whether later steps remember the student's own memory of it, and no
            ``RememberStep`` makes it.
        shares: loss term → how much of the batch's term the windows have here.
    """

    windows: TrackWindows
    forced: bool
    step: int
    remember: bool
    shares: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RememberStep:
    """The memory of the slice that was answered just before, which the memory encoder learns from.

    Attributes:
        windows: those of that slice.
        step: of the window.
        remember: whether later steps remember it.
        share: how much of the batch's term the windows have.
    """

    windows: TrackWindows
    step: int
    remember: bool
    share: float


def forced_windows(
    reader: CacheReader,
    tracks: np.ndarray,
    *,
    batch_size: int,
    length: int,
    augment: float,
    seed: int,
    forced: Callable[[int], bool],
    features: bool = True,
    size: int | None = None,
    mode: ResizeMode | None = None,
) -> Callable[[int], ForcedWindows]:
    """Batch number → ``ForcedWindows``; a pure function of (seed, number).

    Args:
        reader: the cache.
        tracks: to draw from, as in ``TrackStream``.
        batch_size: tracks per batch.
        length: steps of a window.
        augment: strength of photometric augmentation.
        seed: of shuffling and augmentation.
        forced: whether the batch of a number remembers the teacher's memories. Nothing is asked of
            the image encoder then, and raw features are not read.
        features: read what the others need of them.
        size: S; the size of the cached images where None.
        mode: how maps come to the student's grids.
    """

    def stream(*, features: bool) -> TrackStream:
        return TrackStream(
            reader,
            tracks,
            batch_size=batch_size,
            length=length,
            augment=augment,
            labelled_rows=None,
            features=features,
            seed=seed,
            size=size,
            mode=mode,
        )

    own, taught = stream(features=features), stream(features=False)

    def make_batch(number: int) -> ForcedWindows:
        is_forced = forced(number)
        return ForcedWindows(windows=(taught if is_forced else own)(number), forced=is_forced)

    return make_batch


def window_parts(
    batch: ForcedWindows, at_once: int, *, teach_memory: float
) -> list[AnswerStep | RememberStep]:
    """Some windows after the others, each slice by slice; one slice of a window is learnt from.

    Args:
        batch: windows.
        at_once: of which at most so many are followed together.
        teach_memory: share of the batches in which the memory encoder learns; the fewer, the more
            each weighs.
    """
    whole = batch.windows
    tracks, length = whole.cached.slice_rows.shape
    # The step's own random stream draws, so that a resumed run draws the same.
    drawn = int(torch.randint(length, ()))
    teaches = float(torch.rand(())) < teach_memory
    # The prompted slice teaches nothing itself: it is looked at where its own memory is needed.
    steps = range(0 if not batch.forced or (teaches and drawn == 0) else 1, length)
    taught = length - 1
    seen = whole.cached.object_score[..., 0] > 0
    parts: list[AnswerStep | RememberStep] = []
    for some in whole.split(at_once):
        rows = len(some.image) / tracks
        own_seen = (some.cached.object_score[..., 0] > 0).sum(0) / seen.sum(0).clamp(min=1)
        for step in steps:
            shares = dict.fromkeys(("kl", "dice"), float(own_seen[step]) / taught)
            shares |= dict.fromkeys(("presence", "encoder", "feature"), rows / taught)
            remember = not batch.forced and step < length - 1
            parts.append(
                AnswerStep(
                    windows=some,
                    forced=batch.forced,
                    step=step,
                    remember=remember and not (teaches and step == drawn),
                    shares=shares,
                )
            )
            if teaches and step == drawn:
                parts.append(
                    RememberStep(
                        windows=some, step=step, remember=remember, share=rows / teach_memory
                    )
                )
    return parts
