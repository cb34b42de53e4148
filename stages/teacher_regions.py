"""More to prompt on a real slice than its labelled objects: regions of even brightness, and parts.

A few labelled slices tempt a network to tell structures by the size of their boxes. Regions of any
kind, all over the picture, and structures cut short keep it at what a box means: that of the object
in it which reaches its four sides.

Shape letters: S input size.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from efficient_medsam2.prompts import box_of

__all__ = ["even_region", "part_of"]

_LARGEST_SHARE = 0.3
_FULLEST, _EMPTIEST = 0.98, 0.25
"""Bounds of a region's share of its box: beyond them it is a box itself, or a net of threads."""


def even_region(
    image_SS: npt.NDArray[np.uint8],
    label_SS: npt.NDArray[np.int64],
    generator: np.random.Generator,
    *,
    smallest: int,
) -> npt.NDArray[np.bool_] | None:
    """Draw a connected region around a random pixel, like it in brightness.

    Args:
        image_SS: the slice.
        label_SS: its labelled objects. A region that shares the box of one but not its shape
            would contradict it.
        generator: source of all randomness.
        smallest: pixels that a region has at least.

    Returns:
        The region's mask, or None where this draw gave none that is fit to be prompted.
    """
    smooth = ndimage.gaussian_filter(image_SS.astype(np.float32), generator.uniform(0.4, 1.2))
    row, column = generator.integers(len(image_SS), size=2)
    middle, reach = smooth[row, column], generator.uniform(8, 40)
    band = np.abs(smooth - middle) <= reach
    side = generator.random()
    if side < 0.3:
        band |= smooth < middle
    elif side < 0.6:
        band |= smooth > middle
    parts, _ = ndimage.label(ndimage.binary_opening(band))
    if parts[row, column] == 0:
        return None
    region: npt.NDArray[np.bool_] = parts == parts[row, column]
    area = int(region.sum())
    if not smallest <= area <= _LARGEST_SHARE * region.size:
        return None
    if not _EMPTIEST <= area / _box_area(box_of(region)) <= _FULLEST:
        return None
    for value in np.unique(label_SS[label_SS > 0]):
        labelled = label_SS == value
        alike = (region & labelled).sum() / (region | labelled).sum()
        if alike < 0.7 and _box_overlap(box_of(region), box_of(labelled)) > 0.5:
            return None
    return region


def part_of(
    mask_SS: npt.NDArray[np.bool_], generator: np.random.Generator, *, smallest: int
) -> npt.NDArray[np.bool_]:
    """An object cut short along one axis, to between a third and nine tenths of its box.

    Args:
        mask_SS: the object, not empty.
        generator: source of all randomness.
        smallest: pixels that a part has at least; where it would have fewer, the whole comes back.
    """
    axis, from_low = int(generator.integers(2)), generator.random() < 0.5
    keep = generator.uniform(0.33, 0.9)
    lines = np.flatnonzero(mask_SS.any(axis=1 - axis))
    count = max(int(keep * (lines[-1] + 1 - lines[0])), 1)
    first = lines[0] if from_low else lines[-1] + 1 - count
    inside = np.zeros(len(mask_SS), dtype=bool)
    inside[first : first + count] = True
    part: npt.NDArray[np.bool_] = mask_SS & (inside[:, None] if axis == 0 else inside[None, :])
    return part if part.sum() >= smallest else mask_SS


def _box_area(box: npt.NDArray[np.float32]) -> float:
    return float((box[2] - box[0] + 1) * (box[3] - box[1] + 1))


def _box_overlap(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Intersection over union of two boxes."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common = float(np.prod(np.maximum(high - low + 1, 0)))
    return common / (_box_area(one) + _box_area(other) - common)
