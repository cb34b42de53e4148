"""Grey values to 0..255, the way the CVPR24 challenge and MedSAM2 prepare their images.

CT through a window in Hounsfield units; everything else between two percentiles of its non-zero
voxels. 8-bit images were normalised by whoever wrote them and stay as they are.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, field_validator

from efficient_medsam2.images.case import Case

__all__ = ["CT_WINDOWS_HU", "CtWindow", "IntensityConfig", "scale_slices", "to_uint8"]

CtWindow = Literal["abdomen", "lung", "brain", "mediastinum", "bone"]

CT_WINDOWS_HU: dict[CtWindow, tuple[float, float]] = {
    "abdomen": (400, 40),
    "lung": (1500, -160),
    "brain": (80, 40),
    "mediastinum": (400, 40),
    "bone": (1800, 400),
}
"""Named CT windows as (width, level) in Hounsfield units, as MedSAM's preprocessing has them."""


class IntensityConfig(BaseModel):
    """How grey values become 0..255.

    Attributes:
        ct_window: a name of ``CT_WINDOWS_HU``, or (width, level) in Hounsfield units.
        percentiles: lower and upper percentile of the non-zero voxels, for all but CT.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ct_window: CtWindow | tuple[float, float] = "abdomen"
    percentiles: tuple[float, float] = (0.5, 99.5)

    @field_validator("ct_window")
    @classmethod
    def _window_has_width(
        cls, window: CtWindow | tuple[float, float]
    ) -> CtWindow | tuple[float, float]:
        if isinstance(window, tuple) and window[0] <= 0:
            raise ValueError(f"the width of a CT window (width, level) must be > 0, got {window}")
        return window

    @field_validator("percentiles")
    @classmethod
    def _percentiles_ascend(cls, percentiles: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError(f"percentiles must ascend within 0..100, got {percentiles}")
        return percentiles

    @property
    def ct_range_hu(self) -> tuple[float, float]:
        """Lowest and highest Hounsfield unit of the window."""
        window = self.ct_window
        width, level = CT_WINDOWS_HU[window] if isinstance(window, str) else window
        return level - width / 2, level + width / 2


def to_uint8(case: Case, config: IntensityConfig) -> npt.NDArray[np.uint8]:
    """Grey values of ``case`` on 0..255, same shape.

    A uint8 image is returned as it is, colour or grey. A constant image becomes 0.
    """
    image = case.image
    if image.dtype == np.uint8:
        return image
    low, high = config.ct_range_hu if case.modality == "CT" else _range_of(image, config)
    return scale_slices(image, low, high)


def scale_slices(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """``low``..``high`` to 0..255, each slice of (n, ...) by itself; 0 where high <= low."""
    scaled = np.zeros(values.shape, np.uint8)
    if high <= low:
        return scaled
    # Slice by slice: a float copy of a whole volume would be its largest array.
    for index, slice_values in enumerate(values):
        clipped = np.clip(slice_values.astype(np.float32), low, high)
        scaled[index] = np.rint((clipped - low) * (255 / (high - low))).astype(np.uint8)
    return scaled


def _range_of(image: npt.NDArray[Any], config: IntensityConfig) -> tuple[float, float]:
    """Percentiles of the non-zero voxels; their extremes where the percentiles coincide."""
    inside = image[image != 0]
    if inside.size == 0:
        return 0.0, 0.0
    low, high = (float(value) for value in np.percentile(inside, config.percentiles))
    if low == high:
        return float(image.min()), float(image.max())
    return low, high
