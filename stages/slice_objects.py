"""The objects on one label plane: area and box of each, in one pass however many there are.

Shape letters: S side of the plane in pixels, N objects on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from efficient_medsam2.images import Squash
from efficient_medsam2.prompts_recist import RecistMark, mark_of_pixels

__all__ = ["SliceObjects", "drawn_marks", "objects_on"]

Int64 = npt.NDArray[np.int64]
_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceObjects:
    """What lies on a plane.

    Attributes:
        label_SS: the plane, 0 is background.
        object_id: int64 (N,), ascending.
        area: int64 (N,): pixels of each.
        boxes_N4: int64 (N, 4): first column, first row, last column, last row.
    """

    label_SS: npt.NDArray[np.uint16]
    object_id: Int64
    area: Int64
    boxes_N4: Int64

    def window(self, place: int) -> tuple[npt.NDArray[np.bool_], tuple[int, int]]:
        """The mask of an object and its surroundings, half its side wide, and their (x, y).

        Args:
            place: position of the object in the columns.
        """
        x0, y0, x1, y1 = (int(value) for value in self.boxes_N4[place])
        across, down = max((x1 - x0 + 1) // 2, 1), max((y1 - y0 + 1) // 2, 1)
        left, top = max(x0 - across, 0), max(y0 - down, 0)
        part = self.label_SS[top : y1 + down + 1, left : x1 + across + 1]
        return part == self.object_id[place], (left, top)


def objects_on(label_SS: npt.NDArray[np.uint16]) -> SliceObjects:
    """Find the objects of a plane."""
    rows = np.flatnonzero(label_SS.max(axis=1))
    if rows.size == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return SliceObjects(
            label_SS=label_SS, object_id=nothing, area=nothing, boxes_N4=np.zeros((0, 4), np.int64)
        )
    top = int(rows[0])
    columns = np.flatnonzero(label_SS[top : int(rows[-1]) + 1].max(axis=0))
    left, width = int(columns[0]), int(columns[-1]) - int(columns[0]) + 1
    part = label_SS[top : int(rows[-1]) + 1, left : left + width].ravel()
    index = np.flatnonzero(part != 0)  # much faster on bool than on numbers
    values = part[index]
    order = np.argsort(values, kind="stable")  # a radix sort: time grows with the pixels alone
    values, index = values[order], index[order]
    row, column = np.divmod(index, width)
    starts = np.flatnonzero(np.diff(values, prepend=0))
    stops = np.append(starts[1:], len(values))
    boxes = np.stack(
        [
            np.minimum.reduceat(column, starts) + left,
            row[starts] + top,  # within an object rows ascend
            np.maximum.reduceat(column, starts) + left,
            row[stops - 1] + top,
        ],
        axis=1,
    )
    return SliceObjects(
        label_SS=label_SS,
        object_id=values[starts].astype(np.int64),
        area=stops - starts,
        boxes_N4=boxes,
    )


def drawn_marks(
    marks_HW: npt.NDArray[np.bool_],
    label_HW: npt.NDArray[np.uint16],
    *,
    size: int,
    pixel_xy: tuple[float, float],
) -> Mapping[int, RecistMark]:
    """The RECIST marks that a user drew on a slice, by the object that each lies on most.

    Args:
        marks_HW: drawn pixels, on the image's own grid.
        label_HW: the label map on the same grid.
        size: S, the side of the network's input.
        pixel_xy: size of a pixel of the image along x and y in mm.

    Returns:
        Object id → its mark (the longest where there are several), in network pixels; a mark
        that lies on no object is nobody's.
    """
    found: dict[int, RecistMark] = {}
    if not marks_HW.any():
        return found
    squash = Squash(height=label_HW.shape[0], width=label_HW.shape[1], size=size)
    pieces, count = ndimage.label(marks_HW, structure=_NEIGHBOURS)
    for piece in range(1, int(count) + 1):
        rows, columns = np.nonzero(pieces == piece)
        beneath = np.bincount(label_HW[rows, columns])
        beneath[0] = 0
        object_id = int(beneath.argmax())
        if not object_id:
            continue
        mark = mark_of_pixels(np.stack([columns, rows], axis=1), pixel_xy=pixel_xy)
        mark = mark.mapped(squash.points_to_network)
        if object_id not in found or mark.length > found[object_id].length:
            found[object_id] = mark
    return found
