"""Train a small teacher from nothing: generated volumes first, then real slabs mixed in.

Curriculum: boxes and points on single slices of domain-randomised volumes, of which there is no
end, and of the training slabs of the MNI152 brain; then tracks join. Each slice is encoded once and
serves many prompts, the tracks through it, and dense throw-away heads that give the encoder
something to learn from the first step. What is judged and handed on is a running average of the
weights.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam2VideoModel

from efficient_medsam2.networks.hiera import (
    SMALL_NET_FRAMES,
    SmallNetConfig,
    new_model,
    small_config,
)
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.records import SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.synthetic.volumes import generate_volume
from stages.context import Artifact, StageContext
from stages.teacher_batches import TeacherBatch, TeacherBatches
from stages.teacher_data import KINDS, real_volumes
from stages.teacher_heads import DenseHeads
from stages.teacher_settings import TrainTeacherConfig
from stages.teacher_validation import validate_teacher
from stages.training.answers import click_on_error, label_terms
from stages.training.loop import train
from stages.training.student import hand_on
from stages.training.task import TrainingTask
from stages.training.tracking import Start, follow_windows
from stages.training.windows import LabelledVolume

__all__ = ["TrainTeacherConfig", "run"]


class TeacherModule(nn.Module):
    """The network, its running average and its throw-away heads.

    ``forward`` gives the loss terms of a batch. The average lives in the module, so a checkpoint
    holds it and a continued run goes on exactly.
    """

    updates: Tensor

    def __init__(self, config: TrainTeacherConfig) -> None:
        super().__init__()
        options = RunnerOptions(fill_box=True, fixed_num_frames=SMALL_NET_FRAMES)
        self.model = _new_model(config.network)
        self.runner = SliceRunner(self.model, options)
        self.average = _new_model(config.network).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.average_runner = SliceRunner(self.average, options)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.heads = DenseHeads(config.network.hidden_size, kinds=len(KINDS))
        self._average_over = config.average_over
        self._in_bfloat16 = config.encode_in == "bfloat16"
        if self._in_bfloat16:
            # The fused attention of CPUs is slow in bfloat16. Only what is trained is concerned.
            self.model.vision_encoder.set_attn_implementation("eager")

    def forward(self, batch: TeacherBatch) -> dict[str, Tensor]:
        """Loss terms by name; ``loss`` is their weighted sum."""
        self._update_average()
        device = next(self.model.parameters()).device
        features = self._encode(batch.pixels.to(device))
        dense = self.heads(features, batch.label.to(device), batch.kind.to(device))
        rows = features.take(batch.prompt_slice.to(device))
        prompts, masks = batch.prompts.to(device), batch.prompt_mask.to(device)
        record = self.runner.prompted(rows, prompts)
        terms = label_terms(record, masks, bce=2.0, dice=1.0)
        total = terms["mask"] + 0.1 * terms["iou"] + 0.1 * terms["presence"]
        if batch.refined:
            chosen = torch.arange(batch.refined, device=device)
            clicked = click_on_error(
                prompts.take(chosen),
                record.take(chosen),
                _answer_of(record.take(chosen), masks[chosen]),
            )
            refined = self.runner.prompted(rows.take(chosen), clicked)
            again = label_terms(refined, masks[chosen], bce=2.0, dice=1.0)
            share = batch.refined / len(masks)
            total = total + share * (again["mask"] + 0.1 * again["iou"])
            terms["refined"] = again["mask"]
        total = total + 0.3 * dense["edge"] + 0.3 * dense["same"] + 0.3 * dense["kind"]
        terms |= dense
        if batch.track_prompts is not None:
            track = self._track(batch, features)
            total = total + track["mask"] + 0.1 * track["iou"] + 0.2 * track["presence"]
            terms |= {f"track_{key}": value for key, value in track.items()}
        return {"loss": total, **terms}

    def _encode(self, pixels_N3SS: Tensor) -> SliceFeatures:
        """Features in float32; all but the encoder, memory above all, is computed in it too."""
        with torch.autocast(pixels_N3SS.device.type, torch.bfloat16, enabled=self._in_bfloat16):
            features = self.runner.encode(pixels_N3SS)
        return features.to(pixels_N3SS.device, torch.float32)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Take in the weights that the last step left, over ever more steps at the start."""
        if not self.training:
            return
        steps = int(self.updates)
        self.updates += 1
        share = max(1 / self._average_over, 1 / (1 + 0.2 * steps))
        for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(now, share)

    def _track(self, batch: TeacherBatch, features: SliceFeatures) -> dict[str, Tensor]:
        """Follow each object through its window; terms are means over the tracked slices."""
        device = features.s16.device
        slices, masks = batch.track_slices.to(device), batch.track_masks.to(device)
        length = slices.shape[1]
        assert batch.track_prompts is not None
        records, _ = follow_windows(
            self.runner,
            [features.take(slices[:, step]) for step in range(length)],
            Start(prompts=batch.track_prompts.to(device)),
            num_frames=length,
        )
        collected = [
            label_terms(records[step], masks[:, step], bce=2.0, dice=1.0)
            for step in range(1, length)
        ]
        return {
            key: torch.stack([terms[key] for terms in collected]).mean() for key in collected[0]
        }


def _new_model(network: SmallNetConfig) -> Sam2VideoModel:
    """A network whose matrices and embeddings are drawn by PyTorch's own rules.

    transformers' N(0, 0.02) leaves next to no signal in layers as narrow as these, and all kinds of
    points alike. The official code relies on PyTorch's rules in decoder and prompt encoder.
    """
    model = new_model(small_config(network))
    presence = model.mask_decoder.pred_obj_score_head.proj_out.bias.detach().clone()
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
            part.reset_parameters()
    model.mask_decoder.pred_obj_score_head.proj_out.bias.data.copy_(presence)
    return model


def _answer_of(record: SliceRecord, mask_RSS: Tensor) -> SliceRecord:
    """A record whose mask logits are those of the true mask."""
    logits = F.interpolate(
        mask_RSS.unsqueeze(1), size=record.mask_logits.shape[-2:], mode="bilinear", antialias=True
    )
    return replace(record, mask_logits=logits - 0.5)


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
            validate=lambda: validate_teacher(module.average_runner, held_out, config.smallest),
            best_by="score",
        ),
        config,
        context,
        name="teacher",
    )
    origin = {"name": "scratch", "settings": config.model_dump(mode="json")}
    files = hand_on(module.average_runner, context, origin, dtype=torch.float16)
    return Artifact(files=files, summary=result.summary())


def _held_out(config: TrainTeacherConfig, seed: int) -> list[LabelledVolume]:
    """Volumes that no batch is cut from."""
    if config.real == "mni152":
        return real_volumes("validation")
    side = config.network.image_size
    made = [
        generate_volume(np.random.default_rng([seed, 3, number]), shape=(8, side, side))
        for number in range(4)
    ]
    return [LabelledVolume(image=each.image, label=each.label) for each in made]
