"""The student in a stage: made from a cache, taken over from the stage before, handed on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import Sam2VideoModel

from cache import CacheReader
from efficient_medsam2.networks.model_folder import (
    MODEL_FILES,
    load_runner,
    load_weights,
    read_model_config,
    save_model,
)
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig, build_student
from stages.context import StageContext
from stages.errors import StageInputError
from stages.training.checkpoint import remove_checkpoint

__all__ = [
    "MODEL_FOLDER",
    "StudentConfig",
    "TeacherHeads",
    "feature_deviations",
    "hand_on",
    "new_student",
    "open_cache",
    "smallest_object",
    "student_of_stage",
]

MODEL_FOLDER = "model"
"""Model folder inside a stage's artifact folder."""

TEACHER_FOLDER = "teacher"
"""Model folder inside a cache."""


def open_cache(context: StageContext) -> CacheReader:
    """The run's cache, complete.

    Raises:
        StageInputError: it is not complete, or has no training case.
        CacheError: it is missing or damaged.
    """
    reader = CacheReader(context.cache)
    if not reader.complete:
        raise StageInputError(
            f"{context.cache}: the cache is not complete. Finish it: efficient-medsam2 precompute "
            f"--set cache.path={context.cache}"
        )
    if "train" not in reader.index.cases.splits:
        raise StageInputError(
            f"{context.cache}: no case of the cache is in the training split. Give it a share "
            "and make the cache anew: efficient-medsam2 precompute --force precompute "
            "--set 'data.splits=[0.7, 0.1, 0.2]'"
        )
    return reader


def new_student(config: StudentConfig, cache: Path, *, seed: int) -> SliceRunner:
    """A student with the teacher's decoder, copied from the cache."""
    teacher_config, options, _ = read_model_config(cache / TEACHER_FOLDER)
    model = build_student(config, teacher_config, load_weights(cache / TEACHER_FOLDER), seed=seed)
    return SliceRunner(model, options)


def student_of_stage(context: StageContext, stage: str) -> SliceRunner:
    """The student that an earlier stage handed on.

    Raises:
        StageInputError: that stage is no input of this one.
        WeightsError: its model folder is incomplete.
    """
    if stage not in context.inputs:
        raise StageInputError(f"stage {stage} is no input here; run it: efficient-medsam2 run")
    return load_runner(context.inputs[stage] / MODEL_FOLDER)


def hand_on(
    runner: SliceRunner,
    context: StageContext,
    origin: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[str, ...]:
    """Write a trained network into the stage's artifact and drop the stage's checkpoints.

    They are kept until the weights are there, so a kill in between costs no training.

    Returns:
        Names of the files, relative to the artifact folder.
    """
    runner.model.cpu().eval()
    if PartialState().is_main_process:
        save_model(runner, context.directory / MODEL_FOLDER, origin=origin, dtype=dtype)
        remove_checkpoint(context.directory)
    return tuple(f"{MODEL_FOLDER}/{name}" for name in MODEL_FILES)


@dataclass(frozen=True, kw_only=True)
class TeacherHeads:
    """What a student stage may know of a teacher: its decoder and its features' deviations.

    Attributes:
        runner: prompt encoder and mask decoder, frozen; the image encoder is left out.
        sigma: level or array name → (C,) standard deviation per channel.
    """

    runner: SliceRunner
    sigma: Mapping[str, Tensor]

    @classmethod
    def of_cache(cls, reader: CacheReader) -> "TeacherHeads":
        """Take both from a cache."""
        folder = reader.path / TEACHER_FOLDER
        config, options, _ = read_model_config(folder)
        with torch.random.fork_rng(devices=[]):
            model = Sam2VideoModel(config)
        model.load_state_dict(load_weights(folder))
        model.vision_encoder.backbone = nn.Identity()
        model.eval().requires_grad_(False)
        return cls(runner=SliceRunner(model, options), sigma=feature_deviations(reader))


def feature_deviations(reader: CacheReader) -> dict[str, Tensor]:
    """Array name → (C,) standard deviation per channel, float32, of every cached feature map.

    A nearly constant channel says nothing, and dividing by its deviation would let it drown the
    others: the deviations are kept above a hundredth of their median.
    """
    deviations = {}
    for name, figures in reader.statistics.items():
        sigma = torch.as_tensor(figures.std, dtype=torch.float32)
        deviations[name] = sigma.clamp(min=float(sigma.median()) / 100)
    return deviations


def smallest_object(reader: CacheReader) -> int:
    """Objects below so many pixels were not prompted when the cache was made, and are not here."""
    return int(reader.spec.precompute["data.smallest"])
