"""A case's label maps as the network sees them, and the RECIST marks that a user drew on them.

Shape letters: H rows and W columns of the image, S network input in pixels.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from efficient_medsam2.images import squash_labels
from efficient_medsam2.images.slices import CaseSlices
from efficient_medsam2.prompts_recist import RecistMark
from stages.slice_objects import drawn_marks

__all__ = ["CaseLabels", "Plane"]

Plane = tuple[int, npt.NDArray[np.uint16], Mapping[int, RecistMark]]
"""Slice, label map (S, S), and the marks by object, in network pixels."""

_CHUNK_BYTES = 1 << 24
"""Label bytes that are read at a time."""


class CaseLabels:
    """Planes of one open case.

    Args:
        opened: the case.
        size: S.
        marked: look for drawn marks too.

    Attributes:
        depth: number of slices.
        size: S.
        pixel_xy: size of a network pixel along x and y in mm.
    """

    def __init__(self, opened: CaseSlices, *, size: int, marked: bool) -> None:
        self._opened = opened
        self._marked = marked
        self.size = size
        self.depth, self._height, self._width = opened.shape
        _, down_mm, across_mm = opened.spacing_mm
        self._image_xy = (across_mm, down_mm)
        self.pixel_xy = (across_mm * self._width / size, down_mm * self._height / size)

    def planes(self) -> Iterator[Plane]:
        """Every slice, in order; only a chunk of them is in memory.

        Raises:
            DataError: a file is damaged.
        """
        step = max(_CHUNK_BYTES // (2 * self._height * self._width), 1)
        for start in range(0, self.depth, step):
            yield from self._read(start, min(start + step, self.depth))

    def plane(self, index: int) -> Plane:
        """One slice.

        Raises:
            DataError: a file is damaged.
        """
        return next(self._read(index, index + 1))

    def _read(self, start: int, stop: int) -> Iterator[Plane]:
        labels = self._opened.labels(start, stop)
        drawn = self._opened.recist(start, stop) if self._marked else None
        for offset, label_HW in enumerate(labels):
            marks: Mapping[int, RecistMark] = {}
            if drawn is not None:
                marks = drawn_marks(
                    drawn[offset], label_HW, size=self.size, pixel_xy=self._image_xy
                )
            yield start + offset, self._squashed(label_HW), marks

    def _squashed(self, label_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        if label_HW.shape == (self.size, self.size):
            return label_HW
        squashed: npt.NDArray[np.uint16] = squash_labels(label_HW[None], self.size)[0]
        return squashed
