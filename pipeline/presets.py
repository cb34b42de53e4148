"""The presets: configs that come with the package, called by their name."""

from pathlib import Path

__all__ = ["PRESETS", "preset_names"]

PRESETS = Path(__file__).resolve().parents[1] / "configs"
"""Folder of the presets: beside this package, in a checkout and in an installation alike."""


def preset_names(presets: Path) -> tuple[str, ...]:
    """Names of the presets in folder ``presets``, sorted; empty where there is no such folder."""
    return tuple(sorted(path.stem for path in presets.glob("*.yaml")))
