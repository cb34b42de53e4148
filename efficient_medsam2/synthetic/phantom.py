"""A fixed body of nested, bent structures, cut into slabs: a small study made in milliseconds.

Coordinates are normalised: the slice runs from -1 to 1 in y and x, and so does the stack in z.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from efficient_medsam2.synthetic.appearance import render
from efficient_medsam2.synthetic.noise import warped_coordinates
from efficient_medsam2.synthetic.record import Split, SyntheticVolume

__all__ = ["PHANTOM_OBJECTS", "phantom"]

PHANTOM_OBJECTS = {
    1: "organ",
    2: "organ-core",
    3: "kidney-right",
    4: "kidney-left",
    5: "vessel",
    6: "capsule",
}

_SLAB_SHARES: tuple[tuple[Split, float, float], ...] = (
    ("train", 0.0, 0.34),
    ("validation", 0.34, 0.5),
    ("train", 0.5, 0.72),
    ("test", 0.72, 1.0),
)
_GUARD_SLICES = 2
_SMALLEST_DEPTH = 24

Coordinates = npt.NDArray[np.float32]
Solid = Callable[[Coordinates, Coordinates, Coordinates], npt.NDArray[np.bool_]]


def phantom(seed: int = 0, *, size: int = 96, depth: int = 40) -> list[SyntheticVolume]:
    """Make the phantom and cut it into axial slabs.

    Args:
        seed: chooses the bending, the texture and the noise; the anatomy stays the same.
        size: height and width in pixels, at least 48; the body is 192 mm wide at any size.
        depth: number of slices of the uncut volume, at least 24; the body is 192 mm long.

    Returns:
        Slabs in the order of their slices, of splits train, validation, train and test, with two
        guard slices between any two that belong to none. Every slab shows all six objects.

    Raises:
        ValueError: ``size`` or ``depth`` is too small to show every object in every slab.

    """
    if size < 48 or depth < _SMALLEST_DEPTH:
        raise ValueError(
            f"a phantom of size {size} and depth {depth} is too small: "
            f"pass a size of at least 48 and a depth of at least {_SMALLEST_DEPTH}"
        )
    generator = np.random.default_rng(seed)
    shape = (depth, size, size)
    z, y, x = warped_coordinates(generator, shape, thickness=size / depth, strength=0.05).reshape(
        3, *shape
    )
    region = _body(z, y, x).astype(np.uint16)
    label = np.zeros(shape, np.uint16)
    for value, solid in _SOLIDS.items():
        inside = solid(z, y, x)
        label[inside] = value
        region[inside] = value + 1
    image = render(
        generator,
        region,
        brightness_R=np.array([0.02, 0.4, 0.62, 0.8, 0.25, 0.25, 0.95, 0.12], np.float32),
        visible=np.ones(shape, np.bool_),
        modality="MR",
    )
    volumes = []
    for split, low, high in _SLAB_SHARES:
        first = round(low * depth) + (_GUARD_SLICES if low > 0 else 0)
        slab = slice(first, round(high * depth))
        volumes.append(
            SyntheticVolume(
                name=f"phantom-{seed}-{split}-z{first:03d}",
                split=split,
                image=image[slab],
                label=label[slab],
                spacing_mm=(192 / depth, 192 / size, 192 / size),
                object_names=dict(PHANTOM_OBJECTS),
                modality="MR",
            )
        )
    return volumes


def _body(z: Coordinates, y: Coordinates, x: Coordinates) -> npt.NDArray[np.bool_]:
    return np.asarray((y / 0.88) ** 2 + (x / 0.94) ** 2 + (z / 2.5) ** 2 < 1)


def _organ(z: Coordinates, y: Coordinates, x: Coordinates) -> npt.NDArray[np.bool_]:
    return np.asarray(((y + 0.32) / 0.36) ** 2 + ((x + 0.3) / 0.42) ** 2 + (z / 1.5) ** 2 < 1)


def _organ_core(z: Coordinates, y: Coordinates, x: Coordinates) -> npt.NDArray[np.bool_]:
    return np.asarray(((y + 0.32) / 0.18) ** 2 + ((x + 0.36) / 0.2) ** 2 + (z / 1.4) ** 2 < 1)


def _kidney_right(z: Coordinates, y: Coordinates, x: Coordinates) -> npt.NDArray[np.bool_]:
    bean = ((y - 0.36) / 0.27) ** 2 + ((x + 0.45) / 0.22) ** 2 + (z / 1.5) ** 2 < 1
    return np.asarray(bean & ((y - 0.36) ** 2 + (x + 0.2) ** 2 > 0.12**2))


def _kidney_left(z: Coordinates, y: Coordinates, x: Coordinates) -> npt.NDArray[np.bool_]:
    return _kidney_right(z, y, -x)


def _vessel(z: Coordinates, y: Coordinates, x: Coordinates) -> npt.NDArray[np.bool_]:
    across = (y - 0.2 - 0.1 * np.cos(3 * z)) ** 2 + (x - 0.08 * np.sin(4 * z)) ** 2
    return np.asarray(across < (0.11 + 0.02 * np.sin(5 * z)) ** 2)


def _capsule(z: Coordinates, y: Coordinates, x: Coordinates) -> npt.NDArray[np.bool_]:
    radius = np.sqrt(((y + 0.3) / 0.32) ** 2 + ((x - 0.45) / 0.26) ** 2 + (z / 1.6) ** 2)
    return np.asarray(abs(radius - 0.9) < 0.13)


_SOLIDS: dict[int, Solid] = {
    1: _organ,
    2: _organ_core,
    3: _kidney_right,
    4: _kidney_left,
    5: _vessel,
    6: _capsule,
}
"""What each value of ``PHANTOM_OBJECTS`` covers; later ones are painted over earlier ones."""
