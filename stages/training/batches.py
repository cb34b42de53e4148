"""Batches of the student stages: cached rows with prompts drawn afresh.

Shape letters: B slices, R prompt rows, T tracks, L steps, S the student's input in pixels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache import CacheReader
from cache.dataset import (
    ALL_LEVELS,
    Levels,
    ShuffledRows,
    TrackBatch,
    read_slices,
    read_tracks,
)
from cache.expectation import expect_slices, expect_tracks
from cache.stored import Stored, to_stored
from efficient_medsam2.images import to_network_input
from efficient_medsam2.networks.records import Prompts, SliceFeatures
from efficient_medsam2.networks.student import ResizeMode
from efficient_medsam2.prompts import SampledPrompt, sample_prompt, stack_prompts
from stages.training.resizing import resize_images, resize_labels, resize_maps, resize_prompts
from stages.training.student import cached_size
from stages.training.tensors import even_parts, some_rows

__all__ = ["PromptedSlices", "SliceStream", "TrackStream", "TrackWindows", "decoded_features"]


@dataclass(frozen=True, kw_only=True)
class PromptedSlices:
    """Slices and fresh prompts on them.

    Attributes:
        image: (B, 1 or 3, S, S) uint8, what the student sees.
        features: the teacher's of the same slices, on its own grids, where asked for: as stored
            until ``to`` makes numbers of them; a level that is not cached gets zero channels.
        prompts: R prompts in pixels of the student's input.
        slice_of: (R,) which slice each is on, ascending.
        masks: (R, S, S) bool labels of the prompted objects.
        share: how many of the batch's slices these are, 1 for all.
        prompt_share: how many of its prompts.
    """

    image: Tensor
    features: SliceFeatures | Levels | None
    prompts: Prompts
    slice_of: Tensor
    masks: Tensor
    share: float = 1.0
    prompt_share: float = 1.0

    def split(self, at_once: int) -> list["PromptedSlices"]:
        """Some slices after the others, each with the prompts on it, in even parts."""
        parts = []
        for slices in even_parts(len(self.image), at_once):
            bounds = self.slice_of.new_tensor([slices.start, slices.stop])
            asked = slice(*torch.searchsorted(self.slice_of, bounds).tolist())
            parts.append(
                PromptedSlices(
                    image=self.image[slices],
                    features=some_rows(self.features, slices),
                    prompts=some_rows(self.prompts, asked),
                    slice_of=self.slice_of[asked] - slices.start,
                    masks=self.masks[asked],
                    share=self.share * (slices.stop - slices.start) / len(self.image),
                    prompt_share=self.prompt_share
                    * (asked.stop - asked.start)
                    / len(self.slice_of),
                )
            )
        return parts

    @property
    def pixels(self) -> Tensor:
        """(B, 3, S, S) the image as the network takes it, made anew by each call."""
        return to_network_input(self.image)

    def to(self, device: torch.device) -> "PromptedSlices":
        """Copy to a device, in the background out of pinned memory; features become float32."""
        features = self.features
        if isinstance(features, Levels):
            features = decoded_features(features, device)
        return replace(
            self,
            image=self.image.to(device, non_blocking=True),
            features=None if features is None else features.to(device, torch.float32),
            prompts=self.prompts.to(device),
            slice_of=self.slice_of.to(device, non_blocking=True),
            masks=self.masks.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True)
class TrackWindows:
    """Windows of tracks.

    Attributes:
        cached: what the cache holds of them, images and labels left out.
        image: (T, L, 1 or 3, S, S) uint8, what the student sees.
        masks: (T, L, S, S) bool labels of the followed objects.
        labelled: (T, L) whether the slice's label may be used.
        prompts: T prompts on the first step.
    """

    cached: TrackBatch
    image: Tensor
    masks: Tensor
    labelled: Tensor
    prompts: Prompts

    @property
    def pixels(self) -> Tensor:
        """(T*L, 3, S, S) the image as the network takes it, track by track, made by each call."""
        return self.pixels_on(self.image.device)

    def pixels_on(self, device: torch.device) -> Tensor:
        """The same, made on a device."""
        return to_network_input(self.image.to(device, non_blocking=True).flatten(0, 1))

    def pixels_of(self, step: int, device: torch.device) -> Tensor:
        """(T, 3, S, S) those of one slice of each window, made on a device."""
        return to_network_input(self.image[:, step].to(device, non_blocking=True))

    def split(self, at_once: int) -> list["TrackWindows"]:
        """Some tracks after the others, in even parts."""
        return [some_rows(self, rows) for rows in even_parts(len(self.image), at_once)]


def photometric(image: Tensor, generator: np.random.Generator, *, strength: float) -> Tensor:
    """Random gamma, contrast, brightness and noise per image; geometry stays. uint8 in and out.

    Only this may change in a student's input: the cached features belong to this geometry.
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
        size: S; the size of the cached images where None.
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
        size: int | None = None,
    ) -> None:
        self._reader = reader
        self._order = ShuffledRows(rows, batch_size, seed=seed)
        self._prompts_per_slice = prompts_per_slice
        self._smallest = smallest
        self._box_share = box_share
        self._augment = augment
        stored = {array.name for array in reader.spec.arrays}
        self._levels = tuple(
            level for level in ALL_LEVELS if features and f"features_{level}" in stored
        )
        self._seed = seed
        self._cached_size = cached_size(reader)
        self._size = size or self._cached_size

    def __call__(self, number: int) -> PromptedSlices:
        """The batch of a number."""
        generator = np.random.default_rng([self._seed, 11, number])
        expect_slices(self._reader, self._order, number, levels=self._levels)
        batch = read_slices(self._reader, self._order.batch(number), levels=self._levels)
        labels = resize_labels(batch.label, self._size).numpy()
        drawn: list[tuple[int, SampledPrompt, np.ndarray]] = []
        for index, label in enumerate(batch.label.numpy()):
            counts = np.bincount(label.ravel())
            counts[0] = 0
            objects = generator.permutation(np.flatnonzero(counts >= self._smallest))
            for object_id in objects[: self._prompts_per_slice]:
                prompt = sample_prompt(label == object_id, generator, box_share=self._box_share)
                mask = labels[index] == object_id
                # On a smaller student's grid a small object may have no pixel left.
                if mask.any():
                    drawn.append((index, prompt, mask))
        if not drawn:
            # Slices around an object may show none: a box over the whole slice keeps the batch.
            whole = np.ones((self._cached_size, self._cached_size), dtype=bool)
            nothing = np.zeros((self._size, self._size), dtype=bool)
            drawn.append((0, sample_prompt(whole, generator, box_share=1.0), nothing))
        prompts = stack_prompts([prompt for _, prompt, _ in drawn])
        image = resize_images(batch.image, self._size)
        return PromptedSlices(
            image=photometric(image, generator, strength=self._augment),
            features=batch.features if self._levels else None,
            prompts=resize_prompts(prompts, before=self._cached_size, after=self._size),
            slice_of=torch.tensor([index for index, _, _ in drawn]),
            masks=torch.from_numpy(np.stack([mask for _, _, mask in drawn])),
        )


def decoded_features(levels: Levels, device: torch.device) -> SliceFeatures:
    """Cached levels as float32 on a device, a level that is not cached without channels."""
    assert levels.s16 is not None
    s16 = to_stored(levels.s16, device, torch.float32)
    rows, _, height, width = s16.shape
    s4, s8 = (
        s16.new_zeros(rows, 0, height * times, width * times)
        if level is None
        else to_stored(level, device, torch.float32)
        for level, times in ((levels.s4, 4), (levels.s8, 2))
    )
    return SliceFeatures(s4=s4, s8=s8, s16=s16)


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
        size: S; the size of the cached images where None.
        mode: how cached feature maps and logits come to the student's grids where the sizes
            differ; None leaves them as they are, for who reads images and labels alone.
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
        size: int | None = None,
        mode: ResizeMode | None = None,
    ) -> None:
        self._reader = reader
        self._order = ShuffledRows(tracks, batch_size, seed=seed)
        self._length = length
        self._augment = augment
        self._labelled = labelled_rows
        self._features = features
        self._seed = seed
        self._cached_size = cached_size(reader)
        self._size = size or self._cached_size
        self._mode = mode

    def __call__(self, number: int) -> TrackWindows:
        """The batch of a number."""
        generator = np.random.default_rng([self._seed, 12, number])
        expect_tracks(
            self._reader, self._order, number, length=self._length, features=self._features
        )
        cached = read_tracks(
            self._reader, self._order.batch(number), length=self._length, features=self._features
        )
        rows = cached.slice_rows.numpy()
        allowed = (
            np.ones(rows.shape, dtype=bool)
            if self._labelled is None
            else np.isin(rows, self._labelled)
        )
        prompts = Prompts(points_BN2=cached.points, labels_BN=cached.labels)
        if self._size != self._cached_size:
            cached = _resized(cached, self._size, self._mode)
        image = photometric(cached.image.flatten(0, 1), generator, strength=self._augment)
        # Batches wait in memory: what image and masks are made of goes.
        rest = replace(cached, image=cached.image.new_empty(0), label=cached.label.new_empty(0))
        return TrackWindows(
            cached=rest,
            image=image.view(cached.image.shape),
            masks=cached.label == cached.object_id[:, None, None, None],
            labelled=torch.from_numpy(allowed),
            prompts=resize_prompts(prompts, before=self._cached_size, after=self._size),
        )


def _resized(cached: TrackBatch, size: int, mode: ResizeMode | None) -> TrackBatch:
    """Images and labels at the student's size, and its targets where a mode is given."""

    def stacked(values: Tensor) -> Tensor:
        return values.reshape(*cached.slice_rows.shape, *values.shape[1:])

    def maps(stored: Stored, side: int) -> Stored:
        if mode is None:
            return stored
        values = to_stored(stored, "cpu")
        # Logits have no axis of channels.
        flat = values.flatten(0, 1) if values.ndim == 5 else values.flatten(0, 1)[:, None]
        resized = stacked(resize_maps(flat, side, mode))
        return resized if values.ndim == 5 else resized[:, :, 0]

    return replace(
        cached,
        image=stacked(resize_images(cached.image.flatten(0, 1), size)),
        label=stacked(resize_labels(cached.label.flatten(0, 1), size)),
        features_s16=None if cached.features_s16 is None else maps(cached.features_s16, size // 16),
        conditioned_s16=maps(cached.conditioned_s16, size // 16),
        memory_s16=maps(cached.memory_s16, size // 16),
        mask_logits=maps(cached.mask_logits, size // 4),
    )
