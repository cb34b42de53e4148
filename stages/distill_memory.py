"""Stage 2: the student's memory learns the teacher's propagation, from cached tracks alone.

Windows start at the prompted slice. First the student remembers what the teacher remembered
(teacher forcing), then what it made itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from cache.dataset import TrackBatch, select_tracks
from cache.stored import to_stored
from efficient_medsam2.networks.records import MemoryEntry
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig, check_student_size
from stages.context import Artifact, StageContext
from stages.training.answers import teacher_terms
from stages.training.batches import TrackStream, TrackWindows
from stages.training.heads import feature_deviations
from stages.training.loop import share_done, train
from stages.training.losses import feature_loss
from stages.training.norms import freeze_norms
from stages.training.recompute import encode
from stages.training.settings import StudentLoopConfig
from stages.training.student import (
    cached_size,
    hand_on,
    open_cache,
    student_of_stage,
    why_no_tracks,
)
from stages.training.task import TrainingTask
from stages.training.tracking import follow_windows, prompted_by_mask, steps_of
from stages.training.validation import cache_validation

__all__ = ["MemoryConfig", "run"]


class MemoryConfig(StudentLoopConfig):
    """Settings of memory distillation; ``batch_size`` counts tracks.

    Attributes:
        enabled: whether the student has this stage; without it finetuning starts from the student
            of the encoder stage, and the baseline has its steps less.
        length: slices of a window, the prompted one included.
        forced: share of the steps that remember the teacher's memories.
        temperature: of the distillation of logits.
        weight_feature: weight of the post-memory feature term.
        weight_memory: of the memory encoder's term, over the student's own memories that are
            remembered; where the teacher's are, over those of one slice of the window, drawn.
        weight_kl: of the logits' KL term.
        weight_dice: of the soft Dice term.
        weight_presence: of the object score term.
        weight_encoder: of the stage-1 term on raw stride-16 features (EdgeTAM keeps it).
        train_encoder: whether the image encoder learns along, in the steps that remember the
            student's own memories; in the others it keeps still.
        augment: strength of photometric augmentation of the student's input.
    """

    enabled: bool = True
    batch_size: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    length: int = Field(default=4, ge=2)
    forced: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    weight_feature: float = Field(default=1.0, ge=0)
    weight_memory: float = Field(default=0.2, ge=0)
    weight_kl: float = Field(default=1.0, ge=0)
    weight_dice: float = Field(default=1.0, ge=0)
    weight_presence: float = Field(default=0.2, ge=0)
    weight_encoder: float = Field(default=0.3, ge=0)
    train_encoder: bool = True
    augment: float = Field(default=0.5, ge=0)


@dataclass(frozen=True, kw_only=True)
class ForcedWindows:
    """Windows, and whether the teacher's memories are remembered in this batch."""

    windows: TrackWindows
    forced: bool


class MemoryModule(nn.Module):
    """The student on windows; forward gives the loss terms of a batch."""

    def __init__(
        self, runner: SliceRunner, sigma: Mapping[str, Tensor], config: MemoryConfig
    ) -> None:
        super().__init__()
        self.student = runner.model
        self.runner = runner
        self.config = config
        for name in ("features_s16", "track_conditioned_s16", "track_memory_s16"):
            self.register_buffer(f"sigma_{name}", sigma[name], persistent=False)
        # The prompt encoder and the mask decoder stay the teacher's.
        frozen = ["prompt_encoder.", "mask_decoder."]
        if not config.train_encoder:
            frozen.append("vision_encoder.")
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)))

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; the encoder's batch statistics stay those of stage 1."""
        super().train(mode)
        freeze_norms(self)
        return self

    def forward(self, batch: ForcedWindows) -> dict[str, Tensor]:
        """Loss terms by name; ``loss`` is their weighted sum."""
        config = self.config
        device = next(self.student.parameters()).device
        windows = batch.windows
        cached = windows.cached
        tracks, length = cached.slice_rows.shape
        # While the teacher's memories are remembered, the image encoder stays as stage 1 left it.
        learns = config.train_encoder and not batch.forced and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            features = encode(self.runner, windows.pixels_on(device), recompute=config.recompute)
        # The step's own random stream draws, so that a resumed run draws the same.
        drawn = [int(torch.randint(length, ()))] if batch.forced else []
        records, own = follow_windows(
            self.runner,
            steps_of(features, tracks, length),
            windows.prompts.to(device),
            num_frames=cached.num_frames,
            masks_T1SS=windows.masks[:, :1],
            by_mask=prompted_by_mask(cached),
            forced=_teacher_memories(cached, device) if batch.forced else None,
            also_remember=drawn,
            recompute=config.recompute,
        )
        assert cached.features_s16 is not None
        raw = to_stored(cached.features_s16, device).flatten(0, 1)
        conditioned = to_stored(cached.conditioned_s16, device)
        memory = to_stored(cached.memory_s16, device)
        logits, score = to_stored(cached.mask_logits, device), cached.object_score.to(device)
        collected: dict[str, list[Tensor]] = {}
        for step in range(length):
            terms = teacher_terms(
                records[step],
                logits[:, step : step + 1],
                score[:, step],
                temperature=config.temperature,
            )
            if step > 0:
                terms["feature"] = feature_loss(
                    records[step].conditioned_s16,
                    conditioned[:, step],
                    self.sigma_track_conditioned_s16,  # type: ignore[arg-type]
                )
            if step in own:
                terms["memory"] = feature_loss(
                    own[step].memory,
                    memory[:, step],
                    self.sigma_track_memory_s16,  # type: ignore[arg-type]
                )
            for name, term in terms.items():
                collected.setdefault(name, []).append(term)
        means = {name: torch.stack(values).mean() for name, values in collected.items()}
        means["encoder"] = feature_loss(
            features.s16,
            raw,
            self.sigma_features_s16,  # type: ignore[arg-type]
        )
        loss = torch.stack(
            [getattr(config, f"weight_{name}") * term for name, term in means.items()]
        ).sum()
        return {"loss": loss, **means}


def _teacher_memories(cached: TrackBatch, device: torch.device) -> list[MemoryEntry]:
    memory = to_stored(cached.memory_s16, device, torch.float32)
    pointer = cached.object_pointer.to(device)
    return [
        MemoryEntry(
            position=step,
            prompted=step == 0,
            memory=memory[:, step],
            object_pointer=pointer[:, step],
        )
        for step in range(memory.shape[1])
    ]


def run(student: StudentConfig, config: MemoryConfig, context: StageContext) -> Artifact:
    """Distil the memory; the artifact's ``model`` folder is the student.

    Data of single slices have no tracks; the student is then handed on as it is.
    """
    reader = open_cache(context)
    check_student_size(student, cached_size(reader))
    runner = student_of_stage(context, "encoder")
    validate = cache_validation(reader, runner)
    lengths = reader.index.tracks.lengths
    tracks = select_tracks(reader, split="train", minimum_length=2)
    if not len(tracks):
        context.progress.note(f"memory: {why_no_tracks(reader)}; the student is handed on as it is")
        files = hand_on(runner, context, {"stage": "memory", "trained": False})
        return Artifact(files=files, summary={"steps": 0, "skipped": "no tracks"})
    length = min(config.length, int(lengths[tracks].max()))
    tracks = select_tracks(reader, split="train", minimum_length=length)
    stream = TrackStream(
        reader,
        tracks,
        batch_size=config.batch_size,
        length=length,
        augment=config.augment,
        labelled_rows=None,
        features=True,
        seed=context.seed,
        size=runner.image_size,
        mode=student.resize_targets,
    )

    def make_batch(number: int) -> ForcedWindows:
        forced = share_done(number, config) < config.forced
        return ForcedWindows(windows=stream(number), forced=forced)

    module = MemoryModule(runner, feature_deviations(reader), config)
    result = train(
        TrainingTask(
            module=module,
            make_batch=make_batch,
            validate=validate,
            best_by="score",
            may_keep_start=True,
        ),
        config,
        context,
        name="memory",
    )
    files = hand_on(runner, context, {"stage": "memory", "fingerprint": context.fingerprint})
    return Artifact(files=files, summary=result.summary())
