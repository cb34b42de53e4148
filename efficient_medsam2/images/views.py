"""Geometric views of a squashed slice: drawn once, stored with their matrix, replayed bit for bit.

A view is an affine map in the slice's plane. Its matrix is a multiple of 2^-16 throughout, and
image and label are warped in integers alone, so every machine makes the same pixels; a pure flip
moves them unchanged. What comes from outside the slice is 0: black, and background.

Pixels are counted at their centres: the first one lies at (0, 0), the last at (S-1, S-1). A box
that is flipped therefore still ends on the object's last pixel.

Shape letters: C channels, S side of the network's input in pixels.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["IDENTITY_VIEW", "ViewAffine", "draw_view", "warp_image", "warp_label", "warp_points"]

ViewAffine = tuple[float, float, float, float, float, float]
"""Rows (a, b, c), (d, e, f): view 0's pixel (x, y) → (a x + b y + c, d x + e y + f)."""

IDENTITY_VIEW: ViewAffine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

_UNIT = 1 << 16
"""Steps of a matrix entry per 1."""

_FRACTION_BITS = 11
"""Bits of a bilinear weight: finer than 8 bits of grey can show, and sums fit 32 bits."""

_SOURCE_BITS = 32
"""Bits of a source coordinate behind the point; a flip's are all zero."""

_LARGEST = 16
"""Bound of the entries of a matrix and of its inverse, and of its translation in sides."""

Int64 = npt.NDArray[np.int64]


def draw_view(
    generator: np.random.Generator,
    *,
    size: int,
    flip: bool,
    rotate_degrees: float,
    scale: float,
    shift: float,
) -> ViewAffine:
    """Draw one view: a flip, then rotation and scale about the centre, then a shift.

    Args:
        generator: source of all randomness; the same number of draws whatever the bounds.
        size: S.
        flip: whether each axis is mirrored with probability 1/2.
        rotate_degrees: bound of the angle, either way.
        scale: bound of the change in size: the factor lies in 1 - scale to 1 + scale.
        shift: bound along x and along y, either way, as a fraction of S.

    Returns:
        The matrix, every entry a multiple of 2^-16.
    """
    mirrored = generator.random(2) < 0.5
    angle, factor, right, down = generator.uniform(-1, 1, 4).tolist()
    radians = math.radians(angle * rotate_degrees)
    zoom = 1 + factor * scale
    cosine, sine = zoom * math.cos(radians), zoom * math.sin(radians)
    sign_x, sign_y = (-1 if flip and flag else 1 for flag in mirrored)
    # Rounded before the translation follows from them, so that the centre stays the centre.
    a, b, d, e = (
        round(value * _UNIT) / _UNIT
        for value in (cosine * sign_x, -sine * sign_y, sine * sign_x, cosine * sign_y)
    )
    centre = (size - 1) / 2
    c = centre - a * centre - b * centre + right * shift * size
    f = centre - d * centre - e * centre + down * shift * size
    return (a, b, round(c * _UNIT) / _UNIT, d, e, round(f * _UNIT) / _UNIT)


def warp_image(image_CSS: npt.NDArray[np.uint8], affine: ViewAffine) -> npt.NDArray[np.uint8]:
    """The view's image, bilinear; the identity gives ``image_CSS`` itself.

    Args:
        image_CSS: view 0, (C, S, S) uint8.
        affine: view 0's pixel → the view's pixel.

    Returns:
        (C, S, S) uint8.

    Raises:
        ValueError: another shape or type, or a matrix that has no inverse or is too large.
    """
    if image_CSS.dtype != np.uint8 or image_CSS.ndim != 3 or len({*image_CSS.shape[1:]}) != 1:
        raise ValueError(f"expected (C, S, S) uint8, got {image_CSS.shape} {image_CSS.dtype}")
    if affine == IDENTITY_VIEW:
        return image_CSS
    size = image_CSS.shape[1]
    one, spare = 1 << _FRACTION_BITS, _SOURCE_BITS - _FRACTION_BITS
    x_SS, y_SS = (value >> spare for value in _sources(affine, size))
    column, row = x_SS >> _FRACTION_BITS, y_SS >> _FRACTION_BITS
    right, low = ((value & (one - 1)).astype(np.int32) for value in (x_SS, y_SS))
    # One pixel of 0 around the slice stands for all that lies outside.
    padded = np.pad(image_CSS, ((0, 0), (1, 1), (1, 1))).reshape(len(image_CSS), -1)
    columns = [np.clip(column + step, -1, size) + 1 for step in (0, 1)]
    rows = [(np.clip(row + step, -1, size) + 1) * (size + 2) for step in (0, 1)]
    total = np.zeros(image_CSS.shape, np.int32)
    for down, weight_y in enumerate((one - low, low)):
        for over, weight_x in enumerate((one - right, right)):
            total += padded.take(rows[down] + columns[over], axis=1) * (weight_y * weight_x)
    half = 1 << (2 * _FRACTION_BITS - 1)
    warped: npt.NDArray[np.uint8] = ((total + half) >> (2 * _FRACTION_BITS)).astype(np.uint8)
    return warped


def warp_label(label_SS: npt.NDArray[Any], affine: ViewAffine) -> npt.NDArray[Any]:
    """The view's label map, each pixel taking the nearest label; the identity changes nothing.

    Args:
        label_SS: view 0, (S, S), any integer type or bool.
        affine: view 0's pixel → the view's pixel.

    Returns:
        (S, S) of the same type.

    Raises:
        ValueError: as ``warp_image``.
    """
    if label_SS.ndim != 2 or label_SS.shape[0] != label_SS.shape[1] or label_SS.dtype.kind == "f":
        raise ValueError(f"expected (S, S) integers, got {label_SS.shape} {label_SS.dtype}")
    if affine == IDENTITY_VIEW:
        return label_SS
    size = label_SS.shape[0]
    half = 1 << (_SOURCE_BITS - 1)
    column, row = ((value + half) >> _SOURCE_BITS for value in _sources(affine, size))
    padded = np.pad(label_SS, 1)
    warped: npt.NDArray[Any] = padded[np.clip(row, -1, size) + 1, np.clip(column, -1, size) + 1]
    return warped


def warp_points(points: npt.ArrayLike, affine: ViewAffine) -> npt.NDArray[np.float64]:
    """Points (..., 2) as (x, y) on view 0 to where they lie on the view, float64.

    Raises:
        ValueError: the last axis is not 2 long.
    """
    array = np.asarray(points, np.float64)
    if array.ndim == 0 or array.shape[-1] != 2:
        raise ValueError(f"expected shape (..., 2), got {array.shape}")
    a, b, c, d, e, f = affine
    x, y = array[..., 0], array[..., 1]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)


def _sources(affine: ViewAffine, size: int) -> tuple[Int64, Int64]:
    """Where each of the view's pixels comes from: x and y (S, S) in steps of 2^-32."""
    a, b, c, d, e, f = (round(value * _UNIT) for value in affine)
    determinant = a * e - b * d
    if determinant == 0:
        raise ValueError(f"the affine {affine} has no inverse: it is no view of a slice")
    if determinant < 0:
        a, b, d, e, determinant = -a, -b, -d, -e, -determinant
    # Python's integers have no bound: the one rounding is that to 2^-32, half up.
    inverse = [
        ((value << (_SOURCE_BITS + 1)) * _UNIT + determinant) // (2 * determinant)
        for value in (e, -b, -d, a)
    ]
    start = [
        ((value << (_SOURCE_BITS + 1)) + determinant) // (2 * determinant)
        for value in (b * f - e * c, d * c - a * f)
    ]
    largest = _LARGEST << _SOURCE_BITS
    if max(map(abs, inverse)) > largest or max(map(abs, start)) > largest * size:
        raise ValueError(f"the affine {affine} leaves next to nothing of {size} x {size} pixels")
    place = np.arange(size, dtype=np.int64)
    over, down = place[None, :], place[:, None]
    return (
        inverse[0] * over + (inverse[1] * down + start[0]),
        inverse[2] * over + (inverse[3] * down + start[1]),
    )
