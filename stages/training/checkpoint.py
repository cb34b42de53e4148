"""Checkpoints that a kill cannot halve: written beside, made durable, then renamed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from stages.errors import StageInputError

__all__ = [
    "CHECKPOINT_FOLDER",
    "keep_best",
    "load_checkpoint",
    "remove_checkpoint",
    "restore_best",
    "save_checkpoint",
]

CHECKPOINT_FOLDER = "checkpoint"
"""Name of the folder, inside a stage's artifact folder, of the state to continue from."""

_STATE = "state.json"
_BEST = "best.pt"


def save_checkpoint(
    accelerator: Accelerator, directory: Path, *, fingerprint: str, state: dict[str, Any]
) -> None:
    """Write optimiser, model and ``state`` (JSON values; holds ``step``) as one unit."""
    partial = directory / f"{CHECKPOINT_FOLDER}.tmp"
    final = directory / CHECKPOINT_FOLDER
    old = directory / f"{CHECKPOINT_FOLDER}.old"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()  # every process writes files of its own
    if accelerator.is_main_process:
        identity = {"fingerprint": fingerprint, "processes": accelerator.num_processes}
        (partial / _STATE).write_text(json.dumps({**identity, **state}))
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_checkpoint(
    accelerator: Accelerator, directory: Path, *, fingerprint: str
) -> dict[str, Any] | None:
    """Restore the newest checkpoint of this fingerprint.

    Returns:
        Its state, or None where there is none or it belongs to other settings.

    Raises:
        StageInputError: it was written by another number of processes.
    """
    # A kill between the two renames leaves the previous checkpoint under its old name.
    for name in (CHECKPOINT_FOLDER, f"{CHECKPOINT_FOLDER}.old"):
        folder = directory / name
        if not (folder / _STATE).is_file():
            continue
        state: dict[str, Any] = json.loads((folder / _STATE).read_text())
        if state.pop("fingerprint") != fingerprint:
            continue
        processes = state.pop("processes", 1)
        if processes != accelerator.num_processes:
            raise StageInputError(
                f"{folder}: this checkpoint is of a run in {processes} processes, not "
                f"{accelerator.num_processes}. Continue it: accelerate launch --num_processes "
                f"{processes} train_one_gpu.py with the same settings; or start the stage anew: "
                "--no-resume"
            )
        accelerator.load_state(str(folder))
        return state
    return None


def remove_checkpoint(directory: Path) -> None:
    """Delete every checkpoint and the best weights of a stage."""
    for name in (_BEST, f"{_BEST}.tmp"):
        (directory / name).unlink(missing_ok=True)
    for suffix in ("", ".tmp", ".old"):
        shutil.rmtree(directory / f"{CHECKPOINT_FOLDER}{suffix}", ignore_errors=True)


def keep_best(module: nn.Module, directory: Path) -> None:
    """Keep the weights of ``module`` as the best so far."""
    partial = directory / f"{_BEST}.tmp"
    torch.save(module.state_dict(), partial)
    partial.replace(directory / _BEST)


def restore_best(module: nn.Module, directory: Path) -> None:
    """Load the best weights that were kept."""
    module.load_state_dict(torch.load(directory / _BEST, map_location="cpu", weights_only=True))
