"""What a cache would hold, computed by the whole teacher where a batch is made or used."""

from dataclasses import replace

import torch

from cache.dataset import TrackBatch
from efficient_medsam2.networks.records import SliceFeatures
from efficient_medsam2.networks.runner import SliceRunner
from stages.training.memory_batches import ForcedWindows
from stages.training.slice_batches import PromptedSlices
from stages.training.track_batches import TrackWindows
from stages.training.tracking import Start, follow_windows, steps_of

__all__ = ["encoded", "followed"]

_TAUGHT = (
    "features_s16",
    "conditioned_s16",
    "memory_s16",
    "object_pointer",
    "object_score",
    "mask_logits",
)


@torch.no_grad()
def encoded(
    batch: PromptedSlices, teacher: SliceRunner, *, at_once: int | None = None
) -> PromptedSlices:
    """The batch with the teacher's features of its images.

    Args:
        batch: slices without features.
        teacher: the whole teacher.
        at_once: slices that go through it together; all where None.
    """
    device = next(teacher.model.parameters()).device
    parts = batch.split(at_once or len(batch.image))
    features = SliceFeatures.joined([teacher.encode(part.pixels.to(device)) for part in parts])
    return replace(batch, features=features)


@torch.no_grad()
def followed(
    batch: ForcedWindows, teacher: SliceRunner, *, at_once: int | None = None
) -> ForcedWindows:
    """The batch with what the teacher gives along its windows.

    Args:
        batch: windows without what the teacher gave.
        teacher: the whole teacher.
        at_once: slices that go through its encoder together, never less than one window's; all
            of the batch where None.
    """
    windows = batch.windows
    tracks, length = windows.cached.slice_rows.shape
    together = tracks if at_once is None else max(1, at_once // length)
    answers = [_answers(some, teacher) for some in windows.split(together)]
    taught = {name: torch.cat([getattr(answer, name) for answer in answers]) for name in _TAUGHT}
    return replace(batch, windows=replace(windows, cached=replace(windows.cached, **taught)))


def _answers(windows: TrackWindows, teacher: SliceRunner) -> TrackBatch:
    device = next(teacher.model.parameters()).device
    tracks, length = windows.cached.slice_rows.shape
    features = teacher.encode(windows.pixels.to(device))
    records, entries = follow_windows(
        teacher,
        steps_of(features, tracks, length),
        Start.of(windows, device),
        num_frames=windows.cached.num_frames,
        also_remember=range(length),
    )
    return replace(
        windows.cached,
        features_s16=features.s16.reshape(tracks, length, *features.s16.shape[1:]),
        conditioned_s16=torch.stack([each.conditioned_s16 for each in records], 1),
        memory_s16=torch.stack([entries[step].memory for step in range(length)], 1),
        object_pointer=torch.stack([entries[step].object_pointer for step in range(length)], 1),
        object_score=torch.stack([each.object_score for each in records], 1),
        mask_logits=torch.stack([each.mask_logits[:, 0] for each in records], 1),
    )
