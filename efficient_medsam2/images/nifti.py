"""NIfTI volumes, brought to one orientation.

Stored axes are permuted and flipped, never resampled, to D running to the patient's head, H to
the back and W to the left: axial slices as a radiologist sees them, and as SimpleITK shows an
axial series as (z, y, x). Oblique volumes take the nearest such axes. ``Provenance`` keeps the
permutation, so a label goes back to the stored grid exactly.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case, Modality, Provenance
from efficient_medsam2.images.objects import as_label_map, merge_masks

__all__ = ["read_nifti", "stored_label", "to_stored_axes"]

_Scalar = TypeVar("_Scalar", bound=np.generic)
_CT_BELOW_HU = -500
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
)


def read_nifti(
    image_file: Path,
    label_files: tuple[Path, ...] = (),
    *,
    case_id: str,
    patient_id: str,
    modality: Modality | None = None,
) -> Case:
    """Read one volume and its label map.

    Args:
        image_file: ``.nii`` or ``.nii.gz`` of three dimensions (further ones of size 1).
        label_files: none, one label map, or several binary masks that become ids 1..n by name.
        case_id: name of the case.
        patient_id: name of its patient.
        modality: what it is; where None, CT if a value lies under -500, else MR.

    Returns:
        The case, label on the image's own grid.

    Raises:
        DataError: a file is damaged, is not one 3D volume, or the label lies on another grid.
    """
    stored, file_affine = _read_volume(image_file)
    axes, flips = _axial_axes(file_affine)
    image = _from_stored(stored, axes, flips)
    affine = _affine_dhw(file_affine, stored.shape, axes, flips)

    def label_on_grid(file: Path) -> npt.NDArray[np.uint16]:
        values, label_affine = _read_volume(file)
        _check_grid(file, values.shape, label_affine, image_file, stored.shape, file_affine)
        return _from_stored(as_label_map(values, file), axes, flips)

    label: npt.NDArray[np.uint16] | None = None
    notes: tuple[str, ...] = ()
    if len(label_files) == 1:
        label = label_on_grid(label_files[0])
    elif label_files:
        label, notes = merge_masks(label_files, label_on_grid)
    depth, height, width = (float(np.linalg.norm(affine[:3, axis])) for axis in range(3))
    guess: Modality = "CT" if image.size and image.min() < _CT_BELOW_HU else "MR"
    return Case(
        case_id=case_id,
        patient_id=patient_id,
        image=image,
        label=label,
        boxes=None,
        spacing_mm=(depth, height, width),
        modality=modality or guess,
        affine=affine,
        source=Provenance(
            files=(image_file, *label_files),
            format="nifti",
            file_affine=file_affine,
            file_axes=axes,
            file_flips=flips,
        ),
        notes=notes,
    )


def to_stored_axes(label: npt.NDArray[Any], source: Provenance) -> npt.NDArray[Any]:
    """Undo the reorientation: (D, H, W) back to the axes that the file has."""
    flipped = np.flip(label, tuple(axis for axis in range(3) if source.file_flips[axis]))
    return np.ascontiguousarray(np.transpose(flipped, np.argsort(source.file_axes)))


def stored_label(file: Path) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64]]:
    """Ids and affine of a label map on its stored axes, for tools that compare files.

    Raises:
        DataError: the file is damaged or is not a 3D map of ids.
    """
    values, affine = _read_volume(file)
    return as_label_map(values, file), affine


def _read_volume(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Values on three stored axes (64-bit floats as 32-bit) and the affine to RAS mm."""
    try:
        volume = nibabel.load(file, mmap=False)
        if file.suffix.lower() == ".gz":
            # Reading to the end checks the checksum, which nibabel alone does not reach.
            with gzip.open(file) as stream:
                volume = type(volume).from_bytes(stream.read())
        values = np.asanyarray(volume.dataobj)
        units = volume.header.get_xyzt_units()[0]
        affine = np.array(volume.affine, np.float64)
    except _UNREADABLE as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{file}: cannot be read as NIfTI ({cause}). It is truncated or damaged: copy it "
            "again, or leave it out"
        ) from error
    if units not in ("mm", "unknown"):
        raise DataError(f"{file}: lengths are in {units}, not in mm. Rewrite the header in mm")
    if values.dtype.kind not in "uif":
        raise DataError(f"{file}: voxels of type {values.dtype} are not single real numbers")
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim < 3 or any(size != 1 for size in values.shape[3:]):
        raise DataError(
            f"{file}: shape {values.shape} is not one 3D volume. Save the volume to use as a "
            "file of its own"
        )
    values = values.reshape(values.shape[:3])
    if not np.isfinite(affine).all() or abs(float(np.linalg.det(affine[:3, :3]))) < 1e-12:
        raise DataError(f"{file}: the header's affine is not invertible. Mend the header")
    if values.dtype == np.float64:
        return values.astype(np.float32), affine
    return values.astype(values.dtype.newbyteorder("="), copy=False), affine


def _axial_axes(
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


def _from_stored(
    values: npt.NDArray[_Scalar], axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> npt.NDArray[_Scalar]:
    turned = np.transpose(values, axes)
    return np.ascontiguousarray(np.flip(turned, tuple(axis for axis in range(3) if flips[axis])))


def _affine_dhw(
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


def _check_grid(
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
