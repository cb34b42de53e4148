"""MedSAM (SAM 1, ViT-B at 1024 x 1024) as a teacher: loader and what precompute asks of it.

MedSAM: Ma et al. 2024, bowang-lab/MedSAM, ``medsam_vit_b.pth``, in the naming of
facebookresearch/segment-anything.

Shape letters: B rows, C channels, S network input in pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from efficient_medsam2.errors import WeightsError
from efficient_medsam2.networks.model_folder import save_model
from efficient_medsam2.networks.records import Prompts, SliceRecord
from efficient_medsam2.networks.sam1 import Sam1Runner
from efficient_medsam2.teachers.checkpoint_file import read_state_dict
from efficient_medsam2.teachers.medsam_names import from_segment_anything

__all__ = ["MedSamTeacher", "load_medsam", "medsam_config"]

_FETCH_AGAIN = (
    "Fetch medsam_vit_b.pth (github.com/bowang-lab/MedSAM says where); then "
    "--set teacher.checkpoint=medsam_vit_b.pth"
)

_MADE_ELSEWHERE = ("pixel_mean", "pixel_std")
"""Buffers of the official class that are no weights; MedSAM does not use them."""


def medsam_config() -> SamConfig:
    """SAM 1 with ViT-B at 1024 x 1024.

    The two-way transformer's norms have torch's default epsilon, as the official code has;
    transformers' default is another one.
    """
    return SamConfig(mask_decoder_config={"layer_norm_eps": 1e-5})


class MedSamTeacher:
    """MedSAM as a ``SliceTeacher``.

    Its answers have no object score of their own (``PRESENT_LOGIT`` everywhere) and no object
    pointer (zeros): SAM 1 always draws a mask and remembers nothing.

    Args:
        runner: in ``eval`` mode.
    """

    def __init__(self, runner: Sam1Runner) -> None:
        self._runner = runner

    @property
    def module(self) -> nn.Module:
        """The network."""
        module: nn.Module = self._runner.model
        return module

    @property
    def image_size(self) -> int:
        """S."""
        return self._runner.image_size

    @property
    def level_shapes(self) -> Mapping[str, tuple[int, int, int]]:
        """The image embedding alone, at stride 16."""
        channels = int(self._runner.config.vision_config.output_channels)
        return {"s16": (channels, *self._runner.grid)}

    @property
    def logits_side(self) -> int:
        """Side of the low-res mask logits: S/4."""
        return 4 * self._runner.grid[0]

    @property
    def tracker(self) -> None:
        """SAM 1 has no memory."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the answers besides the weights (JSON values)."""
        vision = self._runner.config.vision_config
        return {
            "image_size": self.image_size,
            "hidden_size": int(vision.output_channels),
            "encoder_width": int(vision.hidden_size),
            "encoder_layers": int(vision.num_hidden_layers),
        }

    def network_input(self, image_BCSS: Tensor) -> Tensor:
        """uint8 images → (B, 3, S, S) float32, each stretched to 0..1."""
        return self._runner.network_input(image_BCSS)

    def encode(self, pixels_B3SS: Tensor) -> dict[str, Tensor]:
        """``s16``: (B, C, S/16, S/16)."""
        return {"s16": self._runner.encode(pixels_B3SS).s16}

    def answer(self, features: Mapping[str, Tensor], prompts: Prompts) -> SliceRecord:
        """One mask a row from the image embedding."""
        return self._runner.prompted(self._runner.features_of(features["s16"]), prompts)

    def save(self, folder: Path, *, origin: Mapping[str, Any]) -> None:
        """Write a model folder of kind ``medsam``."""
        save_model(self._runner, folder, origin=origin)


def load_medsam(path: Path, *, config: SamConfig | None = None) -> MedSamTeacher:
    """Load a checkpoint in the official naming.

    Args:
        path: a torch file (bare state dict, or under ``"model"``) or a ``.safetensors`` file.
        config: of the network in it; MedSAM's where None.

    Raises:
        WeightsError: it cannot be read or is of another architecture; names the first missing and
            unexpected keys.
    """
    state = read_state_dict(path, mend=_FETCH_AGAIN)
    given = from_segment_anything({k: v for k, v in state.items() if k not in _MADE_ELSEWHERE})
    with torch.random.fork_rng(devices=[]):
        model = SamModel(config or medsam_config())
    wanted = model.state_dict()
    missing = next((name for name in wanted if name not in given), None)
    unexpected = next((name for name in given if name not in wanted), None)
    if missing or unexpected:
        raise WeightsError(
            f"{path}: not a SAM 1 ViT-B checkpoint in the official naming; first missing key "
            f"{missing}, first unexpected key {unexpected} (transformers' names). Was it saved "
            f"from another model (SAM 2, MedSAM2), or is it of another size? {_FETCH_AGAIN}"
        )
    for name, value in wanted.items():
        if given[name].shape != value.shape:
            raise WeightsError(
                f"{path}: not a SAM 1 ViT-B checkpoint: {name} has shape "
                f"{tuple(given[name].shape)} instead of {tuple(value.shape)}. {_FETCH_AGAIN}"
            )
    model.load_state_dict(given)
    return MedSamTeacher(Sam1Runner(model.eval()))
