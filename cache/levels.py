"""Which level of a network an array belongs to: what a config gives a stored type to."""

from typing import Literal

from cache.schema import ArraySpec

__all__ = ["STORED_LEVELS", "StoredLevel", "level_of", "part_of"]

StoredLevel = Literal["s4", "s8", "s16", "logits", "tracks"]
STORED_LEVELS: tuple[StoredLevel, ...] = ("s4", "s8", "s16", "logits", "tracks")
"""Features at stride 4, 8 and 16; logits of all masks; features and memories along tracks."""

_LEVELS: dict[str, StoredLevel] = {
    "features_s4": "s4",
    "features_s8": "s8",
    "features_s16": "s16",
    "mask_logits": "logits",
    "track_mask_logits": "logits",
    "track_conditioned_s16": "tracks",
    "track_memory_s16": "tracks",
}


def level_of(name: str) -> StoredLevel | None:
    """Give the level of an array whose type a config chooses; ``None`` of every other."""
    return _LEVELS.get(name)


def part_of(array: ArraySpec, base: str) -> str:
    """Give the part of a cache that an array counts to.

    Args:
        array: the array.
        base: its name, or that of the array whose scales it holds.

    Returns:
        Its level; ``image``, ``label``; or ``answers``, the few numbers beside every mask.
    """
    level = level_of(base)
    if level is not None:
        return level
    return base if array.rows == "slices" else "answers"
