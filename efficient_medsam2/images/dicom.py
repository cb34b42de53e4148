"""A DICOM series as a volume.

Slices are ordered by their position along the slice normal (DICOM PS3.3 C.7.6.2.1.1), never by
file name; D grows along the normal, H down the columns and W along the rows of the acquired
plane. For an axial series that is the orientation of ``nifti``: head, back, left.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case, Modality, Provenance
from efficient_medsam2.images.dicom_segmentation import read_segmentations

__all__ = ["read_dicom"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MODALITIES: dict[str, Modality] = {
    "CT": "CT",
    "MR": "MR",
    "US": "US",
    "CR": "XR",
    "DX": "XR",
    "MG": "XR",
    "RG": "XR",
    "XA": "XR",
}
# Positions are written with few digits; a missing slice moves a step by a whole spacing.
_STEP_TOLERANCE = 0.1
_SAME_POSITION_MM = 1e-3


def read_dicom(
    files: Sequence[Path],
    segmentation_files: tuple[Path, ...] = (),
    *,
    case_id: str,
    patient_id: str,
    modality: Modality | None = None,
) -> Case:
    """Read the files of one series, and its DICOM SEG objects as the label.

    The modality rescale is applied (Hounsfield units for CT); MONOCHROME1 is turned so that
    bright is bright; colour becomes (D, H, W, 3).

    Args:
        files: the series' instances, in any order.
        segmentation_files: DICOM SEG files on the same grid; segments become ids 1..n in order
            of file name and segment number.
        case_id: name of the case.
        patient_id: name of its patient.
        modality: what it is; from the Modality tag where None.

    Raises:
        DataError: a file is damaged or multi-frame, slices are missing or doubled, or a
            segmentation lies on another grid.
    """
    slices = [_read_slice(file) for file in files]
    if len(slices) == 1 and "ImagePositionPatient" not in slices[0]:
        ordered, affine_lps = slices, None
    else:
        ordered, affine_lps = _order(slices)
    image = np.stack([_values(header) for header in ordered])
    spacing_mm = _flat_spacing_mm(ordered[0])
    if affine_lps is not None:
        depth, height, width = (float(np.linalg.norm(affine_lps[:3, axis])) for axis in range(3))
        spacing_mm = (depth, height, width)
    label: npt.NDArray[np.uint16] | None = None
    notes: tuple[str, ...] = ()
    if segmentation_files:
        if affine_lps is None:
            raise DataError(
                f"{segmentation_files[0]}: the image {files[0]} has no ImagePositionPatient, so "
                "the segmentation cannot be placed on it. Convert both to pictures or NIfTI"
            )
        label, notes = read_segmentations(segmentation_files, affine_lps, image.shape[:3])
    guess = _MODALITIES.get(str(ordered[0].get("Modality", "")), "other")
    affine = None if affine_lps is None else _LPS_TO_RAS @ affine_lps
    return Case(
        case_id=case_id,
        patient_id=patient_id,
        image=image,
        label=label,
        boxes=None,
        spacing_mm=spacing_mm,
        modality=modality or ("RGB" if image.ndim == 4 else guess),
        affine=affine,
        source=Provenance(
            files=(*(Path(header.filename) for header in ordered), *segmentation_files),
            format="dicom",
        ),
        notes=notes,
    )


def _read_slice(file: Path) -> Any:  # noqa: ANN401
    try:
        header = pydicom.dcmread(file)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise _damaged(file, error) from error
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise DataError(
            f"{file}: a multi-frame image of {header.NumberOfFrames} frames is not read. Convert "
            "it to NIfTI, for example with dcm2niix"
        )
    return header


def _damaged(file: Path | str, error: Exception) -> DataError:
    return DataError(
        f"{file}: cannot be read as DICOM ({error}). It is truncated, damaged or compressed in a "
        "way this machine cannot decode: copy it again, or convert the series to NIfTI"
    )


def _order(slices: list[Any]) -> tuple[list[Any], npt.NDArray[np.float64]]:
    """Slices by position along the normal, and the affine (d, h, w) to LPS millimetres."""
    first = slices[0]
    for header in slices:
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            if tag not in header:
                raise DataError(
                    f"{header.filename}: no {tag}, so the series cannot be put in order. Convert "
                    "it to NIfTI, or name its pictures in a listing"
                )
        if (header.Rows, header.Columns) != (first.Rows, first.Columns) or not np.allclose(
            _floats(header.ImageOrientationPatient),
            _floats(first.ImageOrientationPatient),
            atol=1e-3,
        ):
            raise DataError(
                f"{header.filename}: its size or orientation differs from {first.filename} of the "
                "same series. Keep the slices of one stack in the folder"
            )
    along_row, along_column = np.reshape(_floats(first.ImageOrientationPatient), (2, 3))
    normal = np.cross(along_row, along_column)
    ordered = sorted(
        slices, key=lambda header: float(_floats(header.ImagePositionPatient) @ normal)
    )
    positions = np.array([_floats(header.ImagePositionPatient) for header in ordered])
    step = _step(ordered, positions, normal)
    row_spacing, column_spacing = _floats(first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = along_column * row_spacing
    affine[:3, 2] = along_row * column_spacing
    affine[:3, 3] = positions[0]
    return ordered, affine


def _step(
    ordered: list[Any], positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Vector from one slice to the next in millimetres; refuses gaps and doubled slices."""
    if len(ordered) == 1:
        thickness = ordered[0].get("SpacingBetweenSlices") or ordered[0].get("SliceThickness")
        return normal * float(thickness or 1.0)
    gaps_mm = np.diff(positions @ normal)
    doubled = np.flatnonzero(gaps_mm < _SAME_POSITION_MM)
    if doubled.size:
        first, second = ordered[doubled[0]], ordered[doubled[0] + 1]
        raise DataError(
            f"{first.filename} and {second.filename}: two slices of one series at the same "
            "position. Split the phases into series, or delete the copy"
        )
    usual_mm = float(np.median(gaps_mm))
    for index, gap_mm in enumerate(gaps_mm):
        if abs(gap_mm - usual_mm) > _STEP_TOLERANCE * usual_mm:
            raise DataError(
                f"{ordered[index].filename} and {ordered[index + 1].filename}: {gap_mm:.2f} mm "
                f"apart where the series has {usual_mm:.2f} mm. A slice is missing: copy the "
                "series again, or resample it to NIfTI"
            )
    return np.asarray((positions[-1] - positions[0]) / (len(ordered) - 1), np.float64)


def _values(header: Any) -> npt.NDArray[Any]:  # noqa: ANN401
    """(H, W) rescaled, whole numbers where the rescale keeps them; (H, W, 3) in colour."""
    try:
        pixels: npt.NDArray[Any] = header.pixel_array
    except (AttributeError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise _damaged(header.filename, error) from error
    if pixels.ndim == 3:
        return np.ascontiguousarray(pixels)
    stored = pixels.astype(np.int32)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        is_signed = bool(header.get("PixelRepresentation"))
        stored = (-1 if is_signed else 2 ** int(header.BitsStored) - 1) - stored
    slope = float(header.get("RescaleSlope") or 1.0)
    intercept = float(header.get("RescaleIntercept") or 0.0)
    if not (slope.is_integer() and intercept.is_integer()):
        return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    values = stored * int(slope) + int(intercept)
    bounds = np.iinfo(np.int16)
    fits = bounds.min <= values.min() and values.max() <= bounds.max
    return values.astype(np.int16) if fits else values


def _flat_spacing_mm(header: Any) -> tuple[float, float, float]:  # noqa: ANN401
    """Spacing of an image without a position: the detector's, or 1 where it is not told."""
    stored = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not stored:
        return (1.0, 1.0, 1.0)
    return (1.0, float(stored[0]), float(stored[1]))


def _floats(values: Sequence[Any]) -> npt.NDArray[np.float64]:
    return np.array([float(value) for value in values])
