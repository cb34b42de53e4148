"""Stage 2: the student's memory learns the teacher's propagation, from cached tracks alone.

Windows start at the prompted slice and teach from the next one on. First the student remembers what
the teacher remembered (teacher forcing), then what it made itself.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from cache.dataset import TrackBatch, select_tracks
from cache.stored import to_stored
from efficient_medsam2.networks.records import MemoryEntry, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig, check_student_size
from stages.context import Artifact, StageContext
from stages.training.answers import teacher_terms
from stages.training.heads import feature_deviations
from stages.training.loop import share_done, train
from stages.training.losses import feature_loss
from stages.training.memory_batches import (
    AnswerStep,
    ForcedWindows,
    RememberStep,
    forced_windows,
    window_parts,
)
from stages.training.norms import freeze_norms
from stages.training.settings import StudentLoopConfig
from stages.training.student import (
    cached_size,
    hand_on,
    open_cache,
    student_of_stage,
    why_no_tracks,
)
from stages.training.task import TrainingTask
from stages.training.tensors import detached
from stages.training.tracking import Start, answer_step, remember_step
from stages.training.validation import cache_validation

__all__ = ["MemoryConfig", "run"]


class MemoryConfig(StudentLoopConfig):
    """Settings of memory distillation; ``batch_size`` counts tracks.

    Attributes:
        enabled: whether the student has this stage; without it finetuning starts from the student
            of the encoder stage, and the baseline has its steps less.
        at_once: tracks of a batch that are followed together, one slice of each at a time.
        length: slices of a window, the prompted one included.
        forced: share of the steps that remember the teacher's memories.
        teach_memory: share of the steps in which the memory encoder learns; the fewer, the more
            each weighs.
        temperature: of the distillation of logits.
        weight_feature: weight of the post-memory feature term.
        weight_memory: of the memory encoder's term, over one slice of the window, drawn; the mean
            over all steps has this weight, whatever share of them teaches.
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
    at_once: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    length: int = Field(default=4, ge=2)
    forced: float = Field(default=0.5, ge=0, le=1)
    teach_memory: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    weight_feature: float = Field(default=1.0, ge=0)
    weight_memory: float = Field(default=0.2, ge=0)
    weight_kl: float = Field(default=1.0, ge=0)
    weight_dice: float = Field(default=1.0, ge=0)
    weight_presence: float = Field(default=0.2, ge=0)
    weight_encoder: float = Field(default=0.3, ge=0)
    train_encoder: bool = True
    augment: float = Field(default=0.5, ge=0)


class MemoryModule(nn.Module):
    """The student on windows, a slice of them at a time.

    In a batch the student remembers either the teacher's memories or its own, without what they
    were made from: each slice learns by itself, and the memory encoder from the teacher's memory of
    one slice of the window, drawn, of what the student saw there and answered.
    """

    def __init__(
        self, runner: SliceRunner, sigma: Mapping[str, Tensor], config: MemoryConfig
    ) -> None:
        super().__init__()
        self.student = runner.model
        self.runner = runner
        self.config = config
        self._bank: list[MemoryEntry] = []
        self._answered: tuple[SliceFeatures, SliceRecord] | None = None
        for name in ("features_s16", "track_conditioned_s16", "track_memory_s16"):
            self.register_buffer(f"sigma_{name}", sigma[name], persistent=False)
        # Prompt encoder, mask decoder and what stands for no memory stay the teacher's.
        frozen = ["prompt_encoder.", "mask_decoder.", "no_memory_embedding"]
        if not config.train_encoder:
            frozen.append("vision_encoder.")
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)))

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; the encoder's batch statistics stay those of stage 1."""
        super().train(mode)
        freeze_norms(self)
        return self

    def parts(self, batch: ForcedWindows) -> list[AnswerStep | RememberStep]:
        """What goes through the student together: see ``window_parts``."""
        config = self.config
        return window_parts(batch, config.at_once, teach_memory=config.teach_memory)

    def forward(self, part: AnswerStep | RememberStep) -> dict[str, Tensor]:
        """Loss terms of a part of a batch by name; ``loss`` is their weighted sum."""
        device = next(self.student.parameters()).device
        if isinstance(part, RememberStep):
            terms = self._remember(part, device)
        elif part.step == 0:
            self._begin(part, device)
            return {"loss": torch.zeros((), device=device)}
        else:
            terms = self._answer(part, device)
        loss = torch.stack(
            [getattr(self.config, f"weight_{name}") * term for name, term in terms.items()]
        ).sum()
        return {"loss": loss, **terms}

    @torch.no_grad()
    def _begin(self, part: AnswerStep, device: torch.device) -> None:
        """Answer the prompt: there is no memory yet to learn to look at."""
        self._bank = []
        features = self.runner.encode(part.windows.pixels_of(0, device))
        self._answered_on(part, features, Start.of(part.windows, device), bank=[])

    def _answer(self, part: AnswerStep, device: torch.device) -> dict[str, Tensor]:
        """Follow to a slice; terms of the answers."""
        windows, step, cached = part.windows, part.step, part.windows.cached
        # While the teacher's memories are remembered, the image encoder stays as stage 1 left it.
        learns = self.config.train_encoder and not part.forced and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            features = self.runner.encode(windows.pixels_of(step, device))
        bank = _teacher_memories(cached, step, device) if part.forced else self._bank
        record = self._answered_on(part, features, Start.of(windows, device), bank)
        terms = teacher_terms(
            record,
            to_stored(cached.mask_logits[:, step : step + 1], device),
            cached.object_score[:, step].to(device),
            temperature=self.config.temperature,
        )
        conditioned = to_stored(cached.conditioned_s16[:, step], device)
        terms["feature"] = self._feature_loss(
            record.conditioned_s16, conditioned, "track_conditioned_s16"
        )
        if not part.forced:
            assert cached.features_s16 is not None
            raw = to_stored(cached.features_s16[:, step], device)
            terms["encoder"] = self._feature_loss(features.s16, raw, "features_s16")
        return {name: part.shares[name] * term for name, term in terms.items()}

    def _answered_on(
        self, part: AnswerStep, features: SliceFeatures, start: Start, bank: Sequence[MemoryEntry]
    ) -> SliceRecord:
        """What the student answers; what later parts need of it is kept, without gradients."""
        record = answer_step(
            self.runner,
            features,
            start,
            bank,
            position=part.step,
            num_frames=part.windows.cached.num_frames,
        )
        self._answered = detached(features), detached(record)
        if part.remember:
            with torch.no_grad():
                own = remember_step(self.runner, *self._answered, start, position=part.step)
            self._bank = [*self._bank, own]
        return record

    def _remember(self, part: RememberStep, device: torch.device) -> dict[str, Tensor]:
        """The memory encoder's term, over the slice that was answered last."""
        assert self._answered is not None
        features, record = self._answered
        start = Start.of(part.windows, device)
        own = remember_step(self.runner, features, record, start, position=part.step)
        if part.remember:
            self._bank = [*self._bank, detached(own)]
        memory = to_stored(part.windows.cached.memory_s16[:, part.step], device)
        term = self._feature_loss(own.memory, memory, "track_memory_s16")
        return {"memory": part.share * term}

    def _feature_loss(self, own: Tensor, teacher: Tensor, name: str) -> Tensor:
        sigma: Tensor = getattr(self, f"sigma_{name}")
        return feature_loss(own, teacher, sigma)


def _teacher_memories(cached: TrackBatch, step: int, device: torch.device) -> list[MemoryEntry]:
    """Those of the steps before one."""
    memory = to_stored(cached.memory_s16[:, :step], device, torch.float32)
    pointer = cached.object_pointer[:, :step].to(device)
    return [
        MemoryEntry(
            position=before,
            prompted=before == 0,
            memory=memory[:, before],
            object_pointer=pointer[:, before],
        )
        for before in range(step)
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
    make_batch = forced_windows(
        reader,
        tracks,
        batch_size=config.batch_size,
        length=length,
        augment=config.augment,
        seed=context.seed,
        size=runner.image_size,
        mode=student.resize_targets,
        forced=lambda number: share_done(number, config) < config.forced,
    )
    module = MemoryModule(runner, feature_deviations(reader), config)
    result = train(
        TrainingTask(
            module=module,
            make_batch=make_batch,
            parts=module.parts,
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
