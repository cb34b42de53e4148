"""NIfTI volumes, brought to one orientation.

Stored axes are permuted and flipped, never resampled, to D running to the patient's head, H to
the back and W to the left: axial slices as a radiologist sees them, and as SimpleITK shows an
axial series as (z, y, x). Oblique volumes take the nearest such axes. ``Provenance`` keeps the
permutation, so a label goes back to the stored grid exactly.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case, Modality, Provenance
from efficient_medsam2.images.nifti_grid import affine_dhw, axial_axes, check_grid
from efficient_medsam2.images.objects import as_label_map, merge_masks

__all__ = [
    "check_header",
    "guess_modality",
    "read_nifti",
    "readable_nifti",
    "stored_label",
    "to_stored_axes",
]

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
    axes, flips = axial_axes(file_affine)
    image = _from_stored(stored, axes, flips)
    affine = affine_dhw(file_affine, stored.shape, axes, flips)

    def label_on_grid(file: Path) -> npt.NDArray[np.uint16]:
        values, label_affine = _read_volume(file)
        check_grid(file, values.shape, label_affine, image_file, stored.shape, file_affine)
        return _from_stored(as_label_map(values, file), axes, flips)

    label: npt.NDArray[np.uint16] | None = None
    notes: tuple[str, ...] = ()
    if len(label_files) == 1:
        label = label_on_grid(label_files[0])
    elif label_files:
        label, notes = merge_masks(label_files, label_on_grid)
    depth, height, width = (float(np.linalg.norm(affine[:3, axis])) for axis in range(3))
    guess = guess_modality(float(image.min())) if image.size else "MR"
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
    with readable_nifti(file):
        volume = nibabel.load(file, mmap=False)
        if file.suffix.lower() == ".gz":
            # Reading to the end checks the checksum, which nibabel alone does not reach.
            with gzip.open(file) as stream:
                volume = type(volume).from_bytes(stream.read())
        values = np.asanyarray(volume.dataobj)
    shape, affine = check_header(file, volume, values.dtype)
    values = values.reshape(shape)
    if values.dtype == np.float64:
        return values.astype(np.float32), affine
    return values.astype(values.dtype.newbyteorder("="), copy=False), affine


@contextmanager
def readable_nifti(file: Path) -> Iterator[None]:
    """Turn what damaged files raise into one error that names the file."""
    try:
        yield
    except _UNREADABLE as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{file}: cannot be read as NIfTI ({cause}). It is truncated or damaged: copy it "
            "again, or leave it out"
        ) from error


def check_header(
    file: Path,
    volume: Any,  # noqa: ANN401 - nibabel is untyped
    dtype: np.dtype[Any],
) -> tuple[tuple[int, int, int], npt.NDArray[np.float64]]:
    """Shape on three stored axes and affine to RAS mm of a volume that can be a case.

    Raises:
        DataError: it is not one 3D volume of real numbers, or its header makes no sense.
    """
    with readable_nifti(file):
        units = volume.header.get_xyzt_units()[0]
        affine = np.array(volume.affine, np.float64)
    if units not in ("mm", "unknown"):
        raise DataError(f"{file}: lengths are in {units}, not in mm. Rewrite the header in mm")
    if dtype.kind not in "uif":
        raise DataError(f"{file}: voxels of type {dtype} are not single real numbers")
    shape = tuple(int(size) for size in volume.shape)
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise DataError(
            f"{file}: shape {shape} is not one 3D volume. Save the volume to use as a "
            "file of its own"
        )
    if not np.isfinite(affine).all() or abs(float(np.linalg.det(affine[:3, :3]))) < 1e-12:
        raise DataError(f"{file}: the header's affine is not invertible. Mend the header")
    return (shape[0], shape[1], shape[2]), affine


def guess_modality(lowest: float) -> Modality:
    """CT or MR by the lowest value."""
    return "CT" if lowest < _CT_BELOW_HU else "MR"


def _from_stored(
    values: npt.NDArray[_Scalar], axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> npt.NDArray[_Scalar]:
    turned = np.transpose(values, axes)
    return np.ascontiguousarray(np.flip(turned, tuple(axis for axis in range(3) if flips[axis])))
