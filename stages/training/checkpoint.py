"""Checkpoints that a kill cannot halve: written beside, made durable, then renamed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

__all__ = ["CHECKPOINT_FOLDER", "load_checkpoint", "remove_checkpoint", "save_checkpoint"]

CHECKPOINT_FOLDER = "checkpoint"
"""Name of the folder, inside a stage's artifact folder, of the state to continue from."""

_STATE = "state.json"


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
    if accelerator.is_main_process:
        (partial / _STATE).write_text(json.dumps({"fingerprint": fingerprint, **state}))
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
    """
    # A kill between the two renames leaves the previous checkpoint under its old name.
    for name in (CHECKPOINT_FOLDER, f"{CHECKPOINT_FOLDER}.old"):
        folder = directory / name
        if not (folder / _STATE).is_file():
            continue
        state: dict[str, Any] = json.loads((folder / _STATE).read_text())
        if state.pop("fingerprint") != fingerprint:
            continue
        accelerator.load_state(str(folder))
        return state
    return None


def remove_checkpoint(directory: Path) -> None:
    """Delete every checkpoint of a stage."""
    for suffix in ("", ".tmp", ".old"):
        shutil.rmtree(directory / f"{CHECKPOINT_FOLDER}{suffix}", ignore_errors=True)
