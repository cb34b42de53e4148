"""A case that is read slice by slice, so that memory does not grow with its length.

One thread per open case. Shape letters: n slices asked for, H rows, W columns.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from efficient_medsam2.images.case import Case, Modality, case_error
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

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The labels present, ascending, without the background."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions of the reader that a user should know, such as overlapping masks."""

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

    def recist(self, start: int, stop: int) -> npt.NDArray[np.bool_] | None:
        """Drawn RECIST diameters (n, H, W) of the same slices; None where the case has none.

        Raises:
            DataError: a file is damaged.
        """

    def close(self) -> None:
        """Let go of files; a second call does nothing."""


class LoadedSlices:
    """A case that is in memory already.

    Args:
        case: whole.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._made: tuple[IntensityConfig, npt.NDArray[np.uint8]] | None = None
        self._object_ids: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """D, H, W."""
        depth, height, width = self._case.image.shape[:3]
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

    @property
    def object_ids(self) -> tuple[int, ...]:
        """See ``CaseSlices.object_ids``."""
        if self._object_ids is None:
            self._object_ids = self._case.object_ids
        return self._object_ids

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``CaseSlices.notes``."""
        return self._case.notes

    def pictures(self, start: int, stop: int, config: IntensityConfig) -> npt.NDArray[np.uint8]:
        """See ``CaseSlices.pictures``."""
        if self._made is None or self._made[0] != config:
            self._made = (config, to_uint8(self._case, config))
        return self._made[1][start:stop]

    def labels(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """See ``CaseSlices.labels``."""
        if self._case.label is None:
            raise case_error(self._case.case_id, self._case.source.files, "it has no label")
        return self._case.label[start:stop]

    def recist(self, start: int, stop: int) -> npt.NDArray[np.bool_] | None:
        """See ``CaseSlices.recist``."""
        return None if self._case.recist is None else self._case.recist[start:stop]

    def close(self) -> None:
        """Nothing to let go of."""
