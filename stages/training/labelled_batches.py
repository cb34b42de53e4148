"""Batches of the stages that learn from labels, and the parts that go through the student."""

from dataclasses import dataclass

from torch import Tensor

from stages.training.slice_batches import PromptedSlices
from stages.training.track_batches import TrackWindows

__all__ = ["LabelledBatch", "LabelledSlices", "LabelledWindows", "labelled_parts"]


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """Slices and, where the data have any, windows of tracks."""

    slices: PromptedSlices
    tracks: TrackWindows | None


@dataclass(frozen=True, kw_only=True)
class LabelledSlices:
    """Some slices of a batch.

    Attributes:
        slices: they.
        present: how many of the batch's prompts on objects that are there are on these.
    """

    slices: PromptedSlices
    present: float


@dataclass(frozen=True, kw_only=True)
class LabelledWindows:
    """Some windows of a batch.

    Attributes:
        windows: they.
        labelled_L: (L,) how much of the terms over all labels of a step these windows have; the
            steps that have any are weighted alike.
        present_L: (L,) the same of the terms over objects that are there.
    """

    windows: TrackWindows
    labelled_L: Tensor
    present_L: Tensor


def labelled_parts(batch: LabelledBatch, at_once: int) -> list[LabelledSlices | LabelledWindows]:
    """Some slices after the others, then some windows; what has no label is left out.

    Args:
        batch: slices and windows.
        at_once: of which at most so many slices, or one window, go through the student together.
    """
    parts: list[LabelledSlices | LabelledWindows] = []
    present = int(batch.slices.masks.flatten(1).any(1).sum())
    for some in batch.slices.split(at_once):
        if len(some.slice_of):
            own = int(some.masks.flatten(1).any(1).sum())
            parts.append(LabelledSlices(slices=some, present=own / max(present, 1)))
    if batch.tracks is not None:
        parts += _labelled_windows(batch.tracks, at_once)
    return parts


def _labelled_windows(windows: TrackWindows, at_once: int) -> list[LabelledWindows]:
    """Windows, as many at a time as there may be slices; those without a label are left out."""
    length = windows.labelled.shape[1]

    def counts(some: TrackWindows) -> tuple[Tensor, Tensor]:
        labelled = some.labelled.clone()
        labelled[:, 0] = False
        present = labelled & some.masks.flatten(2).any(2)
        return labelled.sum(0), present.sum(0)

    labelled, present = counts(windows)
    steps = int((labelled > 0).sum())
    parts = []
    for some in windows.split(max(1, at_once // length)):
        own, own_present = counts(some)
        if own.any():
            parts.append(
                LabelledWindows(
                    windows=some,
                    labelled_L=own / labelled.clamp(min=1) / steps,
                    present_L=own_present / present.clamp(min=1) / steps,
                )
            )
    return parts
