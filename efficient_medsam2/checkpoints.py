"""Where a teacher's checkpoint lies and what its bytes are, without loading a network."""

import hashlib
from pathlib import Path
from typing import Literal

from efficient_medsam2.errors import WeightsError

__all__ = ["SHIPPED_TEACHER", "TeacherKind", "checkpoint_sha256", "locate_checkpoint"]

TeacherKind = Literal["scratch", "medsam2"]

SHIPPED_TEACHER = Path(__file__).resolve().parent / "weights" / "demo_teacher"
"""Model folder of the small teacher that comes with the package."""


def locate_checkpoint(kind: TeacherKind, checkpoint: Path | None) -> Path:
    """The model folder (``scratch``) or file (``medsam2``) of a teacher.

    Raises:
        WeightsError: it is not there; says how to get it.
    """
    if kind == "scratch":
        folder = checkpoint or SHIPPED_TEACHER
        if not (folder / "model.safetensors").is_file():
            raise WeightsError(
                f"teacher.checkpoint: {folder} is no model folder (no model.safetensors). Train "
                "one: efficient-medsam2 train teacher -c configs/demo_teacher.yaml, then "
                "--set teacher.checkpoint=runs/demo_teacher/teacher/model"
            )
        return folder
    if checkpoint is None or not checkpoint.is_file():
        where = "is not set" if checkpoint is None else f"{checkpoint} does not exist"
        raise WeightsError(
            f"teacher.checkpoint {where}: teacher.kind=medsam2 needs MedSAM2_latest.pt "
            "(huggingface.co/wanglab/MedSAM2); then --set teacher.checkpoint=MedSAM2_latest.pt"
        )
    return checkpoint


def checkpoint_sha256(kind: TeacherKind, checkpoint: Path | None) -> str:
    """SHA-256 of the weights' bytes, in hex: the identity of a teacher.

    Raises:
        WeightsError: the checkpoint is not there.
    """
    path = locate_checkpoint(kind, checkpoint)
    with (path / "model.safetensors" if kind == "scratch" else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
