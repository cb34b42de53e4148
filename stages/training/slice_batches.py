"""Batches of cached slices with prompts drawn afresh.

Shape letters: B slices, R prompt rows, S the student's input in pixels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache import CacheReader
from cache.dataset import ALL_LEVELS, Levels, ShuffledRows, read_slices
from cache.expectation import expect_slices
from cache.stored import to_stored
from efficient_medsam2.images import to_network_input
from efficient_medsam2.networks.records import Prompts, SliceFeatures
from efficient_medsam2.prompts import SampledPrompt, sample_prompt, stack_prompts
from stages.training.augmentation import photometric
from stages.training.resizing import resize_images, resize_labels, resize_prompts
from stages.training.student import cached_size
from stages.training.tensors import even_parts, some_rows

__all__ = ["PromptedSlices", "SliceStream", "decoded_features"]


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
