"""RECIST marks: an object's longest diameter on a slice, its perpendicular, and prompts of them.

A mark becomes a prompt as in MedSAM2's inference for the FLARE 2025 pan-cancer task
(``medsam2_infer_CT_lesion_npz_recist.py``): points on the line, its centre, its centre and ends, or
the square around its centre whose side is its length. There a mark is a drawn line; its ends are
its first and last pixel.

Coordinates are (x, y) in pixels, counted at pixel centres.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from efficient_medsam2.prompts import SampledPrompt

__all__ = [
    "RECIST_FORMS",
    "RecistForm",
    "RecistMark",
    "mark_of_mask",
    "mark_of_pixels",
    "sample_recist",
]

RecistForm = Literal["points", "centre", "three", "four", "box"]
"""``points``: 5 pixels of the long axis, drawn at random (the official default); ``centre`` of the
long axis; ``three``: its centre and its ends; ``four``: the ends of both axes; ``box``: the square
around its centre. All points are positive, as in the official code."""

RECIST_FORMS: tuple[RecistForm, ...] = get_args(RecistForm)

DRAWN_POINTS = 5
"""Points that the official inference draws from a mark."""

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RecistMark:
    """Two axes of an object on one slice.

    Attributes:
        long: (2, 2) float64: the ends of the longest diameter.
        short: (2, 2) float64: the ends of the longest chord across it; both on the long axis'
            centre where the mark is a bare line.
    """

    long: Float64
    short: Float64

    @property
    def length(self) -> float:
        """Length of the long axis in pixels, from centre to centre."""
        return self.measured((1.0, 1.0))

    def measured(self, pixel_xy: tuple[float, float]) -> float:
        """Length of the long axis where a pixel is so large along x and y, such as in mm."""
        return float(np.hypot(*((self.long[1] - self.long[0]) * pixel_xy)))

    @property
    def centre(self) -> Float64:
        """Centre (2,) of the long axis."""
        middle: Float64 = self.long.mean(axis=0)
        return middle

    def mapped(self, transform: Callable[[Float64], Float64]) -> "RecistMark":
        """The same mark with its ends moved, as by a resize or a view."""
        return RecistMark(long=transform(self.long), short=transform(self.short))


def mark_of_mask(mask_HW: np.ndarray, *, pixel_xy: tuple[float, float] = (1.0, 1.0)) -> RecistMark:
    """The RECIST mark of a mask: its two farthest pixels and the longest chord across their line.

    Args:
        mask_HW: the object on one slice, bool.
        pixel_xy: size of a pixel along x and y; distances are compared in this unit.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.nonzero(mask_HW)
    if rows.size == 0:
        raise ValueError("an empty mask has no diameter")
    return mark_of_pixels(np.stack([columns, rows], axis=1), pixel_xy=pixel_xy)


def mark_of_pixels(
    pixels_N2: npt.ArrayLike, *, pixel_xy: tuple[float, float] = (1.0, 1.0)
) -> RecistMark:
    """The mark that pixels span: of an object, or of a mark that a user drew.

    Of a drawn line the long axis runs between its ends; of a drawn cross it is the longer line,
    and the chord across it is the other one.

    Args:
        pixels_N2: (N, 2) integers as (x, y), at least one.
        pixel_xy: size of a pixel along x and y; distances and right angles are taken in this unit.

    Raises:
        ValueError: no pixel.
    """
    pixels = np.asarray(pixels_N2, dtype=np.int64).reshape(-1, 2)
    if len(pixels) == 0:
        raise ValueError("a mark without pixels has no diameter")
    hull = _hull(pixels)
    unit = np.array(pixel_xy, dtype=np.float64)
    apart = (((hull[:, None] - hull[None]) * unit) ** 2).sum(axis=2)
    first, last = np.unravel_index(int(apart.argmax()), apart.shape)
    long = hull[[first, last]]
    return RecistMark(long=long.astype(np.float64), short=_across(pixels, long, unit))


def sample_recist(
    mark: RecistMark,
    generator: np.random.Generator,
    *,
    size: int,
    form: RecistForm = "points",
) -> SampledPrompt:
    """A prompt of a mark.

    Args:
        mark: in pixels of the network input.
        generator: source of all randomness; only ``points`` draws from it.
        size: S in pixels, to which every point is clipped.
        form: see ``RecistForm``.

    Returns:
        A prompt of kind ``recist``: positive points, or the two corners of a box.
    """
    if form == "box":
        centre, half = mark.centre.astype(np.int64), int(mark.length / 2)
        points = np.stack([centre - half, centre + half]).astype(np.float64)
    elif form == "three":
        points = np.vstack([mark.centre, mark.long])
    elif form == "four":
        points = np.vstack([mark.long, mark.short])
    elif form == "points":
        line = _line(mark.long)
        count = min(DRAWN_POINTS, len(line))
        points = line[generator.choice(len(line), size=count, replace=False)]
    else:
        points = mark.centre[None]
    labels = [2, 3] if form == "box" else [1] * len(points)
    return SampledPrompt(
        kind="recist",
        points_N2=np.clip(points, 0, size - 1).astype(np.float32),
        labels_N=np.array(labels, dtype=np.int64),
    )


def _line(ends: Float64) -> Float64:
    """Pixels (n, 2) of a drawn line: one for each step along its longer side."""
    steps = int(np.rint(np.abs(ends[1] - ends[0]).max()))
    place = np.linspace(0, 1, steps + 1)[:, None]
    line: Float64 = np.rint(ends[0] + place * (ends[1] - ends[0]))
    return line


def _hull(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Corners of the convex hull of pixels, by Andrew's monotone chain on each row's two ends."""
    order = np.lexsort((pixels[:, 0], pixels[:, 1]))
    pixels = pixels[order]
    starts = np.flatnonzero(np.diff(pixels[:, 1], prepend=pixels[0, 1] - 1))
    stops = np.append(starts[1:], len(pixels)) - 1
    left, right = pixels[starts].tolist(), pixels[stops].tolist()

    def chain(points: list[list[int]], sign: int) -> list[list[int]]:
        kept: list[list[int]] = []
        for x, y in points:
            while len(kept) > 1:
                (x0, y0), (x1, y1) = kept[-2], kept[-1]
                if sign * ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) > 0:
                    break
                kept.pop()
            kept.append([x, y])
        return kept

    return np.array(chain(left, -1) + chain(right, 1), dtype=np.int64)


def _across(pixels: npt.NDArray[np.int64], long: npt.NDArray[np.int64], unit: Float64) -> Float64:
    """Ends (2, 2) of the longest chord at right angles to a line."""
    along = (long[1] - long[0]) * unit
    length = float(np.hypot(*along))
    if length == 0:
        return np.repeat(long[:1], 2, axis=0).astype(np.float64)
    direction = along / length
    offset = (pixels - long[0]) * unit
    place = np.rint(offset @ direction / unit.min()).astype(np.int64)
    side = offset @ np.array([-direction[1], direction[0]])
    place -= place.min()
    low, high = np.full(place.max() + 1, np.inf), np.full(place.max() + 1, -np.inf)
    np.minimum.at(low, place, side)
    np.maximum.at(high, place, side)
    widest = int((high - low).argmax())
    if high[widest] - low[widest] < unit.min():  # a bare line: nothing lies beside it
        return np.repeat(long.mean(axis=0, keepdims=True), 2, axis=0)
    chosen = np.flatnonzero(place == widest)
    ends = chosen[[side[chosen].argmin(), side[chosen].argmax()]]
    return pixels[ends].astype(np.float64)
