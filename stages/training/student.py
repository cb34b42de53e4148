"""The student in a stage: made from a cache, taken over from the stage before, handed on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from cache import CacheReader
from cache.address import place_of
from cache.mending import precompute_command
from cache.side_files import checked_folder
from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.networks.model_folder import (
    MODEL_FILES,
    load_runner,
    load_weights,
    read_kind,
    read_model_config,
    read_sam1_config,
    save_model,
)
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1_student import build_sam1_student
from efficient_medsam2.networks.student import StudentConfig, build_student
from stages.context import StageContext
from stages.errors import StageInputError
from stages.side_files import TEACHER_FOLDER
from stages.training.checkpoint import remove_checkpoint

__all__ = [
    "MODEL_FOLDER",
    "StudentConfig",
    "cached_size",
    "hand_on",
    "new_student",
    "open_cache",
    "smallest_object",
    "student_of_stage",
    "why_no_tracks",
]

MODEL_FOLDER = "model"
"""Model folder inside a stage's artifact folder."""

_ENCODER = ("vision_encoder.",)


def open_cache(context: StageContext) -> CacheReader:
    """The run's cache, complete.

    Raises:
        StageInputError: it is not complete, or has no training case.
        CacheError: it is missing or damaged.
    """
    reader = CacheReader(context.cache, mirror=context.mirror)
    if not reader.complete:
        raise StageInputError(
            f"{place_of(context.cache)}: the cache is not complete. Finish it: "
            f"{precompute_command(context.cache)}"
        )
    if "train" not in reader.index.cases.splits:
        raise StageInputError(
            f"{place_of(context.cache)}: no case of the cache is in the training split. Give "
            "it a share and make the cache anew: efficient-medsam2 precompute --force precompute "
            "--set 'data.splits=[0.7, 0.1, 0.2]'"
        )
    return reader


def new_student(config: StudentConfig, cache: Path, *, seed: int, device: str) -> SliceRunner:
    """A student with the teacher's decoder, copied from the cache.

    Of a SAM 1 teacher it takes what fits into a SAM 2 decoder, and its memory starts fresh.

    Args:
        config: of the student.
        cache: folder of the cache.
        seed: of the initialisation.
        device: where it is going to be trained, as in the config: ``auto``, ``cpu``, ``cuda``.

    Raises:
        NetworkConfigError: the student's settings do not fit the teacher.
        WeightsError: the cache's teacher folder is incomplete.
        CacheCorruptError: it is not what was written.
    """
    folder = checked_folder(cache, TEACHER_FOLDER)
    if read_kind(folder) == "medsam":
        sam1, weights = read_sam1_config(folder), load_weights(folder, without=_ENCODER)
        return _arranged(SliceRunner(build_sam1_student(config, sam1, weights, seed=seed)), device)
    teacher_config, options, _ = read_model_config(folder)
    layers = range(config.memory_layers, int(teacher_config.memory_attention_num_layers))
    unused = tuple(f"memory_attention.layers.{layer}." for layer in layers)
    weights = load_weights(folder, without=(*_ENCODER, *unused))
    student = build_student(config, teacher_config, weights, seed=seed)
    return _arranged(SliceRunner(student, options), device)


def student_of_stage(context: StageContext, stage: str) -> SliceRunner:
    """The student that an earlier stage handed on.

    Raises:
        StageInputError: that stage is no input of this one.
        WeightsError: its model folder is incomplete.
    """
    if stage not in context.inputs:
        raise StageInputError(f"stage {stage} is no input here; run it: efficient-medsam2 run")
    return _arranged(load_runner(context.inputs[stage] / MODEL_FOLDER), context.device)


def _arranged(runner: SliceRunner, device: str) -> SliceRunner:
    """Lay the weights of convolutions out as the device computes fastest with them.

    On a CPU that is channels last in the encoders of images and of memories, above all for
    depthwise convolutions (``benchmarks.cached_vs_online`` times such steps).
    """
    if pick_device(device).type == "cpu":
        for part in (runner.model.vision_encoder, runner.model.memory_encoder):
            part.to(memory_format=torch.channels_last)
    return runner


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
    if PartialState(cpu=pick_device(context.device).type == "cpu").is_main_process:
        save_model(runner, context.directory / MODEL_FOLDER, origin=origin, dtype=dtype)
        remove_checkpoint(context.directory)
    return tuple(f"{MODEL_FOLDER}/{name}" for name in MODEL_FILES)


def cached_size(reader: CacheReader) -> int:
    """Side in pixels of the teacher's network input, which the cached images have."""
    return int(reader.spec.preprocessing["image_size"])


def why_no_tracks(reader: CacheReader) -> str:
    """Why a cache has no track to learn from, and what to do about it."""
    if read_kind(reader.path / TEACHER_FOLDER) == "medsam":
        return (
            "the cache has no tracks, because its teacher, MedSAM, has no memory. To learn "
            "propagation, make a cache with a teacher that has one: --set teacher.kind=medsam2"
        )
    return "the data are single slices, so there is no propagation to learn"


def smallest_object(reader: CacheReader) -> int:
    """Objects below so many pixels were not prompted when the cache was made, and are not here."""
    return int(reader.spec.precompute["data.smallest"])
