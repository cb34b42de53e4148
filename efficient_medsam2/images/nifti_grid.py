"""How a NIfTI volume lies in the patient, and whether a label lies on the same grid."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

from efficient_medsam2.errors import DataError

__all__ = ["affine_dhw", "axial_axes", "check_grid"]


def axial_axes(
    file_affine: npt.NDArray[np.float64],
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Find the stored axis and flip of D (to superior), H (to posterior) and W (to left)."""
    towards = io_orientation(file_affine)
    stored_of_world = {int(world): stored for stored, (world, _) in enumerate(towards)}
    depth, height, width = stored_of_world[2], stored_of_world[1], stored_of_world[0]
    # io_orientation's sign is +1 where the stored index grows to R, A or S.
    return (depth, height, width), (
        bool(towards[depth, 1] < 0),
        bool(towards[height, 1] > 0),
        bool(towards[width, 1] > 0),
    )


def affine_dhw(
    file_affine: npt.NDArray[np.float64],
    stored_shape: tuple[int, ...],
    axes: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
) -> npt.NDArray[np.float64]:
    """Affine of (d, h, w): the stored one after the index map of the reorientation."""
    index_map = np.zeros((4, 4))
    index_map[3, 3] = 1
    for ours, (stored, flip) in enumerate(zip(axes, flips, strict=True)):
        index_map[stored, ours] = -1 if flip else 1
        index_map[stored, 3] = stored_shape[stored] - 1 if flip else 0
    return np.asarray(file_affine @ index_map, np.float64)


def check_grid(
    file: Path,
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    image_file: Path,
    image_shape: tuple[int, ...],
    image_affine: npt.NDArray[np.float64],
) -> None:
    """Refuse a label of another shape, or with a corner more than half a voxel away."""
    if shape != image_shape:
        raise DataError(
            f"{file}: the label's shape {shape} differs from {image_shape} of {image_file}. "
            "Labels are never resized: resample it to the image's grid (nearest neighbour)"
        )
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape])).reshape(3, -1)
    moved = (affine - image_affine)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    distance_mm = float(np.linalg.norm(moved, axis=0).max())
    voxel_mm = float(np.linalg.norm(image_affine[:3, :3], axis=0).min())
    if distance_mm > voxel_mm / 2:
        raise DataError(
            f"{file}: the label lies up to {distance_mm:.2f} mm away from {image_file} although "
            "the shapes agree. Copy the image's affine into the label, or resample it"
        )
