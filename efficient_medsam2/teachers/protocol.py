"""What precompute asks of any teacher, whatever its architecture.

Shape letters: B rows, C channels, S network input in pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from efficient_medsam2.networks.records import Prompts, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner

__all__ = ["SliceTeacher"]


class SliceTeacher(Protocol):
    """A frozen network that encodes slices and answers prompts from its features alone."""

    @property
    def module(self) -> nn.Module:
        """The network, to be moved to a device; in ``eval`` mode."""

    @property
    def image_size(self) -> int:
        """S."""

    @property
    def level_shapes(self) -> Mapping[str, tuple[int, int, int]]:
        """Level name (``s4``, ``s8``, ``s16``) → (C, H, W) of the features that it gives."""

    @property
    def logits_side(self) -> int:
        """Side of its low-res mask logits."""

    @property
    def tracker(self) -> SliceRunner | None:
        """The runner that propagates objects; None where the network has no memory."""

    def network_input(self, image_BCSS: Tensor) -> Tensor:
        """uint8 images (B, 1 or 3, S, S) → what the image encoder takes, (B, 3, S, S) float."""

    def encode(self, pixels_B3SS: Tensor) -> dict[str, Tensor]:
        """Features by level name, (B, C, H, W) each."""

    def answer(self, features: Mapping[str, Tensor], prompts: Prompts) -> SliceRecord:
        """One answer a row for B prompts on B rows of features, no memory involved.

        The features are the decoder's complete input: this is the teacher's mask for any new
        prompt without its encoder.
        """

    def save(self, folder: Path, *, origin: Mapping[str, Any]) -> None:
        """Write the teacher as a model folder, which students and evaluation read."""
