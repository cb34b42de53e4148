"""The commands that errors of a cache name as what mends it."""

import shlex
from pathlib import Path

__all__ = ["precompute_command", "repair_command"]

_PROGRAM = "efficient-medsam2"


def precompute_command(path: Path | str) -> str:
    """What writes the missing rows of the cache at ``path``; CONFIG is the one it was made with."""
    return shlex.join([_PROGRAM, "precompute", "-c", "CONFIG", "--set", f"cache.path={path}"])


def repair_command(path: Path | str) -> str:
    """What makes exactly the bad parts of the cache in the folder ``path`` again."""
    return shlex.join([_PROGRAM, "cache", "repair", str(path), "-c", "CONFIG"])
