"""The teacher's share of a time sample: slices encoded, prompts answered, tracks followed.

Its work does not depend on what a picture shows, so every sampled prompt is a box in the middle.

Shape letters: S network input in pixels.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache import CacheReader
from cache.stored import read_stored, to_stored
from efficient_medsam2.networks.records import Prompts, SliceFeatures, boxes_to_prompts
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.teachers.protocol import SliceTeacher
from stages.estimate_clock import Clock, Cost

__all__ = ["SampleTeacher"]

_ENCODE_S, _ANSWER_S, _FOLLOW_S = 6.0, 3.0, 8.0
"""Bounds of each part; what is begun is finished."""

_ENOUGH_S = 0.5
"""A part of a small network is repeated until it took so long."""

_PROMPTS = 64
_STEPS = 8
_WIDTH = 16


class SampleTeacher:
    """The teacher's share of the sample; answers come back to the CPU as they would be stored."""

    def __init__(self, teacher: SliceTeacher, batch_size: int, autocast: Callable[[], Any]) -> None:
        self._teacher = teacher
        self._batch = batch_size
        self._autocast = autocast
        self._device = next(teacher.module.parameters()).device

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> tuple[Cost, dict[str, np.ndarray]]:
        """Cost of a slice, and the features of as many as were in time."""
        warm_up = Clock()
        with warm_up.over(1):
            first = self._encoded(images[:1])
        one = warm_up.cost().wall_s
        batch = max(1, min(self._batch, len(images), int(_ENCODE_S / 2 / max(one, 1e-9))))
        clock, parts, start = Clock(), [], 0
        while start < len(images) and clock.wall_s < _ENCODE_S:
            chosen = images[start : start + batch]
            if start and len(chosen) < batch:
                break  # a shorter batch than most would not be typical
            with clock.over(len(chosen)):
                parts.append(self._encoded(chosen))
            start += batch
        while clock.wall_s < _ENOUGH_S:
            with clock.over(batch):
                self._encoded(images[:batch])
        return clock.cost(), {
            name: np.concatenate([part[name] for part in parts]) for name in first
        }

    def _encoded(self, images: np.ndarray) -> dict[str, np.ndarray]:
        with self._autocast():
            pixels = self._teacher.network_input(torch.from_numpy(images).to(self._device))
            features = self._teacher.encode(pixels)
        return {name: value.float().cpu().numpy() for name, value in features.items()}

    @torch.no_grad()
    def answer(self, reader: CacheReader) -> tuple[Cost, Cost, int]:
        """Cost of fetching a slice's features and of answering a prompt; how many answers."""
        fetch, clock = Clock(), Clock()
        batch = 1
        for _ in range(2):  # the first one warms up
            clock = Clock()
            self._answered(reader, 1, fetch, clock)
        batch = max(1, min(self._batch, int(_ANSWER_S / 2 / max(clock.wall_s, 1e-9))))
        batch = min(batch, _PROMPTS)
        fetch, clock = Clock(), Clock()
        while clock.wall_s < _ENOUGH_S or clock.units < batch:
            self._answered(reader, batch, fetch, clock)
        return fetch.cost(), clock.cost(), clock.units

    def _answered(self, reader: CacheReader, batch: int, fetch: Clock, clock: Clock) -> None:
        features = self._features(reader, np.arange(batch) % reader.counts["slices"], fetch)
        with clock.over(batch), self._autocast():
            record = self._teacher.answer(features, self._boxes(batch))
            record.mask_logits.float().cpu()

    @torch.no_grad()
    def follow(self, reader: CacheReader) -> tuple[tuple[Cost, ...], int]:
        """Cost of a track's row by its step; how many rows were followed."""
        tracker = self._teacher.tracker
        if tracker is None:
            return (), 0
        slices, width = reader.counts["slices"], 1
        begun = time.perf_counter()
        self._followed(tracker, reader, 1, 2)
        one = (time.perf_counter() - begun) / 2
        width = max(1, min(self._batch, _WIDTH, int(_FOLLOW_S / (2 * _STEPS * one))))
        clocks = [Clock() for _ in range(_STEPS)]
        total = 0.0
        while total < _ENOUGH_S:
            total += self._followed(tracker, reader, width, _STEPS, clocks)
            if not slices:
                break
        done = [clock.cost() for clock in clocks if clock.units]
        return tuple(done), sum(clock.units for clock in clocks)

    def _followed(
        self,
        tracker: SliceRunner,
        reader: CacheReader,
        width: int,
        steps: int,
        clocks: list[Clock] | None = None,
    ) -> float:
        """Run ``width`` tracks of up to ``steps`` steps; the seconds that they took."""
        begun = time.perf_counter()
        bank: list[Any] = []
        for step in range(steps):
            rows = np.full(width, step) % reader.counts["slices"]
            levels = self._features(reader, rows, Clock())
            features = SliceFeatures(s4=levels["s4"], s8=levels["s8"], s16=levels["s16"])
            clock = Clock() if clocks is None else clocks[step]
            with clock.over(width), self._autocast():
                record = (
                    tracker.prompted(features, self._boxes(width))
                    if step == 0
                    else tracker.tracked(
                        features, bank, position=step, reverse=False, num_frames=_STEPS
                    )
                )
                entry = tracker.remember(features, record, position=step, prompted=step == 0)
                for value in (record.conditioned_s16, entry.memory, record.mask_logits):
                    value.float().cpu()
            bank.append(entry)
            if time.perf_counter() - begun > _FOLLOW_S:
                break
        return time.perf_counter() - begun

    def _features(self, reader: CacheReader, rows: np.ndarray, clock: Clock) -> dict[str, Tensor]:
        with clock.over(len(rows)):
            arrays = {
                level: read_stored(reader, f"features_{level}", rows)
                for level in self._teacher.level_shapes
            }
        return {
            level: to_stored(values, self._device, torch.float32)
            for level, values in arrays.items()
        }

    def _boxes(self, count: int) -> Prompts:
        side = float(self._teacher.image_size)
        box = torch.tensor([[0.3, 0.3, 0.7, 0.7]]) * side
        return boxes_to_prompts(box.repeat(count, 1)).to(self._device)
