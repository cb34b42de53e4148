"""Which teacher, and where its weights lie."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["TeacherConfig"]


class TeacherConfig(BaseModel):
    """The teacher.

    Attributes:
        kind: ``scratch``: a small network made by ``train teacher``; ``medsam2``: the official one.
        checkpoint: model folder (scratch; default: the shipped one) or MedSAM2_latest.pt.
        train: train a scratch teacher first and use that one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["scratch", "medsam2"] = "scratch"
    checkpoint: Path | None = None
    train: bool = False
