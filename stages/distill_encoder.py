"""Stage 1: the student's image encoder learns the teacher's features, from the cache alone.

Taps are exactly what the mask decoder consumes: strides 4, 8 and 16. The decoder and the memory
stay as they were copied from the teacher; a prompt-in-the-loop term (EdgeSAM, Zhou et al. 2023)
asks the student's features to give the teacher's masks for prompts drawn afresh. A MedSAM teacher
has no levels at strides 4 and 8 and a decoder of another shape: there the student's decoder, which
starts near the teacher's, learns its masks along with the encoder.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cache import CacheReader
from efficient_medsam2.networks.records import Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig
from stages.context import Artifact, StageContext
from stages.training.answers import click_on_error, teacher_mask_term
from stages.training.heads import TeacherHeads
from stages.training.loop import train
from stages.training.losses import feature_loss
from stages.training.resizing import resize_maps
from stages.training.settings import StudentLoopConfig
from stages.training.slice_batches import PromptedSlices, SliceStream
from stages.training.student import hand_on, new_student, open_cache, smallest_object
from stages.training.task import TrainingTask
from stages.training.validation import cache_validation, recalibrate_on_cache

__all__ = ["EncoderConfig", "run", "training_rows"]


class EncoderConfig(StudentLoopConfig):
    """Settings of encoder distillation; ``batch_size`` counts slices.

    Attributes:
        weight_s16: weight of the stride-16 feature term.
        weight_s8: of the stride-8 term.
        weight_s4: of the stride-4 term.
        weight_mask: of the mask term against the teacher's masks; 0 leaves the decoder out.
        prompts_per_slice: objects prompted on each slice.
        box_share: share of box prompts; the others are points.
        second_click: share of the steps that refine the student's answer by one more click.
        augment: strength of photometric augmentation of the student's input; geometry stays.
        views: slices to learn from: in all cached views, or untransformed alone. Each view is a
            row of its own, with the image that the teacher saw: reading it replays the view.
    """

    learning_rate: float = Field(default=1.5e-3, gt=0)
    weight_s16: float = Field(default=1.0, ge=0)
    weight_s8: float = Field(default=0.5, ge=0)
    weight_s4: float = Field(default=0.5, ge=0)
    weight_mask: float = Field(default=0.2, ge=0)
    prompts_per_slice: int = Field(default=2, ge=1)
    box_share: float = Field(default=0.5, ge=0, le=1)
    second_click: float = Field(default=0.0, ge=0, le=1)
    augment: float = Field(default=0.5, ge=0)
    views: Literal["all", "identity"] = "all"


class EncoderModule(nn.Module):
    """Student + the teacher's decoder; forward gives the loss terms of a batch."""

    def __init__(self, runner: SliceRunner, teacher: TeacherHeads, config: EncoderConfig) -> None:
        super().__init__()
        self.student = runner.model
        self.runner = runner
        # Not a submodule: the frozen teacher's decoder is no part of the checkpoint.
        self.teacher = teacher
        self.config = config
        self.levels = [
            level for level in ("s16", "s8", "s4") if f"features_{level}" in teacher.sigma
        ]
        for level in self.levels:
            self.register_buffer(
                f"sigma_{level}", teacher.sigma[f"features_{level}"], persistent=False
            )
        decoder = "mask_decoder.conv_s" if teacher.is_copied else "mask_decoder."
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(name.startswith(("vision_encoder.", decoder)))

    def forward(self, batch: PromptedSlices) -> dict[str, Tensor]:
        """Loss terms of a batch or of a part of one, by name; ``loss`` is their weighted sum."""
        config = self.config
        device = next(self.student.parameters()).device
        batch = batch.to(device)
        assert isinstance(batch.features, SliceFeatures)
        features = self.runner.encode(batch.pixels)
        terms: dict[str, Tensor] = {}
        loss = features.s16.new_zeros(())
        for level in self.levels:
            sigma: Tensor = getattr(self, f"sigma_{level}")
            own: Tensor = getattr(features, level)
            target = resize_maps(getattr(batch.features, level), own.shape[-1], self.teacher.mode)
            terms[level] = batch.share * feature_loss(own, target, sigma)
            loss = loss + getattr(config, f"weight_{level}") * terms[level]
        if config.weight_mask > 0 and len(batch.slice_of):
            terms["mask"] = batch.prompt_share * self._mask_term(batch, features)
            loss = loss + config.weight_mask * terms["mask"]
        return {"loss": loss, **terms}

    def _mask_term(self, batch: PromptedSlices, features: SliceFeatures) -> Tensor:
        assert isinstance(batch.features, SliceFeatures)
        cached, slice_of = batch.features, batch.slice_of
        answer = self.teacher.answer_on(cached, batch.prompts, slice_of)
        record = self._asked(features, batch.prompts, slice_of)
        term = teacher_mask_term(record, answer)
        # The step's own random stream decides, so that a resumed run decides the same.
        if self.config.second_click > 0 and float(torch.rand(())) < self.config.second_click:
            refined = click_on_error(batch.prompts, record, answer)
            answer = self.teacher.answer_on(cached, refined, slice_of)
            term = (term + teacher_mask_term(self._asked(features, refined, slice_of), answer)) / 2
        return term

    def _asked(self, features: SliceFeatures, prompts: Prompts, slice_of: Tensor) -> SliceRecord:
        return self.runner.prompted(features.take(slice_of), prompts)


def training_rows(reader: CacheReader, config: EncoderConfig) -> np.ndarray:
    """Slice rows of the training split that the stage learns from."""
    view = 0 if config.views == "identity" else None
    return reader.index.select("slices", split="train", view=view)


def run(student: StudentConfig, config: EncoderConfig, context: StageContext) -> Artifact:
    """Distil the encoder; the artifact's ``model`` folder is the student."""
    reader = open_cache(context)
    runner = new_student(student, context.cache, seed=context.seed, device=context.device)
    teacher = TeacherHeads.of_cache(reader, size=runner.image_size, mode=student.resize_targets)
    module = EncoderModule(runner, teacher, config)
    result = train(
        TrainingTask(
            module=module,
            make_batch=SliceStream(
                reader,
                training_rows(reader, config),
                batch_size=config.batch_size,
                prompts_per_slice=config.prompts_per_slice,
                smallest=smallest_object(reader),
                box_share=config.box_share,
                augment=config.augment,
                features=True,
                seed=context.seed,
                size=runner.image_size,
            ),
            parts=lambda batch: batch.split(config.at_once),
            validate=cache_validation(reader, runner, recalibrate=True),
            best_by="score",
        ),
        config,
        context,
        name="encoder",
    )
    recalibrate_on_cache(reader, runner)
    files = hand_on(runner, context, {"stage": "encoder", "fingerprint": context.fingerprint})
    return Artifact(files=files, summary=result.summary())
