"""What a student stage may know of a teacher: its decoder and its features' deviations."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Sam2VideoModel, SamConfig, SamModel

from cache import CacheReader
from cache.side_files import checked_folder
from efficient_medsam2.networks.model_folder import (
    load_weights,
    read_kind,
    read_model_config,
    read_sam1_config,
)
from efficient_medsam2.networks.records import Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1 import PromptedNetwork, Sam1Runner
from efficient_medsam2.networks.student import ResizeMode
from stages.side_files import TEACHER_FOLDER
from stages.training.resizing import resize_maps, resize_prompts

__all__ = ["TeacherHeads", "feature_deviations"]

_PIXELS_AT_ONCE = 16 * 512**2  # of the inputs that belong to the rows of one decoder call


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
    model.load_state_dict(load_weights(folder, without=("vision_encoder.",)))
    return Sam1Runner(model)


def _take_over(model: nn.Module, folder: Path, *, without: tuple[str, ...]) -> None:
    """Give a network without values those of a model folder, all but some."""
    weights = load_weights(folder, without=without)
    # Copies: what is read may be a view of the file.
    model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)


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
