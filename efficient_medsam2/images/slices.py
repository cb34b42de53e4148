"""A case that is read slice by slice, so that memory does not grow with its length.

Shape letters: n slices asked for, H rows, W columns.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from efficient_medsam2.images.case import Case, Modality
from efficient_medsam2.images.intensity import IntensityConfig, to_uint8

__all__ = ["CaseSlices", "LoadedSlices"]


class CaseSlices(Protocol):
    """An open case; slices are cheapest in ascending order."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """D, H, W."""

    @property
    def channels(self) -> int:
        """1 (grey) or 3."""

    @property
    def modality(self) -> Modality:
        """One of ``MODALITIES``."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Along D, H, W."""

    def pictures(self, start: int, stop: int, config: IntensityConfig) -> npt.NDArray[np.uint8]:
        """Slices ``start`` to ``stop`` as (n, H, W) or (n, H, W, 3) on 0..255.

        Bit for bit what ``to_uint8`` gives of the whole case.

        Raises:
            DataError: a file is damaged.
        """

    def labels(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """Label maps (n, H, W) of the same slices.

        Raises:
            DataError: a file is damaged, or the case has no labels.
        """

    def close(self) -> None:
        """Let go of files; a second call does nothing."""


class LoadedSlices:
    """A case that is in memory already.

    Args:
        case: with labels.
    """

    def __init__(self, case: Case) -> None:
        assert case.label is not None
        self._case = case
        self._label = case.label
        self._made: tuple[IntensityConfig, npt.NDArray[np.uint8]] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """D, H, W."""
        depth, height, width = self._label.shape
        return depth, height, width

    @property
    def channels(self) -> int:
        """1 (grey) or 3."""
        return 3 if self._case.image.ndim == 4 else 1

    @property
    def modality(self) -> Modality:
        """One of ``MODALITIES``."""
        return self._case.modality

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Along D, H, W."""
        return self._case.spacing_mm

    def pictures(self, start: int, stop: int, config: IntensityConfig) -> npt.NDArray[np.uint8]:
        """See ``CaseSlices.pictures``."""
        if self._made is None or self._made[0] != config:
            self._made = (config, to_uint8(self._case, config))
        return self._made[1][start:stop]

    def labels(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """See ``CaseSlices.labels``."""
        return self._label[start:stop]

    def close(self) -> None:
        """Nothing to let go of."""
