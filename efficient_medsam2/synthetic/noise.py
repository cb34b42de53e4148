"""Smooth random fields, and coordinates bent by them.

A field is random control points under a cubic B-spline: one matrix product an axis.

Shape letters: D, H, W volume axes; N = D * H * W voxels; n samples, k control points.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["smooth_noise", "warped_coordinates"]


@lru_cache(maxsize=256)
def _basis_nk(samples: int, cells: int) -> npt.NDArray[np.float32]:
    """Cubic B-spline basis at ``samples`` points over ``cells`` equal intervals: (n, cells + 3)."""
    position = (np.arange(samples) + 0.5) / samples * cells
    interval = np.minimum(position.astype(np.int64), cells - 1)
    t = position - interval
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    basis = np.zeros((samples, cells + 3), np.float32)
    for offset in range(4):
        basis[np.arange(samples), interval + offset] = weights[:, offset] / 6
    basis.setflags(write=False)
    return basis


def smooth_noise(
    generator: np.random.Generator, shape: tuple[int, int, int], cells: tuple[int, int, int]
) -> npt.NDArray[np.float32]:
    """Draw a smooth random field.

    Args:
        generator: source of randomness.
        shape: (D, H, W) of the field.
        cells: number of spline intervals along each axis: more is rougher.

    Returns:
        float32 (D, H, W) with mean 0 and standard deviation 1.

    """
    cells_z, cells_y, cells_x = (
        min(max(cell, 1), size) for cell, size in zip(cells, shape, strict=True)
    )
    control = generator.standard_normal((cells_z + 3, cells_y + 3, cells_x + 3), dtype=np.float32)
    along_x = control @ _basis_nk(shape[2], cells_x).T
    along_y = _basis_nk(shape[1], cells_y) @ along_x
    field = np.tensordot(_basis_nk(shape[0], cells_z), along_y, axes=1)
    field -= field.mean()
    return np.asarray(field / max(float(field.std()), 1e-6), dtype=np.float32)


def warped_coordinates(
    generator: np.random.Generator,
    shape: tuple[int, int, int],
    *,
    thickness: float,
    strength: float,
) -> npt.NDArray[np.float32]:
    """Voxel coordinates bent by a smooth random displacement.

    Args:
        generator: source of randomness.
        shape: (D, H, W).
        thickness: slice distance over pixel distance.
        strength: standard deviation of the displacement; 1 is half of the longer in-plane side.

    Returns:
        float32 (3, N): z, y, x of each voxel, the longer in-plane side running from -1 to 1.

    """
    half = max(shape[1:]) / 2
    ticks = [
        ((np.arange(size, dtype=np.float32) + 0.5 - size / 2) * scale / half)
        for size, scale in zip(shape, (thickness, 1, 1), strict=True)
    ]
    grid = np.stack(np.meshgrid(*ticks, indexing="ij"))
    cells_z = max(1, round(2 * shape[0] * thickness / half))
    for axis, share in enumerate((0.5, 1.0, 1.0)):
        cells = int(generator.integers(2, 6))
        field = smooth_noise(generator, shape, (min(cells_z, 4), cells, cells))
        grid[axis] += np.float32(share * strength * 2 / cells) * field
    return grid.reshape(3, -1)
