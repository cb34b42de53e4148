"""Which teacher, and where its weights lie."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from efficient_medsam2.checkpoints import NETWORK_SIZES, TeacherKind
from efficient_medsam2.networks.hiera import IMAGE_SIZE_STEP, Sam2Size

__all__ = ["TeacherConfig"]


class TeacherConfig(BaseModel):
    """The teacher.

    Attributes:
        kind: ``scratch``: a small network made by ``train teacher``; ``medsam2``: the official
            one, at 512; ``sam2.1``: SAM 2.1 of any size, at any multiple of 64; ``medsam``:
            SAM 1's ViT-B at 1024, which has no tracks.
        size: of ``sam2.1``: ``t``, ``s``, ``b+`` or ``l``; by default told from the checkpoint.
        image_size: side of the network's input in pixels, for ``sam2.1``; by default what the
            network was trained at: 512 for ``medsam2``, 1024 for ``sam2.1`` and ``medsam``.
        checkpoint: model folder (scratch; default: the shipped one) or file (default: the one
            that ``models pull`` fetched).
        train: train a scratch teacher first and use that one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: TeacherKind = "scratch"
    size: Sam2Size | None = None
    image_size: int | None = Field(default=None, ge=IMAGE_SIZE_STEP, multiple_of=IMAGE_SIZE_STEP)
    checkpoint: Path | None = None
    train: bool = False

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> Self:
        if self.train and self.kind != "scratch":
            raise ValueError(
                f"train=true makes a teacher of kind scratch, but kind is {self.kind}: give one "
                "of the two"
            )
        if self.size is not None and (self.kind, self.size) != ("medsam2", "t"):
            self._only_for_sam21("size", self.size)
        if self.image_size is not None and self.image_size != NETWORK_SIZES.get(self.kind):
            self._only_for_sam21("image_size", self.image_size)
        return self

    def _only_for_sam21(self, name: str, value: object) -> None:
        if self.kind != "sam2.1":
            raise ValueError(
                f"{name}={value} is for kind sam2.1, which runs SAM 2.1 and MedSAM2 checkpoints; "
                f"a teacher of kind {self.kind} has its own: leave it out"
            )
