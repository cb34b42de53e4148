"""Batches of windows of cached tracks.

Shape letters: T tracks, L steps, S the student's input in pixels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache import CacheReader
from cache.dataset import ShuffledRows, TrackBatch, read_tracks
from cache.expectation import expect_tracks
from cache.stored import Stored, to_stored
from efficient_medsam2.images import to_network_input
from efficient_medsam2.networks.records import Prompts
from efficient_medsam2.networks.student import ResizeMode
from stages.training.augmentation import photometric
from stages.training.resizing import resize_images, resize_labels, resize_maps, resize_prompts
from stages.training.student import cached_size
from stages.training.tensors import even_parts, some_rows

__all__ = ["TrackStream", "TrackWindows"]


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
