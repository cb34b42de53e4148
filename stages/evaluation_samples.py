"""Pictures and features that evaluation keeps for the report.

Shape letters: H W rows and columns of an image, C channels, h w of a feature level.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from efficient_medsam2.networks.records import SliceFeatures

__all__ = ["SampleBook"]

_WITH_FEATURES = ("teacher", "encoder", "finetune")
_OBJECTS_OF_A_KIND = 2

Key = tuple[str, int, int]


class SampleBook:
    """Up to ``count`` objects with every model's answer.

    Args:
        count: objects to keep. The first object of each case is wanted, then more of other cases,
            so the pictures come from all over the split.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._entries: dict[Key, dict[str, Any]] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def wants(self, case_id: str, slice_index: int, object_id: int) -> bool:
        """Whether this object should be kept."""
        key = (case_id, slice_index, object_id)
        if key in self._entries:
            return True
        if len(self._entries) >= self._count:
            return False
        of_kind = sum(
            1 for case, _, other in self._entries if (case, other) == (case_id, object_id)
        )
        of_case = sum(1 for case, _, _ in self._entries if case == case_id)
        if of_kind or of_case >= _OBJECTS_OF_A_KIND:
            return False
        self._entries[key] = {}
        return True

    def add(
        self,
        model: str,
        *,
        key: Key,
        image: np.ndarray,
        truth: np.ndarray,
        mask: np.ndarray,
        score: float,
        box: np.ndarray,
        object_name: str,
        features: SliceFeatures,
    ) -> None:
        """Keep one model's answer to an object that is wanted."""
        entry = self._entries[key]
        place = list(self._entries).index(key)
        if not entry:
            entry |= {
                "case_id": key[0],
                "slice_index": key[1],
                "object_name": object_name,
                "box": [float(value) for value in box],
                "dsc": {},
            }
            self._arrays[f"image_{place}"] = image
            self._arrays[f"truth_{place}"] = truth
        entry["dsc"][model] = score
        self._arrays[f"mask_{model}_{place}"] = mask
        if model in _WITH_FEATURES:
            for level in ("s4", "s8", "s16"):
                values = getattr(features, level)[0].float().cpu().numpy()
                self._arrays[f"{level}_{model}_{place}"] = values.astype(np.float16)

    def write(self, directory: Path) -> None:
        """Write ``samples.json`` and ``samples.npz``."""
        kept = [entry for entry in self._entries.values() if entry]
        (directory / "samples.json").write_text(json.dumps(kept, indent=1) + "\n")
        partial = directory / "samples.tmp.npz"
        np.savez_compressed(partial, **self._arrays)  # type: ignore[arg-type]
        partial.replace(directory / "samples.npz")
