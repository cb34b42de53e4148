"""Train a small teacher from nothing: generated volumes first, then real slabs mixed in.

Curriculum: boxes, points and tracks on domain-randomised volumes, of which there is no end, with
dense throw-away heads that give the encoder something to learn from the first step; then the
training slabs of the MNI152 brain join. Each window of slices is encoded once and serves many
prompts and the tracks through it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficient_medsam2.networks.hiera import SMALL_NET_FRAMES, new_model, small_config
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.records import SliceFeatures
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.synthetic.mni152 import mni152_volumes
from efficient_medsam2.synthetic.volumes import generate_volume
from stages.context import Artifact, StageContext
from stages.teacher_batches import TeacherBatch, TeacherBatches
from stages.teacher_settings import TrainTeacherConfig
from stages.teacher_validation import validate_teacher
from stages.training.answers import label_terms
from stages.training.loop import train
from stages.training.student import hand_on
from stages.training.task import TrainingTask
from stages.training.tracking import follow_windows
from stages.training.windows import LabelledVolume

__all__ = ["TrainTeacherConfig", "run"]


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


def run(config: TrainTeacherConfig, context: StageContext) -> Artifact:
    """Train the teacher; the artifact's ``model`` folder is a deployable model.

    Raises:
        MissingExtraError: ``real`` is ``mni152`` without nilearn.
        StageConfigError: the loss diverges, or the precision needs a GPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        module = TeacherModule(config)
    held_out = _held_out(config, context.seed)
    result = train(
        TrainingTask(
            module=module,
            make_batch=TeacherBatches(config, context.seed),
            validate=lambda: validate_teacher(module.runner, held_out, config.smallest),
            best_by="score",
        ),
        config,
        context,
        name="teacher",
    )
    origin = {"name": "scratch", "settings": config.model_dump(mode="json")}
    files = hand_on(module.runner, context, origin, dtype=torch.float16)
    return Artifact(files=files, summary=result.summary())


def _held_out(config: TrainTeacherConfig, seed: int) -> list[LabelledVolume]:
    """Volumes that no batch is cut from."""
    if config.real == "mni152":
        slabs = [
            slab
            for slab in mni152_volumes(label_sets=("structures",))
            if slab.split == "validation"
        ]
        return [LabelledVolume(image=slab.image, label=slab.label) for slab in slabs]
    side = config.network.image_size
    made = [
        generate_volume(np.random.default_rng([seed, 3, number]), shape=(8, side, side))
        for number in range(4)
    ]
    return [LabelledVolume(image=each.image, label=each.label) for each in made]
