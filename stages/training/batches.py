"""Batches of the student stages: cached rows with prompts drawn afresh.

Shape letters: B slices, R prompt rows, T tracks, L steps, S network input in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache import CacheReader
from cache.dataset import ShuffledRows, TrackBatch, read_slices, read_tracks
from efficient_medsam2.images import to_network_input
from efficient_medsam2.networks.records import Prompts, SliceFeatures
from efficient_medsam2.prompts import SampledPrompt, sample_prompt, stack_prompts

__all__ = ["PromptedSlices", "SliceStream", "TrackStream", "TrackWindows"]


@dataclass(frozen=True, kw_only=True)
class PromptedSlices:
    """Slices and fresh prompts on them.

    Attributes:
        pixels: (B, 3, S, S) what the student sees.
        features: the teacher's features of the same slices, where asked for.
        prompts: R prompts.
        slice_of: (R,) which slice each is on.
        masks: (R, S, S) float 0/1 labels of the prompted objects.
    """

    pixels: Tensor
    features: SliceFeatures | None
    prompts: Prompts
    slice_of: Tensor
    masks: Tensor

    def to(self, device: torch.device) -> "PromptedSlices":
        """Copy to a device."""
        return PromptedSlices(
            pixels=self.pixels.to(device),
            features=None if self.features is None else self.features.to(device, torch.float32),
            prompts=self.prompts.to(device),
            slice_of=self.slice_of.to(device),
            masks=self.masks.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class TrackWindows:
    """Windows of tracks.

    Attributes:
        cached: what the cache holds of them.
        pixels: (T*L, 3, S, S) what the student sees, track by track.
        masks: (T, L, S, S) float 0/1 labels of the followed objects.
        labelled: (T, L) whether the slice's label may be used.
        prompts: T prompts on the first step.
    """

    cached: TrackBatch
    pixels: Tensor
    masks: Tensor
    labelled: Tensor
    prompts: Prompts


def photometric(image: Tensor, generator: np.random.Generator, *, strength: float) -> Tensor:
    """Random gamma, contrast, brightness and noise per image; geometry stays. uint8 in and out.

    Only such changes may be made to a student's input: the cached features belong to this
    geometry.
    """
    if strength == 0:
        return image
    count = image.shape[0]
    draw = torch.from_numpy(generator.uniform(-1, 1, (3, count, 1, 1, 1)).astype(np.float32))
    unit = (image.float() / 255).clamp(min=1e-6) ** torch.exp(0.4 * strength * draw[0])
    unit = (unit - 0.5) * (1 + 0.3 * strength * draw[1]) + 0.5 + 0.1 * strength * draw[2]
    noise = generator.standard_normal(tuple(unit.shape), dtype=np.float32)
    sigma = generator.uniform(0, 0.04 * strength)
    return ((unit + float(sigma) * torch.from_numpy(noise)) * 255).round().clamp(0, 255).byte()


class SliceStream:
    """Batch number → ``PromptedSlices``; a pure function of (seed, number).

    Args:
        reader: the cache.
        rows: slice rows to draw from.
        batch_size: slices per batch.
        prompts_per_slice: at most so many objects are prompted on a slice.
        smallest: objects below so many pixels are not prompted.
        box_share: probability of a box prompt.
        augment: strength of photometric augmentation.
        features: read the teacher's features too.
        seed: of shuffling and prompts.
    """

    def __init__(
        self,
        reader: CacheReader,
        rows: np.ndarray,
        *,
        batch_size: int,
        prompts_per_slice: int,
        smallest: int,
        box_share: float,
        augment: float,
        features: bool,
        seed: int,
    ) -> None:
        self._reader = reader
        self._order = ShuffledRows(rows, batch_size, seed=seed)
        self._prompts_per_slice = prompts_per_slice
        self._smallest = smallest
        self._box_share = box_share
        self._augment = augment
        self._levels: Sequence[str] = ("s4", "s8", "s16") if features else ()
        self._seed = seed

    def __call__(self, number: int) -> PromptedSlices:
        """The batch of a number."""
        generator = np.random.default_rng([self._seed, 11, number])
        batch = read_slices(self._reader, self._order.batch(number), levels=self._levels)
        drawn: list[tuple[int, SampledPrompt, np.ndarray]] = []
        for index, label in enumerate(batch.label.numpy()):
            counts = np.bincount(label.ravel())
            counts[0] = 0
            objects = generator.permutation(np.flatnonzero(counts >= self._smallest))
            for object_id in objects[: self._prompts_per_slice]:
                mask = label == object_id
                prompt = sample_prompt(mask, generator, box_share=self._box_share)
                drawn.append((index, prompt, mask))
        if not drawn:
            # Slices around an object may show none: a box over the whole slice keeps the batch.
            size = batch.label.shape[-1]
            whole = np.ones((size, size), dtype=bool)
            drawn.append((0, sample_prompt(whole, generator, box_share=1.0), whole & False))
        levels = batch.features
        features = None
        if self._levels:
            assert levels.s4 is not None
            assert levels.s8 is not None
            assert levels.s16 is not None
            features = SliceFeatures(s4=levels.s4, s8=levels.s8, s16=levels.s16)
        image = photometric(batch.image, generator, strength=self._augment)
        return PromptedSlices(
            pixels=to_network_input(image),
            features=features,
            prompts=stack_prompts([prompt for _, prompt, _ in drawn]),
            slice_of=torch.tensor([index for index, _, _ in drawn]),
            masks=torch.from_numpy(np.stack([mask for _, _, mask in drawn])).float(),
        )


class TrackStream:
    """Batch number → ``TrackWindows``; a pure function of (seed, number).

    Args:
        reader: the cache.
        tracks: track numbers to draw from, all at least ``length`` steps long.
        batch_size: tracks per batch.
        length: steps of a window.
        augment: strength of photometric augmentation.
        labelled_rows: slice rows whose labels may be used; all where None.
        features: read the raw stride-16 features too.
        seed: of shuffling and augmentation.
    """

    def __init__(
        self,
        reader: CacheReader,
        tracks: np.ndarray,
        *,
        batch_size: int,
        length: int,
        augment: float,
        labelled_rows: np.ndarray | None,
        features: bool,
        seed: int,
    ) -> None:
        self._reader = reader
        self._order = ShuffledRows(tracks, batch_size, seed=seed)
        self._length = length
        self._augment = augment
        self._labelled = labelled_rows
        self._features = features
        self._seed = seed

    def __call__(self, number: int) -> TrackWindows:
        """The batch of a number."""
        generator = np.random.default_rng([self._seed, 12, number])
        cached = read_tracks(
            self._reader, self._order.batch(number), length=self._length, features=self._features
        )
        rows = cached.slice_rows.numpy()
        allowed = (
            np.ones(rows.shape, dtype=bool)
            if self._labelled is None
            else np.isin(rows, self._labelled)
        )
        image = photometric(cached.image.flatten(0, 1), generator, strength=self._augment)
        return TrackWindows(
            cached=cached,
            pixels=to_network_input(image),
            masks=(cached.label == cached.object_id[:, None, None, None]).float(),
            labelled=torch.from_numpy(allowed),
            prompts=Prompts(points_BN2=cached.points, labels_BN=cached.labels),
        )
