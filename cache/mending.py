"""The commands that errors of a cache name as what mends it."""

import shlex
from pathlib import Path

from cache.address import place_of

__all__ = ["precompute_command", "repair_command"]

_PROGRAM = "efficient-medsam2"


def precompute_command(path: Path | str) -> str:
    """What writes the missing rows of the cache at ``path``; CONFIG is the one it was made with."""
    setting = f"cache.path={place_of(path)}"
    return shlex.join([_PROGRAM, "precompute", "-c", "CONFIG", "--set", setting])


def repair_command(path: Path | str) -> str:
    """What makes exactly the bad parts of the cache at ``path`` again."""
    return shlex.join([_PROGRAM, "cache", "repair", place_of(path), "-c", "CONFIG"])
