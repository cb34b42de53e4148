"""The model folder that a benchmark measures, and how its figures name it."""

import os
import shlex
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cache.durable import sha256_of_file
from efficient_medsam2.checkpoints import SHIPPED_TEACHER

__all__ = ["SHIPPED_TEACHER", "MeasuredModel", "as_typed", "measured_model", "shown"]


class MeasuredModel(BaseModel):
    """Which weights figures belong to.

    Attributes:
        folder: as seen from the working directory.
        weights_sha256: of ``model.safetensors``.
        bytes: its size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    weights_sha256: str
    bytes: int


def measured_model(folder: Path) -> MeasuredModel:
    """Name the model in ``folder``.

    Raises:
        OSError: it holds no ``model.safetensors``.
    """
    weights = folder / "model.safetensors"
    return MeasuredModel(
        folder=shown(folder), weights_sha256=sha256_of_file(weights), bytes=weights.stat().st_size
    )


def shown(path: Path) -> str:
    """``path`` as seen from the working directory: the same text on every machine."""
    return Path(os.path.relpath(path)).as_posix()


def as_typed(module: str) -> str:
    """The command line that runs ``python -m module`` as it was run."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])
