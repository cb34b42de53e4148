"""Windows of neighbouring slices from labelled volumes, augmented: food for a teacher's training.

Shape letters: W windows, L slices of a window, S network input in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LabelledVolume", "cut_window"]


@dataclass(frozen=True, kw_only=True)
class LabelledVolume:
    """A volume to cut windows from.

    Attributes:
        image: uint8 (D, H, W).
        label: (D, H, W) integer, 0 = background.
    """

    image: np.ndarray
    label: np.ndarray


def cut_window(
    volume: LabelledVolume,
    generator: np.random.Generator,
    *,
    length: int,
    size: int,
    strong: bool,
) -> tuple[Tensor, Tensor]:
    """Neighbouring slices in either order, under one random affine map and one random intensity.

    Args:
        volume: at least one slice deep; slices repeat at its end where it is too short.
        generator: source of all randomness.
        length: slices of the window.
        size: side of the result in pixels.
        strong: also random contrast, inversion and noise: for a volume that is seen many times.

    Returns:
        image (L, S, S) float32 in [0, 255] and label (L, S, S) int64.
    """
    depth = volume.image.shape[0]
    stride = int(generator.choice([1, 1, 2])) if depth >= 2 * length else 1
    span = (length - 1) * stride + 1
    start = int(generator.integers(max(depth - span, 0) + 1))
    indices = np.minimum(start + np.arange(length) * stride, depth - 1)
    if generator.random() < 0.5:
        indices = indices[::-1]
    image = torch.from_numpy(volume.image[indices].astype(np.float32)).unsqueeze(1)
    label = torch.from_numpy(volume.label[indices].astype(np.float32)).unsqueeze(1)
    grid = _affine_grid(generator, length, size)
    image = F.grid_sample(image, grid, align_corners=False, padding_mode="border")
    label = F.grid_sample(label, grid, align_corners=False, mode="nearest", padding_mode="zeros")
    image = _intensity(image.squeeze(1), generator) if strong else image.squeeze(1)
    return image.clamp(0, 255), label.squeeze(1).long()


def _affine_grid(generator: np.random.Generator, length: int, size: int) -> Tensor:
    """Rotation within 20°, scale 0.8–1.25, shift within 8 %, mirror: one map for all slices."""
    angle = np.deg2rad(generator.uniform(-20, 20))
    scale = np.exp(generator.uniform(np.log(0.8), np.log(1.25), 2))
    mirror = np.where(generator.random(2) < np.array([0.5, 0.1]), -1.0, 1.0)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) * (scale * mirror)
    theta = np.concatenate([matrix, generator.uniform(-0.08, 0.08, (2, 1)) * 2], axis=1)
    batch = torch.from_numpy(theta.astype(np.float32)).expand(length, 2, 3)
    return F.affine_grid(batch, [length, 1, size, size], align_corners=False)


def _intensity(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Random gamma, contrast, brightness, inversion and noise; image in [0, 255]."""
    unit = (image / 255).clamp(0, 1) ** float(np.exp(generator.uniform(-0.4, 0.4)))
    unit = (unit - 0.5) * float(generator.uniform(0.7, 1.2)) + 0.5 + generator.uniform(-0.1, 0.1)
    if generator.random() < 0.1:
        unit = 1 - unit
    sigma = float(generator.uniform(0, 0.04))
    noise = generator.standard_normal(tuple(unit.shape), dtype=np.float32)
    return (unit + sigma * torch.from_numpy(noise)) * 255
