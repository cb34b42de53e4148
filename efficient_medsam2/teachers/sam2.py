"""Any network of SAM 2's architecture as a teacher: MedSAM2, SAM 2.1, and those trained here.

Shape letters: B rows, C channels, S network input in pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from efficient_medsam2.images.preprocess import to_network_input
from efficient_medsam2.networks.model_folder import save_model
from efficient_medsam2.networks.records import Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner

__all__ = ["Sam2Teacher"]


class Sam2Teacher:
    """A slice runner behind the teachers' protocol.

    Args:
        runner: in ``eval`` mode.
    """

    def __init__(self, runner: SliceRunner) -> None:
        self.runner = runner

    @property
    def module(self) -> nn.Module:
        """The ``Sam2VideoModel``."""
        network: nn.Module = self.runner.model
        return network

    @property
    def image_size(self) -> int:
        """S."""
        return self.runner.image_size

    @property
    def level_shapes(self) -> Mapping[str, tuple[int, int, int]]:
        """``s4``: (C/8, S/4, S/4); ``s8``: (C/4, S/8, S/8); ``s16``: (C, S/16, S/16)."""
        width = int(self.runner.config.memory_attention_hidden_size)
        side = self.image_size
        return {
            "s4": (width // 8, side // 4, side // 4),
            "s8": (width // 4, side // 8, side // 8),
            "s16": (width, *self.runner.grid),
        }

    @property
    def logits_side(self) -> int:
        """S/4."""
        return self.image_size // 4

    @property
    def tracker(self) -> SliceRunner:
        """The runner itself."""
        return self.runner

    def network_input(self, image_BCSS: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, S, S) → float32 (B, 3, S, S), ImageNet mean and deviation."""
        return to_network_input(image_BCSS)

    def encode(self, pixels_B3SS: Tensor) -> dict[str, Tensor]:
        """Features by level name; see :class:`SliceFeatures`."""
        features = self.runner.encode(pixels_B3SS)
        return {"s4": features.s4, "s8": features.s8, "s16": features.s16}

    def answer(self, features: Mapping[str, Tensor], prompts: Prompts) -> SliceRecord:
        """One answer a row for B prompts on B rows of all three levels, no memory involved."""
        levels = SliceFeatures(s4=features["s4"], s8=features["s8"], s16=features["s16"])
        return self.runner.prompted(levels, prompts)

    def save(self, folder: Path, *, origin: Mapping[str, Any]) -> None:
        """Write the network and its switches as a model folder."""
        save_model(self.runner, folder, origin=origin)
