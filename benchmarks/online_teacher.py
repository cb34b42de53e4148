"""What a cache would hold, computed by the whole teacher where a batch is made or used."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from efficient_medsam2.networks.runner import SliceRunner
from stages.distill_memory import ForcedWindows
from stages.training.batches import PromptedSlices
from stages.training.tracking import follow_windows, prompted_by_mask, steps_of

__all__ = ["TaughtInStep", "encoded", "followed"]


@torch.no_grad()
def encoded(batch: PromptedSlices, teacher: SliceRunner) -> PromptedSlices:
    """The batch with the teacher's features of its images."""
    device = next(teacher.model.parameters()).device
    return replace(batch, features=teacher.encode(batch.pixels.to(device)))


@torch.no_grad()
def followed(batch: ForcedWindows, teacher: SliceRunner) -> ForcedWindows:
    """The batch with what the teacher gives along its windows."""
    windows = batch.windows
    device = next(teacher.model.parameters()).device
    tracks, length = windows.cached.slice_rows.shape
    features = teacher.encode(windows.pixels.to(device))
    records, entries = follow_windows(
        teacher,
        steps_of(features, tracks, length),
        windows.prompts.to(device),
        num_frames=windows.cached.num_frames,
        masks_T1SS=windows.masks[:, :1],
        by_mask=prompted_by_mask(windows.cached),
        also_remember=range(length),
    )
    cached = replace(
        windows.cached,
        features_s16=features.s16.reshape(tracks, length, *features.s16.shape[1:]),
        conditioned_s16=torch.stack([each.conditioned_s16 for each in records], 1),
        memory_s16=torch.stack([entries[step].memory for step in range(length)], 1),
        object_pointer=torch.stack([entries[step].object_pointer for step in range(length)], 1),
        object_score=torch.stack([each.object_score for each in records], 1),
        mask_logits=torch.stack([each.mask_logits[:, 0] for each in records], 1),
    )
    return replace(batch, windows=replace(windows, cached=cached))


class TaughtInStep(nn.Module):
    """A stage's module behind a teacher that completes each batch."""

    def __init__(self, inner: nn.Module, complete: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner = inner
        self._complete = complete

    def forward(self, batch: Any) -> dict[str, Tensor]:  # noqa: ANN401 - whatever the stage takes
        """Loss terms by name."""
        terms: dict[str, Tensor] = self.inner(self._complete(batch))
        return terms
