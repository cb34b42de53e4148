"""Domain-randomised volumes: unlimited labelled pictures to train a segmenter from nothing.

A volume is a stack of random solids, painted one over another on smoothly warped coordinates, seen
through random contrast, texture and the artefacts of a random modality. Idea: SynthSeg (Billot et
al. 2023) and SynthMorph (Hoffmann et al. 2022), with shapes in place of label maps.

Shape letters: D, H, W volume axes; 3 = (z, y, x); N = D * H * W voxels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficient_medsam2.synthetic.appearance import Modality, render
from efficient_medsam2.synthetic.noise import warped_coordinates
from efficient_medsam2.synthetic.record import SyntheticVolume
from efficient_medsam2.synthetic.shapes import Shape, draw_shape, mirrored, moved, split_in_two

__all__ = ["generate_volume"]

_SMALLEST_SHARE = 30 / 128**2
"""An object must reach this share of some slice: 30 pixels at 128 x 128."""
_LARGEST_SHARE = 0.5
_ATTEMPTS = 20
_IN_PARTS = 0.25
"""How often an object that lies alone has two parts, as a ventricle does on many slices."""


@dataclass(kw_only=True)
class _Canvas:
    """What is being painted: object labels, and the finer regions that carry brightness.

    ``points`` is (3, N); ``support`` (where objects may lie), ``label`` and ``region`` are (N,).
    """

    points: npt.NDArray[np.float32]
    support: npt.NDArray[np.bool_]
    label: npt.NDArray[np.uint16]
    region: npt.NDArray[np.uint16]
    brightness: list[float]
    kinds: dict[int, str]
    shape: tuple[int, int, int]


def generate_volume(
    generator: np.random.Generator,
    *,
    shape: tuple[int, int, int],
    objects: tuple[int, int] = (2, 10),
    name: str = "synthetic",
) -> SyntheticVolume:
    """Draw a random labelled volume.

    Args:
        generator: source of all randomness: the same state gives the same volume.
        shape: (D, H, W), each at least 1; objects are sized relative to the longer of H and W.
        objects: fewest and most objects. Every object covers at least 30 px (at 128 x 128, and in
            proportion at other sizes) on at least one slice, and at most half of any slice.
        name: name of the volume.

    Returns:
        A volume of split "train", whose labels run from 1 without gaps.

    Raises:
        ValueError: ``shape`` or ``objects`` make no sense, or so many objects do not fit.

    """
    fewest, most = objects
    if min(shape) < 1 or max(shape[1:]) < 16:
        raise ValueError(f"shape {shape} is too small: pass (D, H, W) with H or W of at least 16")
    if not 1 <= fewest <= most:
        raise ValueError(f"objects {objects} must be (fewest, most) with 1 <= fewest <= most")

    modality: Modality = ("MR", "CT", "US")[generator.choice(3, p=(0.5, 0.33, 0.17))]
    thickness = float(np.exp(generator.uniform(np.log(0.8), np.log(5.0))))
    in_plane_mm = float(generator.uniform(0.5, 1.5))
    wanted = int(generator.integers(fewest, most + 1))
    for _ in range(_ATTEMPTS):
        canvas = _blank(generator, shape, thickness, modality)
        _paint_objects(generator, canvas, wanted)
        if len(canvas.kinds) >= fewest:
            break
    else:
        raise ValueError(
            f"{_ATTEMPTS} attempts found no room for {fewest} objects in shape {shape}: "
            "ask for fewer objects or a larger shape"
        )
    image = render(
        generator,
        canvas.region.reshape(shape),
        brightness_R=np.asarray(canvas.brightness, np.float32),
        visible=_visible(canvas, modality),
        modality=modality,
    )
    return SyntheticVolume(
        name=name,
        split="train",
        image=image,
        label=canvas.label.reshape(shape),
        spacing_mm=(thickness * in_plane_mm, in_plane_mm, in_plane_mm),
        object_names={value: f"{kind}-{value}" for value, kind in canvas.kinds.items()},
        modality=modality,
    )


def _blank(
    generator: np.random.Generator,
    shape: tuple[int, int, int],
    thickness: float,
    modality: Modality,
) -> _Canvas:
    """Make the body (or an ultrasound fan, or tissue everywhere) with no object in it."""
    points = warped_coordinates(
        generator, shape, thickness=thickness, strength=generator.uniform(0.02, 0.14)
    )
    count = points.shape[1]
    background = 0.0 if modality != "MR" else float(generator.uniform(0, 0.05))
    tissue = float(generator.uniform(0.2, 0.8))
    region = np.ones(count, np.uint16)
    brightness = [background, tissue]
    if modality == "US":
        region[~_fan(generator, shape)] = 0
    elif generator.random() < 0.65:
        radii = np.array([generator.uniform(1.2, 4), *generator.uniform(0.75, 1.3, 2)])
        offset = np.array([0, *generator.uniform(-0.15, 0.15, 2)])
        local = (points - offset[:, None].astype(np.float32)) / radii[:, None].astype(np.float32)
        level = np.sqrt(np.square(local).sum(axis=0))
        region[level > 1] = 0
        for _ in range(int(generator.integers(0, 3))):
            # Layers under the surface: skin, fat, bone.
            outer = generator.uniform(0.86, 1.0)
            region[(level < outer) & (level > outer - generator.uniform(0.02, 0.07))] = len(
                brightness
            )
            brightness.append(float(generator.uniform(0, 1)))
    support = region > 0
    if support.sum() < 0.3 * count:
        region[:] = 1
        support[:] = True
    return _Canvas(
        points=points,
        support=support,
        label=np.zeros(count, np.uint16),
        region=region,
        brightness=brightness,
        kinds={},
        shape=shape,
    )


def _fan(generator: np.random.Generator, shape: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Field of view of a curved ultrasound probe at the top edge: (N,), equal on all slices."""
    _, height, width = shape
    rows, columns = np.indices((height, width), np.float32)
    apex = -generator.uniform(0.1, 0.6) * height
    down, across = rows - apex, columns - width / 2 + generator.uniform(-0.05, 0.05) * width
    radius = np.hypot(down, across)
    inside = (abs(np.arctan2(across, down)) < generator.uniform(0.5, 0.9)) & (
        (radius > -apex + 0.02 * height) & (radius < -apex + generator.uniform(0.92, 1.3) * height)
    )
    return np.broadcast_to(inside, shape).reshape(-1)


def _visible(canvas: _Canvas, modality: Modality) -> npt.NDArray[np.bool_]:
    if modality == "US":
        return canvas.support.reshape(canvas.shape)
    return np.ones(canvas.shape, np.bool_)


def _paint_objects(generator: np.random.Generator, canvas: _Canvas, wanted: int) -> None:
    """Paint unlabelled structures, then up to ``wanted`` objects, large ones first."""
    depth = float(np.abs(canvas.points[0]).max())
    sizes = np.exp(generator.uniform(np.log(0.06), np.log(0.55), 3 * wanted + 6))
    for size in np.sort(sizes[: generator.integers(0, 6)])[::-1]:
        shape = _draw(generator, canvas, size=float(size), depth=depth, parent=0)
        _fill(generator, canvas, _covered(canvas, shape), value=None)
    for size in _large_first(sizes[6:]):
        if len(canvas.kinds) >= wanted:
            break
        parent = 0
        if canvas.kinds and generator.random() < 0.35:
            parent = int(generator.integers(1, len(canvas.kinds) + 1))
        shape = _draw(generator, canvas, size=size, depth=depth, parent=parent)
        pair = _family(generator, shape, room=wanted - len(canvas.kinds))
        beside = parent == 0 and generator.random() < 0.4
        for member in pair:
            voxels = _covered(canvas, member)
            if len(pair) == 1 and parent == 0 and generator.random() < _IN_PARTS:
                second = _covered(canvas, _elsewhere(generator, member, size=size))
                voxels = np.union1d(voxels, second)
            if parent:
                voxels = voxels[canvas.label[voxels] == parent]
            elif beside:
                voxels = voxels[canvas.label[voxels] == 0]
            if _leaves_all_objects_in_range(canvas, voxels):
                _fill(generator, canvas, voxels, value=len(canvas.kinds) + 1)
                canvas.kinds[len(canvas.kinds) + 1] = member.kind
    if canvas.kinds and generator.random() < 0.4:
        # A lesion that belongs to its organ: objects need not be uniform inside.
        parent = int(generator.integers(1, len(canvas.kinds) + 1))
        shape = _draw(
            generator, canvas, size=generator.uniform(0.05, 0.2), depth=depth, parent=parent
        )
        voxels = _covered(canvas, shape)
        _fill(generator, canvas, voxels[canvas.label[voxels] == parent], value=None)


def _large_first(sizes: npt.NDArray[np.float64]) -> list[float]:
    """Order the first half of ``sizes`` from large to small; the rest are second chances."""
    half = len(sizes) // 2
    return [*np.sort(sizes[:half])[::-1].tolist(), *sizes[half:].tolist()]


def _draw(
    generator: np.random.Generator, canvas: _Canvas, *, size: float, depth: float, parent: int
) -> Shape:
    """Draw a solid around a random voxel of ``parent`` (0: anywhere in the body)."""
    inside = canvas.label == parent if parent else canvas.support
    candidates = np.flatnonzero(inside)
    z, y, x = canvas.points[:, generator.choice(candidates)]
    if parent:
        side = np.sqrt(len(candidates) / canvas.label.size)
        size = max(0.05, min(size, float(side)))
    return draw_shape(generator, center=(float(z), float(y), float(x)), size=size, depth=depth)


def _family(generator: np.random.Generator, shape: Shape, *, room: int) -> tuple[Shape, ...]:
    """Turn a solid into a mirrored pair or two touching halves, or leave it alone."""
    chance = generator.random()
    if room < 2 or chance < 0.65:
        return (shape,)
    if chance < 0.83:
        return (shape, mirrored(shape, plane_x=float(generator.uniform(-0.1, 0.1))))
    return split_in_two(generator, shape)


def _elsewhere(generator: np.random.Generator, shape: Shape, *, size: float) -> Shape:
    """Move a solid within the slice: far enough to be a part of its own, most times."""
    angle = generator.uniform(0, 2 * np.pi)
    distance = size * generator.uniform(1.3, 3)
    return moved(shape, down=distance * float(np.sin(angle)), right=distance * float(np.cos(angle)))


def _covered(canvas: _Canvas, shape: Shape) -> npt.NDArray[np.int64]:
    """Voxels of the body inside a solid, as flat indices."""
    near = canvas.support.copy()
    for axis in range(3):
        near &= np.abs(canvas.points[axis] - np.float32(shape.center[axis])) < shape.reach
    voxels = np.flatnonzero(near)
    center = np.asarray(shape.center, np.float32)[:, None]
    inside = shape.contains(np.ascontiguousarray(canvas.points[:, voxels]) - center)
    return voxels[inside]


def _leaves_all_objects_in_range(canvas: _Canvas, voxels: npt.NDArray[np.int64]) -> bool:
    """Whether painting ``voxels`` as a new object keeps each object's largest slice in range."""
    depth, height, width = canvas.shape
    area = height * width
    pixels = np.bincount(voxels // area, minlength=depth).max(initial=0)
    if not _SMALLEST_SHARE * area <= pixels <= _LARGEST_SHARE * area:
        return False
    count = len(canvas.kinds) + 1
    key = (np.arange(depth)[:, None] * count + canvas.label.reshape(depth, area)).ravel()
    left = np.bincount(key, minlength=depth * count)
    left -= np.bincount(key[voxels], minlength=depth * count)
    largest = left.reshape(depth, count).max(axis=0)[1:]
    return bool((largest >= _SMALLEST_SHARE * area).all())


def _fill(
    generator: np.random.Generator,
    canvas: _Canvas,
    voxels: npt.NDArray[np.int64],
    *,
    value: int | None,
) -> None:
    """Give ``voxels`` a new region of visible contrast, and the label ``value`` unless None."""
    if not len(voxels):
        return
    under = canvas.brightness[canvas.region[generator.choice(voxels)]]
    contrast = float(np.exp(generator.uniform(np.log(0.07), np.log(0.6))))
    sign = 1 if generator.random() < (0.5 if 0.1 < under < 0.9 else float(under <= 0.1)) else -1
    brightness = under + sign * contrast
    if not 0 <= brightness <= 1:
        brightness = under - sign * contrast
    canvas.region[voxels] = len(canvas.brightness)
    canvas.brightness.append(float(np.clip(brightness, 0, 1)))
    if value is not None:
        canvas.label[voxels] = value
