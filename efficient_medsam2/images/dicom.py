"""A DICOM series as a volume.

D grows along the slice normal, H down the columns and W along the rows of the acquired plane.
For an axial series that is the orientation of ``nifti``: head, back, left.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case, Modality, Provenance
from efficient_medsam2.images.dicom_grid import order_slices, read_slice_headers
from efficient_medsam2.images.dicom_pixels import FramePlanes, SeriesPlanes
from efficient_medsam2.images.dicom_segmentation import SegmentationPlanes
from efficient_medsam2.images.planes import Planes
from efficient_medsam2.images.streamed import StoredCase

__all__ = ["open_dicom", "read_dicom"]

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
        files: the series' instances, in any order; enhanced multi-frame ones are placed by their
            functional groups, frames without a position (a cine loop) stay in order, 1 mm apart.
        segmentation_files: DICOM SEG files on the same grid; segments become ids 1..n in order
            of file name and segment number.
        case_id: name of the case.
        patient_id: name of its patient.
        modality: what it is; from the Modality tag where None.

    Raises:
        DataError: a file is damaged, slices are missing or doubled, or a
            segmentation lies on another grid.
    """
    return open_dicom(
        files, segmentation_files, case_id=case_id, patient_id=patient_id, modality=modality
    ).load()


def open_dicom(
    files: Sequence[Path],
    segmentation_files: tuple[Path, ...] = (),
    *,
    case_id: str,
    patient_id: str,
    modality: Modality | None = None,
) -> StoredCase:
    """Open a series to be read slice by slice; arguments and errors are ``read_dicom``'s.

    Every slice is decoded once, since only its values tell what type holds them all.
    """
    headers = [header for file in files for header in read_slice_headers(file)]
    ordered, affine_lps = order_slices(headers)
    is_multi_frame = len(headers) > len(files)
    image: Planes = FramePlanes(ordered) if is_multi_frame else SeriesPlanes(ordered)
    spacing_mm = ordered[0].flat_spacing_mm
    if affine_lps is not None:
        depth, height, width = (float(np.linalg.norm(affine_lps[:3, axis])) for axis in range(3))
        spacing_mm = (depth, height, width)
    guess = _MODALITIES.get(ordered[0].modality, "other")
    try:
        first = Case(
            case_id=case_id,
            patient_id=patient_id,
            image=np.zeros((1, *image.shape[1:]), image.dtype),
            label=None,
            boxes=None,
            spacing_mm=spacing_mm,
            modality=modality or ("RGB" if len(image.shape) == 4 else guess),
            affine=None if affine_lps is None else _LPS_TO_RAS @ affine_lps,
            source=Provenance(
                files=(*dict.fromkeys(header.file for header in ordered), *segmentation_files),
                format="dicom",
            ),
        )
        segmentation = None
        if segmentation_files:
            segmentation = _segmentation(segmentation_files, files[0], affine_lps, image.shape)
    except BaseException:
        image.close()
        raise
    notes = () if segmentation is None else segmentation.notes
    return StoredCase(first=first, image=image, label=segmentation, notes=notes)


def _segmentation(
    files: tuple[Path, ...],
    image_file: Path,
    affine_lps: npt.NDArray[np.float64] | None,
    image_shape: tuple[int, ...],
) -> SegmentationPlanes:
    if affine_lps is None:
        raise DataError(
            f"{files[0]}: the image {image_file} has no ImagePositionPatient, so the segmentation "
            "cannot be placed on it. Convert both to pictures or NIfTI"
        )
    return SegmentationPlanes(files, affine_lps, image_shape[:3])
