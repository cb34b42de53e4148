"""The student in a stage: made from a cache, taken over from the stage before, handed on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import Sam2VideoModel, SamConfig, SamModel

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
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.records import Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1 import PromptedNetwork, Sam1Runner
from efficient_medsam2.networks.sam1_student import build_sam1_student
from efficient_medsam2.networks.student import ResizeMode, StudentConfig, build_student
from stages.context import StageContext
from stages.errors import StageInputError
from stages.side_files import TEACHER_FOLDER
from stages.training.checkpoint import remove_checkpoint
from stages.training.resizing import resize_maps, resize_prompts

__all__ = [
    "MODEL_FOLDER",
    "StudentConfig",
    "TeacherHeads",
    "cached_size",
    "feature_deviations",
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
_PIXELS_AT_ONCE = 16 * 512**2  # of the inputs that belong to the rows of one decoder call


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
        student = build_sam1_student(config, sam1, weights, seed=seed)
        options = RunnerOptions(memory_pool=config.memory_pool)
        return _arranged(SliceRunner(student, options), device)
    teacher_config, options, _ = read_model_config(folder)
    layers = range(config.memory_layers, int(teacher_config.memory_attention_num_layers))
    unused = tuple(f"memory_attention.layers.{layer}." for layer in layers)
    weights = load_weights(folder, without=(*_ENCODER, *unused))
    student = build_student(config, teacher_config, weights, seed=seed)
    options = replace(options, memory_pool=config.memory_pool)
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


@dataclass(frozen=True, kw_only=True)
class TeacherHeads:
    """What a student stage may know of a teacher: its decoder and its features' deviations.

    Attributes:
        runner: prompt encoder and mask decoder, frozen; the image encoder is left out.
        sigma: level or array name → (C,) standard deviation per channel.
        size: side of the student's network input in pixels.
        mode: how logits come to the student's grid where the teacher's input has another size.
        is_copied: whether a student's decoder is this one's copy (SAM 2), or only starts near it
            and has to be trained (SAM 1).
    """

    runner: PromptedNetwork
    sigma: Mapping[str, Tensor]
    size: int
    mode: ResizeMode | None
    is_copied: bool

    @classmethod
    def of_cache(
        cls, reader: CacheReader, *, size: int | None = None, mode: ResizeMode | None = None
    ) -> "TeacherHeads":
        """Take decoder and deviations from a cache.

        Args:
            reader: the cache.
            size: of the student's input; the teacher's where None.
            mode: how logits are resized where the sizes differ.

        Raises:
            CacheCorruptError: the teacher's folder or the statistics are not what was written.
            WeightsError: the folder is incomplete.
        """
        folder = checked_folder(reader.path, TEACHER_FOLDER)
        is_sam1 = read_kind(folder) == "medsam"
        runner = _sam1_heads(folder) if is_sam1 else _sam2_heads(folder)
        runner.model.eval().requires_grad_(False)
        return cls(
            runner=runner,
            sigma=feature_deviations(reader),
            size=size or runner.image_size,
            mode=mode,
            is_copied=not is_sam1,
        )

    @torch.no_grad()
    def answer(self, features: SliceFeatures, prompts: Prompts) -> SliceRecord:
        """The teacher's masks for any prompts, from its cached features alone.

        Args:
            features: the teacher's, R rows; float32 and on the device that is to be used.
            prompts: R prompts in pixels of the STUDENT's input.

        Returns:
            What the full teacher would answer; logits on the student's grid, (R, M, S/4, S/4).
        """
        self.runner.model.to(features.s16.device)
        own = self.runner.image_size
        asked = resize_prompts(prompts, before=self.size, after=own, mode=self.mode)
        record = self.runner.prompted(features, asked)
        if self.size == own:
            return record
        logits, visible, candidates = (
            resize_maps(maps, self.size // 4, self.mode)
            for maps in (record.mask_logits, record.visible_logits, record.candidate_logits)
        )
        return replace(
            record, mask_logits=logits, visible_logits=visible, candidate_logits=candidates
        )

    def answer_on(
        self, features: SliceFeatures, prompts: Prompts, slice_of_R: Tensor
    ) -> SliceRecord:
        """``answer`` where prompts share slices, so many rows at once that memory stays small.

        Args:
            features: the teacher's of the slices.
            prompts: as for ``answer``.
            slice_of_R: which slice each prompt is on.
        """
        at_once = max(1, _PIXELS_AT_ONCE // self.runner.image_size**2)
        rows = torch.arange(len(slice_of_R), device=slice_of_R.device)
        return SliceRecord.joined(
            [
                self.answer(features.take(slice_of_R[some]), prompts.take(some))
                for some in torch.split(rows, at_once)
            ]
        )


def _sam2_heads(folder: Path) -> SliceRunner:
    config, options, _ = read_model_config(folder)
    # Names and shapes alone: most of the network is left out again.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = Sam2VideoModel(config)
    left_out = ("vision_encoder", "memory_attention", "memory_encoder")
    for name in left_out:
        setattr(model, name, nn.Identity())
    _take_over(model, folder, without=tuple(f"{name}." for name in left_out))
    return SliceRunner(model, options)


def _sam1_heads(folder: Path) -> Sam1Runner:
    config = read_sam1_config(folder)
    small = config.to_dict()
    small["vision_config"]["num_hidden_layers"] = 0
    with torch.random.fork_rng(devices=[]):
        model = SamModel(SamConfig.from_dict(small))
    model.vision_encoder = nn.Identity()
    model.load_state_dict(load_weights(folder, without=_ENCODER))
    return Sam1Runner(model)


def _take_over(model: nn.Module, folder: Path, *, without: tuple[str, ...]) -> None:
    """Give a network without values those of a model folder, all but some."""
    weights = load_weights(folder, without=without)
    # Copies: what is read may be a view of the file.
    model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)


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
