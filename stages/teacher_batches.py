"""What a small teacher learns from: windows of generated and real volumes, prompts and tracks.

Shape letters: N slices, W windows, L slices of a window, R prompt rows, T track rows, S input size.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from efficient_medsam2.images.preprocess import to_network_input
from efficient_medsam2.networks.records import Prompts
from efficient_medsam2.prompts import sample_prompt, stack_prompts
from efficient_medsam2.synthetic.volumes import generate_volume
from stages.teacher_data import real_volumes
from stages.teacher_regions import even_region, part_of
from stages.teacher_settings import TrainTeacherConfig
from stages.training.loop import share_done
from stages.training.windows import UNKNOWN_KIND, LabelledVolume, cut_window, visible_objects

__all__ = ["TeacherBatch", "TeacherBatches"]


@dataclass(frozen=True, kw_only=True)
class TeacherBatch:
    """Windows and single slices, prompts on them, and tracks through the windows.

    Attributes:
        pixels: (N, 3, S, S) normalised; N = W*L slices of windows, then single ones.
        label: (N, S, S) int64, which object each pixel is of.
        kind: (N, S, S) int64, what kind of structure; 0 background, -1 unknown.
        prompts: R prompts.
        prompt_slice: (R,) which of the N slices each is on.
        prompt_mask: (R, S, S) 0/1.
        refined: how many of the R rows, from the first, get a corrective click afterwards.
        track_slices: (T, L) slices that each track runs through.
        track_masks: (T, L, S, S) 0/1.
        track_prompts: T prompts on the first slice of each; None while tracks have not joined.
    """

    pixels: Tensor
    label: Tensor
    kind: Tensor
    prompts: Prompts
    prompt_slice: Tensor
    prompt_mask: Tensor
    refined: int
    track_slices: Tensor
    track_masks: Tensor
    track_prompts: Prompts | None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A slice of a real volume on which an object is large enough to be prompted."""

    volume: int
    first: int


class TeacherBatches:
    """Batch number → batch, a pure function of (seed, number)."""

    def __init__(self, config: TrainTeacherConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._alive: OrderedDict[int, LabelledVolume] = OrderedDict()
        self._real = real_volumes("train") if config.real == "mni152" else []
        self._places = _places(self._real, config.smallest)

    def __call__(self, number: int) -> TeacherBatch:
        """The batch of a number."""
        config = self._config
        generator = np.random.default_rng([self._seed, 1, number])
        done = share_done(number, config)
        length = self._track_length(done)
        tracks = done >= config.tracks_from and number % config.track_every == 0
        windows = config.batch_size * config.window // length if tracks else 0
        # In a batch without tracks, single slices of more volumes stand in for the windows.
        stills = config.stills + (0 if tracks else config.batch_size * config.window)
        lengths = [length] * windows + [1] * stills
        real_share = config.real_share if self._real and done >= config.real_from else 0.0
        images, labels, kinds = [], [], []
        for slices in lengths:
            image, label, kind = self._cut(generator, number, slices, real_share)
            images.append(image)
            labels.append(label)
            kinds.append(kind)
        image, label = torch.cat(images), torch.cat(labels)
        return self._prompted(
            image.round().to(torch.uint8), label, torch.cat(kinds), [length] * windows, generator
        )

    def _track_length(self, done: float) -> int:
        """Slices of a window: pairs first, then ever longer ones that fill ``window`` evenly."""
        config = self._config
        lengths = [n for n in range(2, config.window + 1) if config.window % n == 0]
        grown = (done - config.tracks_from) / max(config.tracks_grown - config.tracks_from, 1e-9)
        return lengths[int(np.clip(grown * (len(lengths) - 1), 0, len(lengths) - 1))]

    def _cut(
        self, generator: np.random.Generator, number: int, length: int, real_share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image, label and kind (L, S, S) of a window."""
        config = self._config
        size = config.network.image_size
        if generator.random() < real_share:
            # Kinds in turn, so that what covers few slices is not drowned by what covers many.
            kind = sorted(self._places)[generator.integers(len(self._places))]
            place = self._places[kind][generator.integers(len(self._places[kind]))]
            volume = self._real[place.volume]
            image, label = cut_window(
                volume, generator, length=length, size=size, strong=True, first=place.first
            )
            kind_of = np.zeros(max(volume.kinds) + 1, np.int64)
            kind_of[list(volume.kinds)] = list(volume.kinds.values())
            return image, label, torch.from_numpy(kind_of)[label]
        index = number // config.fresh - int(generator.integers(config.pool))
        volume = self._generated(index)
        image, label = cut_window(volume, generator, length=length, size=size, strong=False)
        return image, label, torch.full_like(label, UNKNOWN_KIND)

    def _generated(self, index: int) -> LabelledVolume:
        """Volume ``index`` of the endless list, kept while the pool may ask for it again."""
        index += self._config.pool
        if index not in self._alive:
            side = self._config.network.image_size
            depth = self._config.window + 4
            made = generate_volume(
                np.random.default_rng([self._seed, 2, index]), shape=(depth, side, side)
            )
            self._alive[index] = LabelledVolume(image=made.image, label=made.label)
            while len(self._alive) > 2 * self._config.pool:
                self._alive.popitem(last=False)
        self._alive.move_to_end(index)
        return self._alive[index]

    def _prompted(
        self,
        image_NSS: Tensor,
        label_NSS: Tensor,
        kind_NSS: Tensor,
        windows: list[int],
        generator: np.random.Generator,
    ) -> TeacherBatch:
        config = self._config
        label = label_NSS.numpy()
        objects = [visible_objects(each, config.smallest) for each in label]
        rows: list[tuple[int, np.ndarray]] = []
        for index, ids in enumerate(objects):
            chosen = generator.permutation(ids)[: config.prompts_per_slice]
            masks = [label[index] == object_id for object_id in chosen]
            is_real = bool(kind_NSS[index, 0, 0] != UNKNOWN_KIND)
            if is_real:
                masks = [
                    part_of(mask, generator, smallest=config.smallest)
                    if generator.random() < config.parts_share
                    else mask
                    for mask in masks
                ]
            rows += [(index, mask) for mask in masks]
            for _ in range(config.regions_per_slice if is_real else 0):
                region = even_region(
                    image_NSS[index].numpy(), label[index], generator, smallest=config.smallest
                )
                rows += [] if region is None else [(index, region)]
        if not rows:
            # Nothing here to prompt: one prompt on a generated disc keeps the batch whole.
            rows.append((0, _disc(label.shape[1])))
        rows = [rows[place] for place in generator.permutation(len(rows))]
        followed: list[tuple[int, int]] = []
        for place, length in enumerate(windows):
            first = place * length
            ids = generator.permutation(objects[first])[: config.tracks_per_window]
            followed += [(first, int(object_id)) for object_id in ids]
        prompts = [
            sample_prompt(
                mask, generator, box_share=0.85, jitter=float(generator.choice(config.jitter))
            )
            for _, mask in rows
        ]
        starts = [
            sample_prompt(label[first] == object_id, generator, box_share=0.95)
            for first, object_id in followed
        ]
        steps = np.arange(max(windows, default=0))
        followed_masks = [label[first + steps] == object_id for first, object_id in followed]
        return TeacherBatch(
            pixels=to_network_input(image_NSS.unsqueeze(1)),
            label=label_NSS,
            kind=kind_NSS,
            prompts=stack_prompts(prompts),
            prompt_slice=torch.tensor([index for index, _ in rows]),
            prompt_mask=torch.from_numpy(np.stack([mask for _, mask in rows])).float(),
            refined=int(config.refined_share * len(rows)),
            track_slices=torch.tensor(np.array([first + steps for first, _ in followed])),
            track_masks=torch.from_numpy(np.array(followed_masks)).float(),
            track_prompts=stack_prompts(starts) if starts else None,
        )


def _places(volumes: list[LabelledVolume], smallest: int) -> dict[int, list[_Place]]:
    """Kind → every slice that shows enough of it."""
    places: dict[int, list[_Place]] = {}
    for number, volume in enumerate(volumes):
        for first, label in enumerate(volume.label):
            kinds = {volume.kinds[int(each)] for each in visible_objects(label, smallest)}
            for kind in kinds:
                places.setdefault(kind, []).append(_Place(volume=number, first=first))
    return places


def _disc(size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size / 2
    mask: np.ndarray = rows**2 + columns**2 < (size / 4) ** 2
    return mask
