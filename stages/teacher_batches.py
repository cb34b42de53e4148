"""What a small teacher learns from: windows of generated and real volumes, prompts and tracks.

Shape letters: W windows, L slices, R prompt rows, T track rows, S input size.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from efficient_medsam2.images.preprocess import to_network_input
from efficient_medsam2.networks.records import Prompts
from efficient_medsam2.prompts import sample_prompt, stack_prompts
from efficient_medsam2.synthetic.mni152 import mni152_volumes
from efficient_medsam2.synthetic.volumes import generate_volume
from stages.teacher_settings import TrainTeacherConfig
from stages.training.loop import share_done
from stages.training.windows import LabelledVolume, cut_window

__all__ = ["TeacherBatch", "TeacherBatches", "visible_objects"]


@dataclass(frozen=True, kw_only=True)
class TeacherBatch:
    """Windows, prompts on their slices, and tracks through them.

    Attributes:
        pixels: (W*L, 3, S, S) normalised.
        edges: (W*L, S, S) 1 on borders between labels.
        prompts: R prompts.
        prompt_slice: (R,) which of the W*L slices each is on.
        prompt_mask: (R, S, S) 0/1.
        track_slices: (T, L) slices that each track runs through.
        track_masks: (T, L, S, S) 0/1.
        track_prompts: T prompts on the first slice of each; None while tracks have not joined.
    """

    pixels: Tensor
    edges: Tensor
    prompts: Prompts
    prompt_slice: Tensor
    prompt_mask: Tensor
    track_slices: Tensor
    track_masks: Tensor
    track_prompts: Prompts | None


class TeacherBatches:
    """Batch number → batch, a pure function of (seed, number)."""

    def __init__(self, config: TrainTeacherConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._alive: OrderedDict[int, LabelledVolume] = OrderedDict()
        self._real: list[LabelledVolume] = []
        if config.real == "mni152":
            slabs = [
                slab for slab in mni152_volumes(label_sets=("structures",)) if slab.split == "train"
            ]
            self._real = [LabelledVolume(image=slab.image, label=slab.label) for slab in slabs]

    def __call__(self, number: int) -> TeacherBatch:
        """The batch of a number."""
        config = self._config
        generator = np.random.default_rng([self._seed, 1, number])
        size, length = config.network.image_size, config.window
        done = share_done(number, config)
        real_now = bool(self._real) and done >= config.real_from
        windows = []
        for _ in range(config.batch_size):
            if real_now and generator.random() < config.real_share:
                depths = np.array([volume.image.shape[0] for volume in self._real])
                volume = self._real[generator.choice(len(depths), p=depths / depths.sum())]
                windows.append(cut_window(volume, generator, length=length, size=size, strong=True))
            else:
                newest = number // config.fresh
                index = newest - int(generator.integers(config.pool))
                volume = self._generated(index)
                windows.append(
                    cut_window(volume, generator, length=length, size=size, strong=False)
                )
        image = torch.cat([image for image, _ in windows])
        label = torch.cat([label for _, label in windows])
        tracks = done >= config.tracks_from
        return self._prompted(image, label.numpy(), generator, tracks=tracks)

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
        self, image: Tensor, label: np.ndarray, generator: np.random.Generator, *, tracks: bool
    ) -> TeacherBatch:
        config = self._config
        objects = [visible_objects(each, config.smallest) for each in label]
        rows: list[tuple[int, np.ndarray]] = []
        for index, ids in enumerate(objects):
            chosen = generator.permutation(ids)[: config.prompts_per_slice]
            rows += [(index, label[index] == object_id) for object_id in chosen]
        if not rows:
            # Nothing here to prompt: one prompt on a generated disc keeps the batch whole.
            rows.append((0, _disc(label.shape[1])))
        followed: list[tuple[int, int]] = []
        for window in range(config.batch_size) if tracks else ():
            first = window * config.window
            ids = generator.permutation(objects[first])[: config.tracks_per_window]
            followed += [(first, int(object_id)) for object_id in ids]
        prompts = [sample_prompt(mask, generator, box_share=0.75) for _, mask in rows]
        starts = [
            sample_prompt(label[first] == object_id, generator, box_share=0.9)
            for first, object_id in followed
        ]
        steps = np.arange(config.window)
        followed_masks = [
            label[first : first + config.window] == object_id for first, object_id in followed
        ]
        return TeacherBatch(
            pixels=to_network_input(image.round().to(torch.uint8).unsqueeze(1)),
            edges=torch.from_numpy(_edges(label)),
            prompts=stack_prompts(prompts),
            prompt_slice=torch.tensor([index for index, _ in rows]),
            prompt_mask=torch.from_numpy(np.stack([mask for _, mask in rows])).float(),
            track_slices=torch.tensor(np.array([first + steps for first, _ in followed])),
            track_masks=torch.from_numpy(np.array(followed_masks)).float(),
            track_prompts=stack_prompts(starts) if starts else None,
        )


def visible_objects(label_SS: np.ndarray, smallest: int) -> np.ndarray:
    """Objects of at least ``smallest`` pixels on a slice, ascending."""
    counts = np.bincount(label_SS.ravel())
    counts[0] = 0
    return np.flatnonzero(counts >= smallest)


def _edges(label_NSS: np.ndarray) -> np.ndarray:
    edges = np.zeros(label_NSS.shape, dtype=np.float32)
    edges[:, 1:] += label_NSS[:, 1:] != label_NSS[:, :-1]
    edges[:, :, 1:] += label_NSS[:, :, 1:] != label_NSS[:, :, :-1]
    return edges.clip(max=1)


def _disc(size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size / 2
    mask: np.ndarray = rows**2 + columns**2 < (size / 4) ** 2
    return mask
