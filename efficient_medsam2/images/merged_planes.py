"""Several binary masks of one volume, read as one label map slice by slice."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.objects import check_one_object, overlap_notes
from efficient_medsam2.images.planes import Planes, blocks_of

__all__ = ["MergedPlanes"]


class MergedPlanes:
    """What ``objects.merge_masks`` makes of the same masks.

    Args:
        masks: (file, its ids as planes), any order; closed with this.

    Attributes:
        notes: overlaps.

    Raises:
        DataError: as ``objects.merge_masks``.
    """

    def __init__(self, masks: Sequence[tuple[Path, Planes]]) -> None:
        ordered = sorted(masks, key=lambda mask: mask[0].name)
        self._masks = [planes for _, planes in ordered]
        self.shape = self._masks[0].shape
        self.dtype = np.dtype(np.uint16)
        areas: dict[int, int] = {}
        for index, (file, planes) in enumerate(ordered, start=1):
            if planes.shape != self.shape:
                raise DataError(
                    f"{file}: the mask's shape {planes.shape} differs from {self.shape} of "
                    f"{ordered[0][0]}"
                )
            present = np.zeros(np.iinfo(np.uint16).max + 1, np.bool_)
            areas[index] = 0
            for _, block in blocks_of(planes):
                present[block.ravel()] = True
                areas[index] += int(np.count_nonzero(block))
            check_one_object(file, int(np.count_nonzero(present[1:])), len(ordered))
        self._painting = sorted(range(len(ordered)), key=lambda i: -areas[i + 1])
        names = {index: str(file) for index, (file, _) in enumerate(ordered, start=1)}
        self.notes = overlap_notes((block for _, block in blocks_of(self)), names, areas)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """See ``Planes.read``."""
        label = np.zeros((stop - start, *self.shape[1:]), np.uint16)
        for index in self._painting:
            label[self._masks[index].read(start, stop) > 0] = index + 1
        return label

    def close(self) -> None:
        """See ``Planes.close``."""
        for planes in self._masks:
            planes.close()
