"""From stored mask values to object ids.

Two questions are answered here and nowhere else: which ids the values of one label file stand
for, and what happens where several masks of one image overlap.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficient_medsam2.errors import DataError

__all__ = [
    "as_label_map",
    "check_one_object",
    "id_table",
    "merge_masks",
    "overlap_notes",
    "picture_ids",
]

_GREY_CODE_LOWEST = 64
_GREY_CODE_MOST = 8
_MOST_SCATTERED_VALUES = 64


def as_label_map(values: npt.NDArray[Any], file: Path) -> npt.NDArray[np.uint16]:
    """Check that ``values`` are ids and return them as uint16 of the same shape.

    Whole numbers stored as float are ids too.

    Raises:
        DataError: a value is negative, fractional, not finite or above 65535.
    """
    if values.dtype.kind not in "buif":
        raise DataError(f"{file}: label values of type {values.dtype} are not numbers")
    if values.dtype.kind == "f" and not (
        np.isfinite(values).all() and (values == np.rint(values)).all()
    ):
        raise DataError(
            f"{file}: the label map holds fractions, NaN or infinity, so it is not a map of "
            "object ids. Round it or threshold it, and save it as integers"
        )
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise DataError(
            f"{file}: label ids run from {low} to {high}; they must lie in 0..65535. "
            "Renumber the objects"
        )
    return values.astype(np.uint16)


def picture_ids(values: npt.NDArray[Any], file: Path) -> npt.NDArray[np.uint16]:
    """Object ids of a mask or label map that was stored as a picture, same shape.

    - at most eight distinct non-zero 8-bit values, all of them 64 or more, are greys chosen to
      be seen: they become 1, 2, ... in ascending order ({0, 255} gives 0, 1 and {0, 128, 255}
      gives 0, 1, 2);
    - anything else is a map of ids and stays as it is, also where the ids do not begin at 1;
    - an 8-bit map of more than 64 scattered values up to 255 is a smoothed mask, not a label map.

    Raises:
        DataError: the map is a smoothed mask, or is no map of ids at all.
    """
    ids = as_label_map(values, file)
    if values.dtype.itemsize > 1:
        return ids
    return id_table(np.unique(ids), file)[ids]


def id_table(values: npt.NDArray[Any], file: Path) -> npt.NDArray[np.uint16]:
    """Id of each 8-bit value (256,), by the rules of ``picture_ids``.

    Args:
        values: the distinct values present, ascending.
        file: the map, or the folder of maps that share their values.

    Raises:
        DataError: they are those of a smoothed mask.
    """
    table = np.arange(256, dtype=np.uint16)
    present = values[values > 0].astype(np.int64)
    if present.size == 0:
        return table
    if present[0] >= _GREY_CODE_LOWEST and present.size <= _GREY_CODE_MOST:
        table[present] = np.arange(1, present.size + 1)
        return table
    contiguous = int(present[-1] - present[0]) + 1 == present.size
    if present[-1] == 255 and present.size > _MOST_SCATTERED_VALUES and not contiguous:
        raise DataError(
            f"{file}: {present.size} distinct values up to 255 look like the soft edge of a "
            "smoothed or lossily compressed mask, not like object ids. Threshold it (> 127) and "
            "save it as PNG"
        )
    return table


def merge_masks(
    files: Sequence[Path], read: Callable[[Path], npt.NDArray[np.uint16]]
) -> tuple[npt.NDArray[np.uint16], tuple[str, ...]]:
    """Merge binary masks of one image, one object a file, into one label map.

    Ids are 1..n by sorted file name. Where masks overlap the smaller object lies on top, so a
    lesion in an organ stays visible; what the larger one loses is told in the notes. ``read``
    returns the ids of one file; each mask is read twice rather than all held at once.

    Returns:
        The label map and the notes on overlaps.

    Raises:
        DataError: a mask is empty or holds several ids, shapes differ, or an object is wholly
            covered by the others.
    """
    ordered = sorted(files, key=lambda file: file.name)
    areas: list[int] = []
    shapes: list[tuple[int, ...]] = []
    for file in ordered:
        mask = read(file)
        check_one_object(file, np.unique(mask[mask > 0]).size, len(ordered))
        areas.append(int(np.count_nonzero(mask)))
        shapes.append(mask.shape)
        if mask.shape != shapes[0]:
            raise DataError(
                f"{file}: the mask's shape {mask.shape} differs from {shapes[0]} of {ordered[0]}"
            )
    label = np.zeros(shapes[0], np.uint16)
    for index in sorted(range(len(ordered)), key=lambda i: -areas[i]):
        label[read(ordered[index]) > 0] = index + 1
    names = {index + 1: str(file) for index, file in enumerate(ordered)}
    return label, overlap_notes(label, names, dict(enumerate(areas, start=1)))


def check_one_object(file: Path, count: int, total: int) -> None:
    """Refuse a mask of ``count`` objects where each of ``total`` files should hold one.

    Raises:
        DataError: ``count`` is not 1.
    """
    if count != 1:
        raise DataError(
            f"{file}: one of {total} masks of an image must hold exactly one object, "
            f"this one holds {count}. Name the masks to use in a listing"
        )


def overlap_notes(
    planes: Iterable[npt.NDArray[np.uint16]], names: dict[int, str], areas: dict[int, int]
) -> tuple[str, ...]:
    """Say which objects lost voxels to others painted over them.

    Args:
        planes: the merged map, plane by plane.
        names: id to the name a user knows it by.
        areas: id to its voxels before merging.

    Raises:
        DataError: an object is wholly covered.
    """
    kept = np.zeros(max(names) + 1, np.int64)
    for plane in planes:
        kept += np.bincount(plane.ravel(), minlength=len(kept))
    notes: list[str] = []
    for object_id, name in names.items():
        if kept[object_id] == areas[object_id]:
            continue
        if kept[object_id] == 0:
            raise DataError(
                f"{name}: the object is wholly covered by smaller ones of the same image, and a "
                "label map holds one object per voxel. Name the masks to use in a listing, "
                "without this one or without those that cover it"
            )
        lost = 1 - kept[object_id] / areas[object_id]
        notes.append(f"{name}: smaller objects lie on {lost:.0%} of it and keep these voxels")
    return tuple(notes)
