"""The student's own propagation through windows, slice by slice, with gradients.

Shape letters: T tracks, L steps, S network input in pixels.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cache.dataset import TrackBatch
from cache.tables import PROMPT_KINDS
from efficient_medsam2.networks.records import MemoryEntry, Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from stages.training.track_batches import TrackWindows

__all__ = [
    "Start",
    "answer_step",
    "follow_windows",
    "prompted_by_mask",
    "remember_step",
    "steps_of",
]


def steps_of(features: SliceFeatures, tracks: int, length: int) -> list[SliceFeatures]:
    """Features of T*L slices, track by track → one record per step."""
    levels = [
        level.view(tracks, length, *level.shape[1:]).unbind(1)
        for level in (features.s4, features.s8, features.s16)
    ]
    # Unbound, their gradients are put together once; taken by index, once for each step.
    return [SliceFeatures(s4=s4, s8=s8, s16=s16) for s4, s8, s16 in zip(*levels, strict=True)]


def prompted_by_mask(cached: TrackBatch) -> Tensor:
    """(T,) bool: tracks that start from their object's mask on the first slice."""
    return cached.kind == PROMPT_KINDS.index("mask")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What tracks start from: T prompts, or the masks of their objects.

    Attributes:
        prompts: on the first slice; those of rows in ``by_mask`` are not looked at.
        masks_T1SS: 0/1 masks of the first slice; needed where ``by_mask`` has any.
        by_mask: (T,) bool: tracks whose prompt is their mask; none where not given.
    """

    prompts: Prompts
    masks_T1SS: Tensor | None = None
    by_mask: Tensor | None = None

    @classmethod
    def of(cls, windows: TrackWindows, device: torch.device) -> "Start":
        """The start of windows."""
        return cls(
            prompts=windows.prompts.to(device),
            masks_T1SS=windows.masks[:, :1],
            by_mask=prompted_by_mask(windows.cached),
        )


def answer_step(
    runner: SliceRunner,
    features: SliceFeatures,
    start: Start,
    bank: Sequence[MemoryEntry],
    *,
    position: int,
    num_frames: int | Tensor,
) -> SliceRecord:
    """Prompt the first slice, or follow to one of the next.

    Args:
        runner: the student.
        features: of the slice, T rows.
        start: what the tracks start from.
        bank: memories of the slices before.
        position: of the slice in the window.
        num_frames: length that the pointers' time code is given, of all tracks or (T,) of each.
    """
    if position > 0:
        return runner.tracked(
            features, bank, position=position, reverse=False, num_frames=num_frames
        )
    points, masked, order = _rows_by_start(start, features)
    records = []
    if len(points):
        records.append(runner.prompted(features.take(points), start.prompts.take(points)))
    if len(masked):
        assert start.masks_T1SS is not None
        given = start.masks_T1SS.to(masked.device)[masked]
        records.append(runner.mask_prompted(features.take(masked), given))
    return _together(records).take(order)


def remember_step(
    runner: SliceRunner,
    features: SliceFeatures,
    record: SliceRecord,
    start: Start,
    *,
    position: int,
) -> MemoryEntry:
    """The student's memory of a slice that it answered."""
    if position > 0:
        return runner.remember(features, record, position=position, prompted=False)
    points, masked, order = _rows_by_start(start, features)
    entries = []
    for rows in (points, masked):
        if len(rows):
            given = None
            if rows is masked:
                assert start.masks_T1SS is not None
                given = start.masks_T1SS.to(rows.device)[rows]
            entries.append(
                runner.remember(
                    features.take(rows),
                    record.take(rows),
                    position=0,
                    prompted=True,
                    full_mask_B1SS=given,
                )
            )
    return replace(
        entries[0],
        memory=torch.cat([entry.memory for entry in entries])[order],
        object_pointer=torch.cat([entry.object_pointer for entry in entries])[order],
    )


def follow_windows(
    runner: SliceRunner,
    steps: Sequence[SliceFeatures],
    start: Start,
    *,
    num_frames: int | Tensor,
    also_remember: Collection[int] = (),
) -> tuple[list[SliceRecord], dict[int, MemoryEntry]]:
    """Prompt the first step and follow, each remembering the ones before.

    Args:
        runner: the student.
        steps: features of each step, T rows.
        start: what the tracks start from.
        num_frames: length that the pointers' time code is given, of all tracks or (T,) of each.
        also_remember: steps of the window whose memory is wanted though no later one needs it.

    Returns:
        What each step gave, and the memories, by step.
    """
    records: list[SliceRecord] = []
    own: dict[int, MemoryEntry] = {}
    for position, features in enumerate(steps):
        bank = list(own.values())
        record = answer_step(
            runner, features, start, bank, position=position, num_frames=num_frames
        )
        records.append(record)
        if position < len(steps) - 1 or position in also_remember:
            own[position] = remember_step(runner, features, record, start, position=position)
    return records, own


def _rows_by_start(start: Start, features: SliceFeatures) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with points, rows with a mask, and the order that both together have to be put in."""
    device = features.s16.device
    by_mask = start.by_mask
    if by_mask is None:
        by_mask = torch.zeros(len(start.prompts.labels_BN), dtype=torch.bool)
    points, masked = (chosen.nonzero()[:, 0].to(device) for chosen in (~by_mask, by_mask))
    return points, masked, torch.cat([points, masked]).argsort()


def _together(records: Sequence[SliceRecord]) -> SliceRecord:
    """Records one after the other; one candidate stands for as many as another record has."""
    most = max(record.iou.shape[1] for record in records)
    return SliceRecord.joined(
        [
            record
            if record.iou.shape[1] == most
            else replace(
                record,
                candidate_logits=record.candidate_logits.expand(-1, most, -1, -1),
                iou=record.iou.expand(-1, most),
            )
            for record in records
        ]
    )
