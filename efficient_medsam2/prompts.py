"""Prompts made from masks: boxes with jitter and points, as a user would give them.

Several points, positive and negative, are in ``prompts_points``; RECIST marks in
``prompts_recist``.

Pixels are those of the network input; a box is (x0, y0, x1, y1) with x1 and y1 the last pixel of
the object, as in the CVPR24 challenge files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from efficient_medsam2.networks.records import IGNORED_LABEL, Prompts

__all__ = [
    "SampledPrompt",
    "box_of",
    "challenge_boxes",
    "error_point",
    "inside_point",
    "jittered_box",
    "jittered_boxes",
    "sample_prompt",
    "stack_prompts",
]

MAXIMUM_JITTER_PIXELS = 20.0
"""MedSAM2 draws box noise from U(±min(0.1 * side, 20 px)) at 512 px."""

CHALLENGE_SHIFT_PIXELS = 5
"""The CVPR24 challenge's LiteMedSAM moves each side outward by 0 to 5 px at 256 px."""


@dataclass(frozen=True, kw_only=True)
class SampledPrompt:
    """One prompt.

    Attributes:
        kind: ``box``, ``point``, ``recist`` or ``mask`` (which has no points).
        points_N2: (N, 2) float32 as (x, y).
        labels_N: (N,) int64: 1 foreground, 0 background, 2 and 3 box corners.
    """

    kind: str
    points_N2: np.ndarray
    labels_N: np.ndarray


def box_of(mask_HW: np.ndarray) -> np.ndarray:
    """Tight box (4,) float32 of a mask.

    Raises:
        ValueError: the mask is empty.
    """
    rows = np.flatnonzero(mask_HW.any(axis=1))
    columns = np.flatnonzero(mask_HW.any(axis=0))
    if rows.size == 0:
        raise ValueError("an empty mask has no box")
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float32)


def jittered_box(
    box: np.ndarray, generator: np.random.Generator, *, size: int, fraction: float = 0.1
) -> np.ndarray:
    """Move each corner by U(±min(fraction * side, 20 px * size / 512)), clipped to the image."""
    noise = generator.uniform(-1, 1, 4)
    moved: np.ndarray = jittered_boxes(box[None], noise[None], size=size, fraction=fraction)[0]
    return moved


def jittered_boxes(
    boxes_N4: np.ndarray, noise_N4: np.ndarray, *, size: int, fraction: float
) -> np.ndarray:
    """``jittered_box`` of many boxes at once.

    Args:
        boxes_N4: (N, 4) float32.
        noise_N4: (N, 4) numbers of U(-1, 1).
        size: S in pixels.
        fraction: noise as a fraction of the side.

    Returns:
        (N, 4) float32.
    """
    sides = np.tile(boxes_N4[:, 2:] - boxes_N4[:, :2], 2).astype(np.float32) + 1
    reach = np.minimum(fraction * sides, MAXIMUM_JITTER_PIXELS * size / 512)
    moved = boxes_N4 + noise_N4.astype(np.float32) * reach
    low, high = np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])
    clipped: np.ndarray = np.clip(np.concatenate([low, high], axis=1), 0, size - 1)
    return clipped.astype(np.float32)


def challenge_boxes(boxes_N4: np.ndarray, shifts_N4: np.ndarray, *, size: int) -> np.ndarray:
    """Boxes as the CVPR24 challenge's training draws them: every side moved outward.

    Args:
        boxes_N4: (N, 4) float32.
        shifts_N4: (N, 4) integers from 0 to ``CHALLENGE_SHIFT_PIXELS``, in pixels at 256.
        size: S in pixels.

    Returns:
        (N, 4) float32, clipped to the image.
    """
    outward = np.array([-1, -1, 1, 1], dtype=np.float32) * (size / 256)
    moved: np.ndarray = np.clip(boxes_N4 + shifts_N4.astype(np.float32) * outward, 0, size - 1)
    return moved.astype(np.float32)


def inside_point(mask_HW: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random point (2,) as (x, y) inside a mask, at least as deep in it as its median pixel.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    if rows.size == 0:
        raise ValueError("an empty mask has no point inside")
    top, left = int(rows[0]), int(columns[0])
    # The nearest background lies in the object's box or next to it: no need to look further.
    inner = mask_HW[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    distance = ndimage.distance_transform_edt(np.pad(inner, 1))[1:-1, 1:-1]
    deep = np.flatnonzero(distance >= np.median(distance[distance > 0]))
    row, column = divmod(int(deep[generator.integers(deep.size)]), inner.shape[1])
    return np.array([column + left, row + top], dtype=np.float32)


def error_point(
    predicted_HW: np.ndarray, truth_HW: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """A corrective click: a point in the larger error region and its label (1 missed, 0 false).

    Where the prediction is exact the point is a plain foreground one. Both masks are bool.

    Raises:
        ValueError: both masks are empty.
    """
    missed, false = truth_HW & ~predicted_HW, predicted_HW & ~truth_HW
    if not missed.any() and not false.any():
        return inside_point(truth_HW, generator), 1
    region, label = (missed, 1) if missed.sum() >= false.sum() else (false, 0)
    return inside_point(region, generator), label


def sample_prompt(
    mask_HW: np.ndarray,
    generator: np.random.Generator,
    *,
    box_share: float = 0.5,
    jitter: float = 0.1,
) -> SampledPrompt:
    """A box (with jitter) or a foreground point for one object.

    Args:
        mask_HW: the object on the network's grid, not empty.
        generator: source of all randomness.
        box_share: probability of a box.
        jitter: box noise as a fraction of its side.

    Raises:
        ValueError: the mask is empty.
    """
    if generator.random() < box_share:
        box = jittered_box(box_of(mask_HW), generator, size=mask_HW.shape[0], fraction=jitter)
        return SampledPrompt(
            kind="box", points_N2=box.reshape(2, 2), labels_N=np.array([2, 3], dtype=np.int64)
        )
    point = inside_point(mask_HW, generator)
    return SampledPrompt(
        kind="point", points_N2=point[None], labels_N=np.array([1], dtype=np.int64)
    )


def stack_prompts(prompts: Sequence[SampledPrompt]) -> Prompts:
    """Prompts of several lengths (at least one) as one batch, the shorter ones padded.

    The prompt encoder turns a padding point into a token of zeros; see ``Prompts.labels_BN``.
    """
    longest = max(len(prompt.labels_N) for prompt in prompts)
    points = np.zeros((len(prompts), longest, 2), dtype=np.float32)
    labels = np.full((len(prompts), longest), IGNORED_LABEL, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        points[row, : len(prompt.labels_N)] = prompt.points_N2
        labels[row, : len(prompt.labels_N)] = prompt.labels_N
    return Prompts(points_BN2=torch.from_numpy(points), labels_BN=torch.from_numpy(labels))
