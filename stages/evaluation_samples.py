"""Pictures and features that evaluation keeps for the report.

Shape letters: H W rows and columns of an image, C channels, h w of a feature level.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from efficient_medsam2.networks.records import SliceFeatures
from stages.training.resizing import resize_maps

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

    @property
    def full(self) -> bool:
        """Whether no further object is wanted."""
        return len(self._entries) >= self._count

    def extend(self, other: "SampleBook") -> None:
        """Take over what another book has of other cases, as far as there is room."""
        for place, (key, entry) in enumerate(other._entries.items()):
            if self.full:
                return
            here = len(self._entries)
            self._entries[key] = entry
            for name, values in other._arrays.items():
                kind, _, number = name.rpartition("_")
                if number == str(place):
                    self._arrays[f"{kind}_{here}"] = values

    def wants(self, case_id: str, slice_index: int, object_id: int) -> bool:
        """Whether this object should be kept."""
        key = (case_id, slice_index, object_id)
        if key in self._entries:
            return True
        if self.full:
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
                values: Tensor = getattr(features, level).float()
                # They are shown side by side: on the teacher's grid, and where it has that level.
                teachers = self._arrays.get(f"{level}_{_WITH_FEATURES[0]}_{place}")
                if model != _WITH_FEATURES[0] and teachers is not None:
                    values = resize_maps(values, teachers.shape[-1], "bilinear")
                if values.shape[1] and (model == _WITH_FEATURES[0] or teachers is not None):
                    kept = values[0].cpu().numpy().astype(np.float16)
                    self._arrays[f"{level}_{model}_{place}"] = kept

    def write(self, directory: Path) -> None:
        """Write ``samples.json`` and ``samples.npz``."""
        kept = [entry for entry in self._entries.values() if entry]
        (directory / "samples.json").write_text(json.dumps(kept, indent=1) + "\n")
        partial = directory / "samples.tmp.npz"
        np.savez_compressed(partial, **self._arrays)  # type: ignore[arg-type]
        partial.replace(directory / "samples.npz")
