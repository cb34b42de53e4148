"""Stage 3: fine-tuning on labels; and the baseline, the same student without distillation.

Both see slices with box and point prompts and windows of tracks. Fine-tuning keeps a small
distillation term on the teacher's masks (from cached features); the baseline has labels alone.
"""

from typing import Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from cache import CacheReader
from efficient_medsam2.networks.records import SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig, check_student_size
from stages.context import Artifact, StageContext
from stages.training.answers import label_terms, teacher_terms
from stages.training.heads import TeacherHeads
from stages.training.labelled import labelled_rows, labelled_tracks
from stages.training.labelled_batches import (
    LabelledBatch,
    LabelledSlices,
    LabelledWindows,
    labelled_parts,
)
from stages.training.loop import train
from stages.training.norms import freeze_norms
from stages.training.settings import StudentLoopConfig
from stages.training.slice_batches import SliceStream
from stages.training.student import (
    cached_size,
    hand_on,
    new_student,
    open_cache,
    smallest_object,
    student_of_stage,
)
from stages.training.task import TrainingTask
from stages.training.track_batches import TrackStream
from stages.training.tracking import Start, follow_windows, steps_of
from stages.training.validation import cache_validation, recalibrate_on_cache

__all__ = ["BaselineConfig", "FinetuneConfig", "run", "run_baseline"]


class LabelledConfig(StudentLoopConfig):
    """Settings of training on labels; ``batch_size`` counts slices.

    Attributes:
        tracks: tracks in a batch, besides the slices; 0 leaves them out.
        track_every: batches from one with tracks to the next.
        length: slices of a window.
        prompts_per_slice: objects prompted on each slice.
        box_share: share of box prompts; the others are points.
        weight_bce: weight of the cross-entropy.
        weight_dice: of the soft Dice term.
        weight_iou: of the predicted IoU's L1.
        weight_presence: of the object score term.
        weight_track: of all terms of the tracks relative to those of the slices.
        augment: strength of photometric augmentation.
    """

    tracks: int = Field(default=2, ge=0)
    track_every: int = Field(default=3, ge=1)
    length: int = Field(default=4, ge=2)
    prompts_per_slice: int = Field(default=2, ge=1)
    box_share: float = Field(default=0.75, ge=0, le=1)
    weight_bce: float = Field(default=1.0, ge=0)
    weight_dice: float = Field(default=1.0, ge=0)
    weight_iou: float = Field(default=0.1, ge=0)
    weight_presence: float = Field(default=0.1, ge=0)
    weight_track: float = Field(default=1.0, ge=0)
    augment: float = Field(default=0.5, ge=0)


class FinetuneConfig(LabelledConfig):
    """Settings of fine-tuning.

    Attributes:
        label_fractions: shares of the training labels; each gives a stage of its own.
        weight_kl: weight of the KL to the teacher's logits.
        temperature: of that KL.
    """

    learning_rate: float = Field(default=1e-4, gt=0)
    label_fractions: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    weight_kl: float = Field(default=0.1, ge=0)
    temperature: float = Field(default=4.0, gt=0)

    @field_validator("label_fractions")
    @classmethod
    def _are_distinct_shares(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < fraction <= 1 for fraction in fractions):
            raise ValueError(f"label fractions lie above 0 and up to 1, got {fractions}")
        if len(set(fractions)) < len(fractions):
            raise ValueError(f"each label fraction gives one stage, name it once: {fractions}")
        return fractions


class BaselineConfig(LabelledConfig):
    """Settings of the baseline; its steps are those of all stages of the student together.

    Attributes:
        enabled: whether the run has a baseline.
    """

    enabled: bool = True
    learning_rate: float = Field(default=1e-3, gt=0)


class LabelledModule(nn.Module):
    """The whole student on labels; forward gives the loss terms of a part of a batch."""

    def __init__(
        self, runner: SliceRunner, config: LabelledConfig, teacher: TeacherHeads | None
    ) -> None:
        super().__init__()
        self.student = runner.model
        self.runner = runner
        self.config = config
        # Not a submodule: the frozen teacher's decoder is no part of the checkpoint.
        self.teacher = teacher
        self.student.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; a distilled encoder keeps its batch statistics."""
        super().train(mode)
        if isinstance(self.config, FinetuneConfig):
            freeze_norms(self)
        return self

    def parts(self, batch: LabelledBatch) -> list[LabelledSlices | LabelledWindows]:
        """What goes through the student together: see ``labelled_parts``."""
        return labelled_parts(batch, self.config.at_once)

    def forward(self, part: LabelledSlices | LabelledWindows) -> dict[str, Tensor]:
        """Loss terms of a part of a batch by name; ``loss`` is their weighted sum."""
        device = next(self.student.parameters()).device
        if isinstance(part, LabelledSlices):
            terms = self._slices(part, device)
            return {"loss": self._weighted(terms), **terms}
        terms = self._windows(part, device)
        loss = self.config.weight_track * self._weighted(terms)
        return {"loss": loss, **{f"track_{name}": term for name, term in terms.items()}}

    def _slices(self, part: LabelledSlices, device: torch.device) -> dict[str, Tensor]:
        slices = part.slices.to(device)
        features = self.runner.encode(slices.pixels)
        record = self.runner.prompted(features.take(slices.slice_of), slices.prompts)
        terms = self._labels(
            record, slices.masks.float(), labelled=slices.prompt_share, present=part.present
        )
        if self.teacher is not None:
            assert isinstance(self.config, FinetuneConfig)
            assert isinstance(slices.features, SliceFeatures)
            answer = self.teacher.answer_on(slices.features, slices.prompts, slices.slice_of)
            distilled = teacher_terms(
                record,
                answer.mask_logits,
                answer.object_score,
                temperature=self.config.temperature,
            )
            terms["kl"] = slices.prompt_share * distilled["kl"]
        return terms

    def _labels(
        self, record: SliceRecord, masks: Tensor, *, labelled: float, present: float
    ) -> dict[str, Tensor]:
        """Terms against labels, as their shares of those over all rows and over present objects."""
        config = self.config
        terms = label_terms(record, masks, bce=config.weight_bce, dice=config.weight_dice)
        shares = {"presence": labelled, "mask": present, "iou": present}
        return {name: shares[name] * term for name, term in terms.items()}

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        config = self.config
        weights = {"mask": 1.0, "iou": config.weight_iou, "presence": config.weight_presence}
        if isinstance(config, FinetuneConfig):
            weights["kl"] = config.weight_kl
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def _windows(self, part: LabelledWindows, device: torch.device) -> dict[str, Tensor]:
        """Terms over the labelled steps of windows, that with the prompt left out."""
        windows = part.windows
        tracks, length = windows.labelled.shape
        features = self.runner.encode(windows.pixels_on(device))
        records, _ = follow_windows(
            self.runner,
            steps_of(features, tracks, length),
            Start.of(windows, device),
            num_frames=windows.cached.num_frames,
        )
        masks = windows.masks.to(device).float()
        summed: dict[str, Tensor] = {}
        for step in range(1, length):
            chosen = windows.labelled[:, step].nonzero()[:, 0].to(device)
            if len(chosen):
                terms = self._labels(
                    records[step].take(chosen),
                    masks[chosen, step],
                    labelled=float(part.labelled_L[step]),
                    present=float(part.present_L[step]),
                )
                summed = {name: summed.get(name, 0) + term for name, term in terms.items()}
        return summed


def run(
    student: StudentConfig,
    config: FinetuneConfig,
    context: StageContext,
    *,
    label_fraction: float,
) -> Artifact:
    """Fine-tune the student on a fraction of the labels.

    It is the memory stage's, or the encoder stage's where ``context.inputs`` has no ``memory``.
    """
    reader = open_cache(context)
    check_student_size(student, cached_size(reader))
    runner = student_of_stage(context, "memory" if "memory" in context.inputs else "encoder")
    teacher = None
    if config.weight_kl > 0:
        teacher = TeacherHeads.of_cache(reader, size=runner.image_size, mode=student.resize_targets)
    return _train(reader, runner, config, context, teacher, label_fraction, name="finetune")


def run_baseline(
    student: StudentConfig,
    config: BaselineConfig,
    context: StageContext,
    *,
    steps: int,
    label_fraction: float,
) -> Artifact:
    """Train the same student from the same initial weights on labels alone."""
    reader = open_cache(context)
    runner = new_student(student, context.cache, seed=context.seed, device=context.device)
    config = config.model_copy(update={"steps": steps})
    return _train(reader, runner, config, context, None, label_fraction, name="baseline")


def _train(
    reader: CacheReader,
    runner: SliceRunner,
    config: LabelledConfig,
    context: StageContext,
    teacher: TeacherHeads | None,
    label_fraction: float,
    *,
    name: str,
) -> Artifact:
    rows = labelled_rows(reader, label_fraction, seed=context.seed)
    slices = SliceStream(
        reader,
        rows,
        batch_size=config.batch_size,
        prompts_per_slice=config.prompts_per_slice,
        smallest=smallest_object(reader),
        box_share=config.box_share,
        augment=config.augment,
        features=teacher is not None,
        seed=context.seed,
        size=runner.image_size,
    )
    windows = labelled_tracks(reader, rows, length=config.length) if config.tracks else None
    tracks = windows and TrackStream(
        reader,
        windows.tracks,
        batch_size=config.tracks,
        length=windows.length,
        augment=config.augment,
        labelled_rows=rows,
        features=False,
        seed=context.seed,
        size=runner.image_size,
    )

    def make_batch(number: int) -> LabelledBatch:
        turn, rest = divmod(number, config.track_every)
        followed = tracks(turn) if tracks and rest == 0 else None
        return LabelledBatch(slices=slices(number), tracks=followed)

    module = LabelledModule(runner, config, teacher)
    result = train(
        TrainingTask(
            module=module,
            make_batch=make_batch,
            parts=module.parts,
            validate=cache_validation(reader, runner, recalibrate=name == "baseline"),
            best_by="score",
            may_keep_start=name == "finetune",
        ),
        config,
        context,
        name=context.directory.name,
    )
    if name == "baseline":
        recalibrate_on_cache(reader, runner)
    origin = {"stage": name, "label_fraction": label_fraction, "fingerprint": context.fingerprint}
    files = hand_on(runner, context, origin)
    summary = result.summary() | {"labelled_slices": len(rows), "label_fraction": label_fraction}
    return Artifact(files=files, summary=summary)
