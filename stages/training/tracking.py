"""The student's own propagation through windows, slice by slice, with gradients.

Shape letters: T tracks, L steps, S network input in pixels.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cache.dataset import TrackBatch
from cache.tables import PROMPT_KINDS
from efficient_medsam2.networks.records import MemoryEntry, Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from stages.training.recompute import Recompute, recomputed

__all__ = ["follow_windows", "prompted_by_mask", "steps_of"]


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


def follow_windows(
    runner: SliceRunner,
    steps: Sequence[SliceFeatures],
    prompts: Prompts,
    *,
    num_frames: int | Tensor,
    forced: Sequence[MemoryEntry] | None = None,
    masks_T1SS: Tensor | None = None,
    by_mask: Tensor | None = None,
    also_remember: Collection[int] = (),
    recompute: Recompute = "no",
) -> tuple[list[SliceRecord], dict[int, MemoryEntry]]:
    """Prompt the first step and follow.

    The student's own memories are made where a later step remembers them: of all steps but the
    last, and of none where the teacher's are remembered.

    Args:
        runner: the student.
        steps: features of each step, T rows.
        prompts: T prompts on the first step; those of rows in ``by_mask`` are not looked at.
        num_frames: length that the pointers' time code is given, of all tracks or (T,) of each.
        forced: the teacher's memories, remembered in place of the student's own.
        masks_T1SS: 0/1 masks of the first step; needed where ``by_mask`` is given.
        by_mask: (T,) bool: tracks whose prompt is their mask.
        also_remember: steps of the window whose own memory is wanted though nothing remembers it.
        recompute: what is made again for the gradient, to save memory.

    Returns:
        What each step gave, and the memories that the student itself made, by step.
    """
    wanted = {*also_remember, *(range(len(steps) - 1) if forced is None else ())}
    remember = recomputed(runner.remember, recompute=recompute != "no")
    tracked = recomputed(runner.tracked, recompute=recompute == "all")
    first = recomputed(_first_step, recompute=recompute == "all")
    inside = runner.remember if recompute == "all" else remember
    record, entry = first(
        runner, steps[0], prompts, masks_T1SS, by_mask, inside if 0 in wanted else None
    )
    records, own = [record], {} if entry is None else {0: entry}
    for position, features in enumerate(steps[1:], start=1):
        bank = list(own.values()) if forced is None else forced[:position]
        record = tracked(features, bank, position=position, reverse=False, num_frames=num_frames)
        if position in wanted:
            own[position] = remember(features, record, position=position, prompted=False)
        records.append(record)
    return records, own


def _first_step(
    runner: SliceRunner,
    features: SliceFeatures,
    prompts: Prompts,
    masks_T1SS: Tensor | None,
    by_mask: Tensor | None,
    remember: Callable[..., MemoryEntry] | None,
) -> tuple[SliceRecord, MemoryEntry | None]:
    """The prompted step: rows with a mask and rows with points apart, then together again."""
    if by_mask is None or not by_mask.any():
        record = runner.prompted(features, prompts)
        if remember is None:
            return record, None
        return record, remember(features, record, position=0, prompted=True)
    assert masks_T1SS is not None
    device = features.s16.device
    with_points = (~by_mask).nonzero()[:, 0].to(device)
    with_mask = by_mask.nonzero()[:, 0].to(device)
    mask = masks_T1SS.to(device)[with_mask]
    parts: list[tuple[Tensor, SliceFeatures, SliceRecord, Tensor | None]] = []
    if len(with_points):
        here = features.take(with_points)
        record = runner.prompted(here, prompts.take(with_points))
        parts.append((with_points, here, record, None))
    here = features.take(with_mask)
    parts.append((with_mask, here, runner.mask_prompted(here, mask), mask))
    order = torch.cat([chosen for chosen, *_ in parts]).argsort()
    record = _together([record for *_, record, _ in parts]).take(order)
    if remember is None:
        return record, None
    entries = [
        remember(here, answer, position=0, prompted=True, full_mask_B1SS=given)
        for _, here, answer, given in parts
    ]
    entry = replace(
        entries[0],
        memory=torch.cat([entry.memory for entry in entries])[order],
        object_pointer=torch.cat([entry.object_pointer for entry in entries])[order],
    )
    return record, entry


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
