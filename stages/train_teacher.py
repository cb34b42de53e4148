"""Train a small teacher from nothing: generated volumes first, then real slabs mixed in.

Curriculum: boxes, points and tracks on domain-randomised volumes, of which there is no end, with
dense throw-away heads that give the encoder something to learn from the first step; then the
training slabs of the MNI152 brain join. Each window of slices is encoded once and serves many
prompts and the tracks through it.

Shape letters: W windows, L slices, R prompt rows, T track rows, S input size.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from efficient_medsam2.images.preprocess import to_network_input
from efficient_medsam2.metrics import dsc
from efficient_medsam2.networks.hiera import (
    SMALL_NET_FRAMES,
    SmallNetConfig,
    new_model,
    small_config,
)
from efficient_medsam2.networks.model_folder import MODEL_FILES, save_model
from efficient_medsam2.networks.records import Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import RunnerOptions, SliceRunner
from efficient_medsam2.prompts import box_of, sample_prompt, stack_prompts
from efficient_medsam2.synthetic.mni152 import mni152_volumes
from efficient_medsam2.synthetic.volumes import generate_volume
from stages.context import Artifact, StageContext
from stages.training.answers import label_terms
from stages.training.loop import TrainingTask, train
from stages.training.settings import LoopConfig
from stages.training.tracking import follow_windows
from stages.training.windows import LabelledVolume, cut_window

__all__ = ["TrainTeacherConfig", "run"]


class TrainTeacherConfig(LoopConfig):
    """Settings of the small teacher's training; ``batch_size`` counts windows.

    Attributes:
        network: the network to train.
        window: slices of a window.
        prompts_per_slice: prompts that each encoded slice serves.
        tracks_per_window: objects followed through each window.
        pool: generated volumes that are alive at a time.
        fresh: steps after which one volume of the pool is replaced.
        real: real volumes that join: the MNI152 brain's training slabs, or none.
        real_from: share of the steps after which they join.
        real_share: share of the windows cut from them from then on.
        tracks_from: share of the steps after which tracks join.
        smallest: objects below so many pixels of a slice are not prompted.
    """

    steps: int = 4000
    batch_size: int = 3
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    network: SmallNetConfig = SmallNetConfig()
    window: int = Field(default=6, ge=2)
    prompts_per_slice: int = Field(default=3, ge=1)
    tracks_per_window: int = Field(default=2, ge=1)
    pool: int = Field(default=48, ge=1)
    fresh: int = Field(default=1, ge=1)
    real: Literal["mni152", "none"] = "mni152"
    real_from: float = Field(default=0.4, ge=0, le=1)
    real_share: float = Field(default=0.5, ge=0, le=1)
    tracks_from: float = Field(default=0.1, ge=0, le=1)
    smallest: int = Field(default=30, ge=1)


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


class _Batches:
    """Batch number → batch, a pure function of (seed, number)."""

    def __init__(self, config: TrainTeacherConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._alive: OrderedDict[int, LabelledVolume] = OrderedDict()
        self._real: list[LabelledVolume] = []
        if config.real == "mni152":
            slabs = [slab for slab in mni152_volumes() if slab.split == "train"]
            self._real = [LabelledVolume(image=slab.image, label=slab.label) for slab in slabs]

    def __call__(self, number: int) -> TeacherBatch:
        config = self._config
        generator = np.random.default_rng([self._seed, 1, number])
        size, length = config.network.image_size, config.window
        real_now = bool(self._real) and number >= config.real_from * config.steps
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
        tracks = number >= config.tracks_from * config.steps
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
        objects = [_object_ids(each, config.smallest) for each in label]
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


def _object_ids(label_SS: np.ndarray, smallest: int) -> np.ndarray:
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


class TeacherModule(nn.Module):
    """The network and its throw-away edge heads; forward gives the loss terms of a batch."""

    def __init__(self, config: TrainTeacherConfig) -> None:
        super().__init__()
        self.model = new_model(small_config(config.network))
        self.runner = SliceRunner(
            self.model, RunnerOptions(fill_box=True, fixed_num_frames=SMALL_NET_FRAMES)
        )
        hidden = config.network.hidden_size
        self.edge_heads = nn.ModuleList(
            nn.Conv2d(width, 1, kernel_size=1) for width in (hidden // 8, hidden // 4, hidden)
        )

    def forward(self, batch: TeacherBatch) -> dict[str, Tensor]:
        """Loss terms by name; ``loss`` is their weighted sum."""
        device = next(self.model.parameters()).device
        features = self.runner.encode(batch.pixels.to(device))
        levels = (features.s4, features.s8, features.s16)
        edge_terms = []
        for head, level in zip(self.edge_heads, levels, strict=True):
            logits = head(level).squeeze(1)
            target = F.adaptive_max_pool2d(batch.edges.to(device), logits.shape[-2:])
            edge_terms.append(F.binary_cross_entropy_with_logits(logits.float(), target))
        record = self.runner.prompted(
            features.take(batch.prompt_slice.to(device)), batch.prompts.to(device)
        )
        terms = label_terms(record, batch.prompt_mask.to(device), bce=2.0, dice=1.0)
        terms["edge"] = torch.stack(edge_terms).mean()
        total = terms["mask"] + 0.1 * terms["iou"] + 0.1 * terms["presence"] + 0.3 * terms["edge"]
        if batch.track_prompts is not None:
            track = self._track(batch, features)
            total = total + track["mask"] + 0.1 * track["iou"] + 0.2 * track["presence"]
            terms |= {f"track_{key}": value for key, value in track.items()}
        return {"loss": total, **terms}

    def _track(self, batch: TeacherBatch, features: SliceFeatures) -> dict[str, Tensor]:
        """Follow each object through its window; terms are means over the tracked slices."""
        device = features.s16.device
        slices, masks = batch.track_slices.to(device), batch.track_masks.to(device)
        length = slices.shape[1]
        assert batch.track_prompts is not None
        records, _ = follow_windows(
            self.runner,
            [features.take(slices[:, step]) for step in range(length)],
            batch.track_prompts.to(device),
            num_frames=length,
        )
        collected = [
            label_terms(records[step], masks[:, step], bce=2.0, dice=1.0)
            for step in range(1, length)
        ]
        return {
            key: torch.stack([terms[key] for terms in collected]).mean() for key in collected[0]
        }


@torch.no_grad()
def _validate(
    runner: SliceRunner, volumes: list[LabelledVolume], smallest: int
) -> dict[str, float]:
    """Mean DSC from tight boxes on every slice, and along tracks from each volume's middle slice."""
    size = runner.image_size
    flat: list[float] = []
    tracked: list[float] = []
    for volume in volumes:
        image = torch.from_numpy(volume.image).unsqueeze(1).float()
        pixels = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
        scaled = F.interpolate(
            torch.from_numpy(volume.label.astype(np.float32)).unsqueeze(1), size=(size, size)
        )
        label = scaled[:, 0].numpy().astype(np.int64)
        features = runner.encode(to_network_input(pixels.round().to(torch.uint8)))
        rows = [
            (index, int(object_id))
            for index, each in enumerate(label)
            for object_id in _object_ids(each, smallest)
        ]
        masks = [label[index] == object_id for index, object_id in rows]
        boxes = np.stack([box_of(mask) for mask in masks]).reshape(-1, 2, 2)
        labels = torch.tensor([[2, 3]]).expand(len(rows), 2)
        prompts = Prompts(points_BN2=torch.from_numpy(boxes), labels_BN=labels)
        record = runner.prompted(features.take(torch.tensor([index for index, _ in rows])), prompts)
        flat += [dsc(p, t) for p, t in zip(_masks(record, size), masks, strict=True)]
        tracked += _tracked_dsc(runner, features, label, rows, prompts)
    figures = {"dsc": float(np.mean(flat)), "dsc_3d": float(np.mean(tracked))}
    return figures | {"score": (figures["dsc"] + figures["dsc_3d"]) / 2}


def _masks(record: SliceRecord, size: int) -> np.ndarray:
    logits = F.interpolate(record.mask_logits.float(), size=(size, size), mode="bilinear")
    masks: np.ndarray = (logits[:, 0] > 0).numpy()
    return masks


def _tracked_dsc(runner, features, label, rows, prompts) -> list[float]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """DSC of each object's 3D mask when tracked both ways from the middle slice."""
    depth, size = label.shape[0], runner.image_size
    middle = depth // 2
    starts = [number for number, (index, _) in enumerate(rows) if index == middle]
    if not starts:
        return []
    prompt = prompts.take(torch.tensor(starts))
    predicted = np.zeros((len(starts), depth, size, size), dtype=bool)
    for direction in (1, -1):
        here = features.take(torch.full((len(starts),), middle))
        record = runner.prompted(here, prompt)
        predicted[:, middle] = _masks(record, size)
        bank = [runner.remember(here, record, position=middle, prompted=True)]
        index = middle + direction
        while 0 <= index < depth:
            here = features.take(torch.full((len(starts),), index))
            record = runner.tracked(
                here, bank, position=index, reverse=direction < 0, num_frames=depth
            )
            predicted[:, index] = _masks(record, size)
            bank.append(runner.remember(here, record, position=index, prompted=False))
            index += direction
    return [dsc(predicted[order], label == rows[number][1]) for order, number in enumerate(starts)]


def run(config: TrainTeacherConfig, context: StageContext) -> Artifact:
    """Train the teacher; the artifact's ``model`` folder is a deployable model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        module = TeacherModule(config)
    if config.real == "mni152":
        slabs = [slab for slab in mni152_volumes() if slab.split == "validation"]
        held_out = [LabelledVolume(image=slab.image, label=slab.label) for slab in slabs]
    else:
        side = config.network.image_size
        made = [
            generate_volume(np.random.default_rng([context.seed, 3, n]), shape=(8, side, side))
            for n in range(4)
        ]
        held_out = [LabelledVolume(image=each.image, label=each.label) for each in made]
    result = train(
        TrainingTask(
            module=module,
            make_batch=_Batches(config, context.seed),
            validate=lambda: _validate(module.runner, held_out, config.smallest),
            best_by="score",
        ),
        config,
        context,
        name="teacher",
    )
    folder = context.directory / "model"
    module.runner.model.cpu()
    save_model(
        module.runner,
        folder,
        origin={"name": "scratch", "settings": config.model_dump(mode="json")},
        dtype=torch.float16,
    )
    files = tuple(str(Path("model") / name) for name in MODEL_FILES)
    return Artifact(files=(*files, "metrics.jsonl"), summary=result.summary())
