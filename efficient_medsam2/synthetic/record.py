"""The record that every source of labelled volumes here returns."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Split", "SyntheticVolume"]

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class SyntheticVolume:
    """One labelled volume, or one slab of it.

    Attributes:
        name: unique within the list it comes from: lower case, words joined by dashes.
        split: which part of a study the volume belongs to.
        image: uint8 (D, H, W).
        label: uint16 (D, H, W); 0 is background, others are keys of ``object_names``.
        spacing_mm: voxel size in the order D, H, W.
        object_names: name of each label value that occurs in ``label``.
        modality: what the picture looks like: "MR", "CT" or "US".

    """

    name: str
    split: Split
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint16]
    spacing_mm: tuple[float, float, float]
    object_names: dict[int, str]
    modality: str

    def __post_init__(self) -> None:
        assert self.image.dtype == np.uint8
        assert self.label.dtype == np.uint16
        assert self.image.ndim == 3
        assert self.image.shape == self.label.shape
        assert min(self.spacing_mm) > 0
