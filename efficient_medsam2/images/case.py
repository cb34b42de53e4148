"""One case in memory: an image or volume, its labels, and where its voxels lie.

Axes are D, H, W everywhere; a picture has D = 1. Shape letters: D slices, H rows, W columns,
N boxes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from efficient_medsam2.errors import DataError

__all__ = ["MODALITIES", "Case", "CaseFormat", "Modality", "Provenance", "case_error"]

Modality = Literal["CT", "MR", "US", "XR", "RGB", "uint8", "other"]
"""``uint8``: grey values that were normalised to 0..255 by whoever wrote the file."""

CaseFormat = Literal["npz", "nifti", "dicom", "picture", "video"]

MODALITIES: tuple[Modality, ...] = get_args(Modality)


@dataclass(frozen=True, kw_only=True, eq=False)
class Provenance:
    """Where a case came from, and how its stored axes became D, H, W.

    Attributes:
        files: every file that was read, the image first.
        format: how the image was stored.
        stored_ndim: 2 where the stored label map of such a case is (H, W), else 3.
        file_affine: (4, 4) stored voxel index to RAS millimetres; None where the format has none.
        file_axes: for each of D, H, W the stored axis that it is.
        file_flips: for each of D, H, W whether it runs against the stored axis.
    """

    files: tuple[Path, ...]
    format: CaseFormat
    stored_ndim: Literal[2, 3] = 3
    file_affine: npt.NDArray[np.float64] | None = None
    file_axes: tuple[int, int, int] = (0, 1, 2)
    file_flips: tuple[bool, bool, bool] = (False, False, False)


def case_error(case_id: str, files: tuple[Path, ...], cause: str) -> DataError:
    """What to raise where the content of a case's files makes no case."""
    names = ", ".join(str(file) for file in files[:3])
    more = ", ..." if len(files) > 3 else ""
    return DataError(
        f"case {case_id} ({names}{more}): {cause}. Mend the file, or leave the case out"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """An image or volume with what is known about it; checked on construction.

    Attributes:
        case_id: unique name of the case.
        patient_id: whom it shows; splits never part a patient.
        image: (D, H, W) or (D, H, W, 3), dtype as read; CT in Hounsfield units unless uint8.
        label: (D, H, W) uint16, 0 = background; None where there is no ground truth.
        boxes: (N, 4) float x0, y0, x1, y1 or (N, 6) float x0, y0, z0, x1, y1, z1 in image
            pixels, of challenge files that come without ground truth; else None.
        recist: (D, H, W) bool, drawn RECIST diameters of files that have them; else None.
        spacing_mm: distance of neighbouring voxels along D, H, W; 1 where the format has none.
        modality: one of ``MODALITIES``.
        affine: (4, 4) voxel index (d, h, w) to RAS millimetres; None where it is unknown.
        source: the files, and the way back to their orientation.
        notes: decisions of the reader that a user should know, such as overlapping masks.

    Raises:
        DataError: shapes disagree, a value is NaN or infinite, or the geometry is impossible.
    """

    case_id: str
    patient_id: str
    image: npt.NDArray[Any]
    label: npt.NDArray[np.uint16] | None
    boxes: npt.NDArray[np.float64] | None
    spacing_mm: tuple[float, float, float]
    modality: Modality
    affine: npt.NDArray[np.float64] | None
    source: Provenance
    notes: tuple[str, ...] = field(default=())
    recist: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        self._check_image()
        self._check_label()
        self._check_geometry()
        if self.boxes is not None and (
            self.boxes.ndim != 2
            or self.boxes.shape[1] not in (4, 6)
            or not np.isfinite(self.boxes).all()
        ):
            raise self._error(
                f"boxes of shape {self.boxes.shape} are not finite numbers (N, 4) or (N, 6)"
            )

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The labels present, ascending, without the background."""
        if self.label is None:
            return ()
        # Marking ids slice by slice: sorting or counting a whole volume would need 8 bytes a voxel.
        present = np.zeros(np.iinfo(np.uint16).max + 1, np.bool_)
        for plane in self.label:
            present[plane] = True
        return tuple(int(value) for value in np.flatnonzero(present) if value)

    def _error(self, cause: str) -> DataError:
        return case_error(self.case_id, self.source.files, cause)

    def _check_image(self) -> None:
        shape = self.image.shape
        if self.image.ndim not in (3, 4) or (self.image.ndim == 4 and shape[3] != 3):
            raise self._error(f"an image of shape {shape} is neither (D,H,W) nor (D,H,W,3)")
        if self.image.size == 0:
            raise self._error(f"an image of shape {shape} is empty")
        if self.image.dtype.kind not in "uif" or self.image.dtype.itemsize > 8:
            raise self._error(
                f"image values of type {self.image.dtype} are not real numbers of 8 to 64 bits"
            )
        if self.image.dtype.kind == "f":
            bad = int(self.image.size - np.count_nonzero(np.isfinite(self.image)))
            if bad:
                raise self._error(f"{bad} of {self.image.size} image values are NaN or infinite")

    def _check_label(self) -> None:
        if self.recist is not None and self.recist.shape != self.image.shape[:3]:
            raise self._error(
                f"the shape {self.recist.shape} of `recist` differs from the image's "
                f"{self.image.shape[:3]} (D,H,W)"
            )
        if self.label is None:
            return
        if self.label.shape != self.image.shape[:3]:
            raise self._error(
                f"the label's shape {self.label.shape} differs from the image's "
                f"{self.image.shape[:3]} (D,H,W); labels are never resized"
            )
        if self.label.dtype != np.uint16:
            raise self._error(f"the label map is {self.label.dtype}, not uint16")

    def _check_geometry(self) -> None:
        if self.modality not in MODALITIES:
            raise self._error(f"modality {self.modality!r} is not one of {', '.join(MODALITIES)}")
        if len(self.spacing_mm) != 3 or not all(
            np.isfinite(step) and step > 0 for step in self.spacing_mm
        ):
            raise self._error(f"spacing {self.spacing_mm} mm is not three positive numbers")
        if self.affine is not None and (
            self.affine.shape != (4, 4)
            or not np.isfinite(self.affine).all()
            or abs(float(np.linalg.det(self.affine[:3, :3]))) < 1e-12
        ):
            raise self._error("the affine is not an invertible (4, 4) matrix of finite numbers")
