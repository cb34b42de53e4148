"""The student's own propagation through windows, slice by slice, with gradients.

Shape letters: T tracks, L steps.
"""

from collections.abc import Sequence

import torch

from efficient_medsam2.networks.records import MemoryEntry, Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner

__all__ = ["follow_windows", "steps_of"]


def steps_of(features: SliceFeatures, tracks: int, length: int) -> list[SliceFeatures]:
    """Features of T*L slices, track by track → one record per step."""
    index = torch.arange(tracks * length, device=features.s16.device).reshape(tracks, length)
    return [features.take(index[:, step]) for step in range(length)]


def follow_windows(
    runner: SliceRunner,
    steps: Sequence[SliceFeatures],
    prompts: Prompts,
    *,
    num_frames: int,
    forced: Sequence[MemoryEntry] | None = None,
) -> tuple[list[SliceRecord], list[MemoryEntry]]:
    """Prompt the first step and follow.

    Args:
        runner: the student.
        steps: features of each step, T rows.
        prompts: T prompts on the first step.
        num_frames: length that the pointers' time code is given.
        forced: the teacher's memories, remembered in place of the student's own.

    Returns:
        What each step gave, and the memories that the student itself made.
    """
    records: list[SliceRecord] = []
    own: list[MemoryEntry] = []
    for position, features in enumerate(steps):
        if position == 0:
            record = runner.prompted(features, prompts)
        else:
            bank = (own if forced is None else forced)[:position]
            record = runner.tracked(
                features, bank, position=position, reverse=False, num_frames=num_frames
            )
        own.append(runner.remember(features, record, position=position, prompted=position == 0))
        records.append(record)
    return records, own
