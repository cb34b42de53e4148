"""Several points on one object: the first inside it, the others inside it or beside it."""

import numpy as np

from efficient_medsam2.prompts import SampledPrompt, box_of, inside_point

__all__ = ["outside_point", "sample_points"]


def outside_point(mask_HW: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
    """A random background point (2,) as (x, y) near a mask.

    It lies in the object's box enlarged by half of each side, one pixel at least, where a user
    would click to keep an answer from spilling.

    Args:
        mask_HW: the object, not empty.
        generator: source of all randomness.

    Returns:
        The point, or None where the object fills all of that box.

    Raises:
        ValueError: the mask is empty.
    """
    x0, y0, x1, y1 = (int(value) for value in box_of(mask_HW))
    across, down = max((x1 - x0 + 1) // 2, 1), max((y1 - y0 + 1) // 2, 1)
    left, top = max(x0 - across, 0), max(y0 - down, 0)
    rows, columns = np.nonzero(~mask_HW[top : y1 + down + 1, left : x1 + across + 1])
    if rows.size == 0:
        return None
    pick = generator.integers(rows.size)
    return np.array([columns[pick] + left, rows[pick] + top], dtype=np.float32)


def sample_points(
    mask_HW: np.ndarray,
    generator: np.random.Generator,
    *,
    most: int = 1,
    negative_share: float = 0.0,
) -> SampledPrompt:
    """1 to ``most`` points; the first is positive.

    Args:
        mask_HW: the object on the network's grid, not empty.
        generator: source of all randomness.
        most: bound of the number of points, each number equally likely.
        negative_share: probability that a point after the first is negative; positive all the
            same where the object leaves no background near it.

    Returns:
        A prompt of kind ``point`` with labels 1 (object) and 0 (background).

    Raises:
        ValueError: the mask is empty.
    """
    points, labels = [inside_point(mask_HW, generator)], [1]
    further = int(generator.integers(most)) if most > 1 else 0
    for _ in range(further):
        outside = None
        if generator.random() < negative_share:
            outside = outside_point(mask_HW, generator)
        points.append(inside_point(mask_HW, generator) if outside is None else outside)
        labels.append(1 if outside is None else 0)
    return SampledPrompt(
        kind="point", points_N2=np.stack(points), labels_N=np.array(labels, dtype=np.int64)
    )
