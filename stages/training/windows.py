"""Windows of neighbouring slices from labelled volumes, augmented: food for a teacher's training.

Shape letters: L slices of a window, S network input in pixels, D H W volume axes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from efficient_medsam2.synthetic.noise import smooth_noise

__all__ = ["UNKNOWN_KIND", "LabelledVolume", "cut_window", "visible_objects"]

UNKNOWN_KIND = -1
"""Kind of every pixel of a volume whose objects have no kinds."""


@dataclass(frozen=True, kw_only=True)
class LabelledVolume:
    """A volume to cut windows from.

    Attributes:
        image: uint8 (D, H, W).
        label: (D, H, W) integer, 0 = background.
        kinds: label → what kind of structure it is, from 1: the left and the right one of a pair
            share a kind. Empty where labels only tell objects apart.
    """

    image: np.ndarray
    label: np.ndarray
    kinds: Mapping[int, int] = field(default_factory=dict)


def visible_objects(label_SS: np.ndarray, smallest: int) -> np.ndarray:
    """Objects of at least ``smallest`` pixels on a slice, ascending."""
    counts = np.bincount(label_SS.ravel())
    counts[0] = 0
    return np.flatnonzero(counts >= smallest)


def cut_window(
    volume: LabelledVolume,
    generator: np.random.Generator,
    *,
    length: int,
    size: int,
    strong: bool,
    first: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Neighbouring slices in either order, under one random map and one random intensity.

    Args:
        volume: at least one slice deep; slices repeat at its end where it is too short.
        generator: source of all randomness.
        length: slices of the window.
        size: side of the result in pixels.
        strong: also elastic deformation, tilt, and random contrast, bias field, inversion and
            noise: for a volume that is seen many times.
        first: slice of the volume that the window begins at; None draws one.

    Returns:
        image (L, S, S) float32 in [0, 255] and label (L, S, S) int64.
    """
    depth = volume.image.shape[0]
    position_L = _positions(generator, depth, length, first, strong=strong)
    # A volume that is seen many times is seen nearly as it is, too: so it comes in use.
    strength = float(generator.random()) if strong else 1.0
    theta = _affine(generator, strength)
    if not strong:
        nearest = np.rint(position_L).astype(np.int64)
        image = torch.from_numpy(volume.image[nearest].astype(np.float32)).unsqueeze(1)
        label = torch.from_numpy(volume.label[nearest].astype(np.float32)).unsqueeze(1)
        maps = torch.from_numpy(theta).expand(length, 2, 3)
        grid = F.affine_grid(maps, [length, 1, size, size], align_corners=False)
        image = F.grid_sample(image, grid, align_corners=False, padding_mode="border")
        label = F.grid_sample(label, grid, align_corners=False, mode="nearest")
        return image.squeeze(1).clamp(0, 255), label.squeeze(1).long()
    low, high = int(np.floor(position_L.min())), int(np.ceil(position_L.max()))
    low, high = max(low - 2, 0), min(high + 2, depth - 1)
    image = torch.from_numpy(volume.image[low : high + 1].astype(np.float32))[None, None]
    label = torch.from_numpy(volume.label[low : high + 1].astype(np.float32))[None, None]
    grid = _warped_grid(
        generator, position_L - low, theta, depth=high - low + 1, size=size, strength=strength
    )
    image = F.grid_sample(image, grid, align_corners=False, padding_mode="border")[0, 0]
    label = F.grid_sample(label, grid, align_corners=False, mode="nearest")[0, 0]
    return _intensity(image, generator, strength).clamp(0, 255), label.long()


def _positions(
    generator: np.random.Generator, depth: int, length: int, first: int | None, *, strong: bool
) -> npt.NDArray[np.float64]:
    """Where along D each slice of the window lies: (L,), ascending or descending, inside."""
    if strong:
        stride = float(generator.choice([0.7, 1.0, 1.0, 1.0, 1.5]))
    else:
        stride = float(generator.choice([1, 1, 2])) if depth >= 2 * length else 1.0
    span = (length - 1) * stride
    direction = 1.0 if generator.random() < 0.5 else -1.0
    if first is None:
        reach = int(generator.integers(max(int(depth - 1 - span), 0) + 1))
        first = reach if direction > 0 else depth - 1 - reach
    elif not 0 <= first + direction * span <= depth - 1:
        # Where this way is too short, the longer one is taken.
        direction = 1.0 if first <= (depth - 1) / 2 else -1.0
    wanted = first + direction * np.arange(length) * stride
    inside: npt.NDArray[np.float64] = np.clip(wanted, 0, depth - 1)
    return inside


def _affine(generator: np.random.Generator, strength: float) -> npt.NDArray[np.float32]:
    """Rotation within 20°, scale 0.7–1.4, shift within 8 %, mirror: (2, 3)."""
    angle = np.deg2rad(strength * generator.uniform(-20, 20))
    scale = np.exp(strength * generator.uniform(np.log(0.7), np.log(1.4), 2))
    mirror = np.where(generator.random(2) < np.array([0.5, 0.1 * strength]), -1.0, 1.0)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) * (scale * mirror)
    theta = np.concatenate([matrix, strength * generator.uniform(-0.16, 0.16, (2, 1))], axis=1)
    return np.asarray(theta, np.float32)


def _warped_grid(
    generator: np.random.Generator,
    position_L: npt.NDArray[np.float64],
    theta: npt.NDArray[np.float32],
    *,
    depth: int,
    size: int,
    strength: float,
) -> Tensor:
    """Sampling grid (1, L, S, S, 3) of a bent, tilted window, never beyond the ``depth`` slices."""
    length = len(position_L)
    plane = F.affine_grid(torch.from_numpy(theta)[None], [1, 1, size, size], align_corners=False)
    plane = plane.expand(length, size, size, 2)
    cells = (1, *generator.integers(2, 7, 2).tolist())
    shape = (length, size, size)
    reach = np.float32(strength * generator.uniform(0, 0.05))
    bent = [smooth_noise(generator, shape, cells) * reach for _ in range(2)]
    plane = plane + torch.from_numpy(np.stack(bent, axis=-1))
    tilt = strength * generator.uniform(-1.0, 1.0, 2) * generator.choice([0.0, 2.0])
    ticks = np.linspace(-1, 1, size)
    offset = tilt[0] * ticks[:, None] + tilt[1] * ticks[None]
    along = np.clip(position_L[:, None, None] + offset, 0, depth - 1)
    unit = torch.from_numpy(((2 * along + 1) / depth - 1).astype(np.float32))
    return torch.cat([plane, unit.unsqueeze(-1)], dim=-1).unsqueeze(0)


def _intensity(image_LSS: Tensor, generator: np.random.Generator, strength: float) -> Tensor:
    """Random gamma, bias field, contrast, brightness, inversion, blur and noise; in [0, 255]."""
    gamma = float(np.exp(strength * generator.uniform(-0.5, 0.5)))
    unit = (image_LSS / 255).clamp(0, 1) ** gamma
    shape = (unit.shape[0], unit.shape[1], unit.shape[2])
    if generator.random() < 0.5:
        bias = smooth_noise(generator, shape, (1, 2, 2))
        bend = np.float32(strength * generator.uniform(0, 0.2))
        unit = unit * torch.from_numpy(np.exp(bend * bias))
    contrast = float(np.exp(strength * generator.uniform(-0.4, 0.2)))
    unit = (unit - 0.5) * contrast + 0.5 + strength * float(generator.uniform(-0.1, 0.1))
    if generator.random() < 0.08 * strength:
        unit = 1 - unit
    if generator.random() < 0.3 * strength:
        unit = F.avg_pool2d(unit.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
    sigma = strength * float(generator.choice([0.0, generator.uniform(0, 0.06)]))
    noise = generator.standard_normal(shape, dtype=np.float32)
    return (unit + sigma * torch.from_numpy(noise)) * 255
