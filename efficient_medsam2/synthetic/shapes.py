"""Random solid shapes, each a test "is this point inside?" on warped coordinates.

Coordinates are normalised: the longer in-plane side runs from -1 to 1, and D uses the same unit.
Shape letters: 3 = (z, y, x), N points.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

__all__ = ["Shape", "draw_shape", "mirrored", "moved", "split_in_two"]

Points = npt.NDArray[np.float32]
Inside = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A solid.

    Attributes:
        kind: which family it was drawn from.
        center: (z, y, x) in normalised coordinates.
        reach: half side of a cube around ``center`` that holds the whole solid.
        contains: maps points (3, N) relative to ``center`` to bool (N,).

    """

    kind: str
    center: tuple[float, float, float]
    reach: float
    contains: Callable[[Points], Inside]


def draw_shape(
    generator: np.random.Generator,
    *,
    center: tuple[float, float, float],
    size: float,
    depth: float,
) -> Shape:
    """Draw a random solid of about ``size`` around ``center``.

    Args:
        generator: source of randomness.
        center: (z, y, x) in normalised coordinates.
        size: typical half extent in normalised units (1 = half of the image side).
        depth: half extent of the volume along z, in the same unit.

    Returns:
        An ellipsoid, blob, tube, ring, shell or sheet, sometimes pulsing along z.

    """
    draws = (_ellipsoid, _blob, _tube, _ring, _shell, _sheet)
    draw = draws[generator.choice(len(draws), p=(0.26, 0.3, 0.18, 0.06, 0.1, 0.1))]
    shape = draw(generator, center, size)
    if generator.random() < 0.15:
        shape = _pulsing(generator, shape, depth)
    return shape


def mirrored(shape: Shape, *, plane_x: float) -> Shape:
    """Reflect a solid at the plane x = ``plane_x``."""
    flip = np.array([[1], [1], [-1]], np.float32)
    z, y, x = shape.center
    return replace(
        shape,
        center=(z, y, 2 * plane_x - x),
        contains=lambda points: shape.contains(points * flip),
    )


def moved(shape: Shape, *, down: float, right: float) -> Shape:
    """Shift a solid within its slices."""
    z, y, x = shape.center
    return replace(shape, center=(z, y + down, x + right))


def split_in_two(generator: np.random.Generator, shape: Shape) -> tuple[Shape, Shape]:
    """Cut a solid at a wavy surface near its centre: two solids that touch."""
    axes = _rotation(generator)
    wave, phase = generator.uniform(2, 6) / shape.reach, generator.uniform(0, 2 * np.pi)
    height = generator.uniform(0, 0.15) * shape.reach
    offset = generator.uniform(-0.25, 0.25) * shape.reach

    def upper(points: Points) -> Inside:
        u, v, _ = axes @ points
        return np.asarray(u > offset + height * np.sin(wave * v + phase))

    return (
        replace(shape, contains=lambda points: shape.contains(points) & upper(points)),
        replace(shape, contains=lambda points: shape.contains(points) & ~upper(points)),
    )


def _rotation(generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw a uniform random rotation (3, 3)."""
    q, r = np.linalg.qr(generator.standard_normal((3, 3)))
    return np.asarray(q * np.sign(np.diag(r)), np.float32)


def _radii(generator: np.random.Generator, size: float, ratio: float) -> npt.NDArray[np.float32]:
    """Draw three radii around ``size``, at most ``ratio`` times smaller or larger: (3, 1)."""
    spread = np.exp(generator.uniform(-np.log(ratio), np.log(ratio), 3))
    return np.asarray(size * spread, np.float32)[:, None]


def _bumps(
    generator: np.random.Generator, size: float, *, waves: int
) -> Callable[[Points], npt.NDArray[np.float32]]:
    """Draw a sum of plane waves, a smooth noise that can be evaluated at any point."""
    frequency = generator.standard_normal((waves, 3)) * generator.uniform(1.2, 3.0) / size
    frequency_K3 = frequency.astype(np.float32)
    phase_K1 = generator.uniform(0, 2 * np.pi, (waves, 1)).astype(np.float32)
    scale = np.float32(np.sqrt(2 / waves))
    return lambda points: scale * np.sin(frequency_K3 @ points + phase_K1).sum(axis=0)


def _ellipsoid(
    generator: np.random.Generator, center: tuple[float, float, float], size: float
) -> Shape:
    radii = _radii(generator, size, 1.8)
    axes = _rotation(generator) / radii
    return Shape(
        kind="ellipsoid",
        center=center,
        reach=float(radii.max()),
        contains=lambda points: np.square(axes @ points).sum(axis=0) < 1,
    )


def _blob(generator: np.random.Generator, center: tuple[float, float, float], size: float) -> Shape:
    radii = _radii(generator, size, 1.6)
    axes = _rotation(generator) / radii
    bumps = _bumps(generator, size, waves=5)
    strength = np.float32(generator.uniform(0.15, 0.45))

    def contains(points: Points) -> Inside:
        level = np.sqrt(np.square(axes @ points).sum(axis=0))
        return np.asarray(level + strength * bumps(points) < 1)

    return Shape(kind="blob", center=center, reach=2 * float(radii.max()), contains=contains)


def _tube(generator: np.random.Generator, center: tuple[float, float, float], size: float) -> Shape:
    axes = _rotation(generator)
    length = 2.2 * size
    radius = max(size * generator.uniform(0.12, 0.35), 0.035)
    knots = np.linspace(-length, length, 9)
    offsets = np.cumsum(generator.standard_normal((2, 9)), axis=1)
    offsets *= generator.uniform(0.1, 0.5) * size / 2
    offsets -= offsets[:, 4:5]
    radii = radius * np.exp(generator.uniform(-0.35, 0.35, 9))
    fine = np.linspace(-length, length, 65)
    # Smooth the polyline: a cubic through the knots would overshoot.
    window = np.hanning(13)[1:-1] / np.hanning(13)[1:-1].sum()

    def line(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        padded = np.pad(np.interp(fine, knots, values), 5, mode="edge")
        return np.convolve(padded, window, mode="valid")

    first, second, width = line(offsets[0]), line(offsets[1]), line(radii)

    def contains(points: Points) -> Inside:
        t, u, v = axes @ points
        distance = np.square(u - np.interp(t, fine, first)) + np.square(
            v - np.interp(t, fine, second)
        )
        return np.asarray((distance < np.square(np.interp(t, fine, width))) & (abs(t) < length))

    return Shape(kind="tube", center=center, reach=1.5 * length, contains=contains)


def _ring(generator: np.random.Generator, center: tuple[float, float, float], size: float) -> Shape:
    axes = _rotation(generator)
    thickness = max(size * generator.uniform(0.2, 0.4), 0.04)

    def contains(points: Points) -> Inside:
        u, v, w = axes @ points
        return np.asarray(np.square(np.hypot(u, v) - size) + w * w < thickness * thickness)

    return Shape(kind="ring", center=center, reach=size + thickness, contains=contains)


def _shell(
    generator: np.random.Generator, center: tuple[float, float, float], size: float
) -> Shape:
    radii = _radii(generator, size, 1.5)
    axes = _rotation(generator) / radii
    half = max(generator.uniform(0.06, 0.16), 0.03 / size)
    cut = generator.uniform(-1.2, 0.8)

    def contains(points: Points) -> Inside:
        local = axes @ points
        level = np.sqrt(np.square(local).sum(axis=0))
        return np.asarray((abs(level - 1) < half) & (local[0] > cut))

    return Shape(
        kind="shell", center=center, reach=float(radii.max()) * (1 + half), contains=contains
    )


def _sheet(
    generator: np.random.Generator, center: tuple[float, float, float], size: float
) -> Shape:
    axes = _rotation(generator)
    half = max(size * generator.uniform(0.06, 0.15), 0.03)
    bend_v, bend_w = generator.uniform(-0.6, 0.6, 2) / size
    wave, phase = generator.uniform(1, 4) / size, generator.uniform(0, 2 * np.pi)
    height = generator.uniform(0, 0.2) * size

    def contains(points: Points) -> Inside:
        u, v, w = axes @ points
        surface = bend_v * v * v + bend_w * w * w + height * np.sin(wave * v + phase)
        return np.asarray((abs(u - surface) < half) & (v * v + w * w < 1.7 * size * size))

    return Shape(kind="sheet", center=center, reach=2.2 * size, contains=contains)


def _pulsing(generator: np.random.Generator, shape: Shape, depth: float) -> Shape:
    """Let the cross section swell and vanish along z, so that it leaves and comes back."""
    wave = generator.uniform(0.8, 1.8) * np.pi / max(depth, 1e-3)
    phase = generator.uniform(0, 2 * np.pi)

    def contains(points: Points) -> Inside:
        width = 0.45 + 0.75 * np.sin(wave * points[0] + phase)
        alive = width > 0.1
        shrunk = points / np.where(alive, np.minimum(width, 1), 1)
        shrunk[0] = points[0]
        return np.asarray(shape.contains(shrunk.astype(np.float32)) & alive)

    return replace(shape, contains=contains)
