"""How the slices of a DICOM series lie in the patient, told from their headers alone.

Slices are ordered by their position along the slice normal (DICOM PS3.3 C.7.6.2.1.1), never by
file name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset

from efficient_medsam2.errors import DataError

__all__ = ["SliceHeader", "damaged_dicom", "order_slices", "read_slice_headers"]

# Positions are written with few digits; a missing slice moves a step by a whole spacing.
_STEP_TOLERANCE = 0.1
_SAME_POSITION_MM = 1e-3
_TAGS = [
    "Rows",
    "Columns",
    "Modality",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceHeader:
    """Where one slice lies; None for what the header does not tell.

    Attributes:
        file: its file.
        frame: its place among the file's frames.
        shape: rows and columns.
        modality: the Modality tag.
        position: ImagePositionPatient, (3,) mm in LPS.
        orientation: ImageOrientationPatient, (6,).
        pixel_spacing: PixelSpacing of rows and columns in mm.
        detector_spacing: ImagerPixelSpacing of rows and columns in mm.
        thickness: distance to the next slice, or thickness, in mm.
        rescale: slope and intercept of this frame alone.
    """

    file: Path
    frame: int
    shape: tuple[int, int]
    modality: str
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    detector_spacing: tuple[float, ...] | None
    thickness: float | None
    rescale: tuple[float, float] | None

    @property
    def flat_spacing_mm(self) -> tuple[float, float, float]:
        """Spacing of an image without a position: the detector's, or 1 where it is not told."""
        stored = self.pixel_spacing or self.detector_spacing
        return (1.0, stored[0], stored[1]) if stored else (1.0, 1.0, 1.0)


def read_slice_headers(file: Path) -> list[SliceHeader]:
    """Read a file's header, one record a frame; its pixels stay on disk.

    Frames of enhanced images are placed by their functional groups (DICOM PS3.3 C.7.6.16).

    Raises:
        DataError: it is damaged.
    """
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        count = int(header.get("NumberOfFrames") or 1)
        shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
        frames = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * count
        if len(frames) != count:
            raise ValueError(f"{len(frames)} functional groups for {count} frames")
        return [
            _header_of(file, index, header, [own, shared[0]]) for index, own in enumerate(frames)
        ]
    except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise damaged_dicom(file, error) from error


def _header_of(file: Path, frame: int, header: Any, groups: list[Any]) -> SliceHeader:  # noqa: ANN401
    measures = _macro("PixelMeasuresSequence", groups, header)
    transformation = _macro("PixelValueTransformationSequence", groups, Dataset())
    rescale = None
    if "RescaleSlope" in transformation:
        slope, intercept = transformation.RescaleSlope, transformation.get("RescaleIntercept")
        rescale = (float(slope), float(intercept or 0.0))
    thickness = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness")
    orientation = _macro("PlaneOrientationSequence", groups, header)
    return SliceHeader(
        file=file,
        frame=frame,
        shape=(int(header.get("Rows") or 0), int(header.get("Columns") or 0)),
        modality=str(header.get("Modality", "")),
        position=_numbers(_macro("PlanePositionSequence", groups, header), "ImagePositionPatient"),
        orientation=_numbers(orientation, "ImageOrientationPatient"),
        pixel_spacing=_numbers(measures, "PixelSpacing"),
        detector_spacing=_numbers(header, "ImagerPixelSpacing"),
        thickness=float(thickness) if thickness else None,
        rescale=rescale,
    )


def _macro(name: str, groups: list[Any], otherwise: Any) -> Any:  # noqa: ANN401
    """The item of a functional group: the frame's own, else the shared one, else ``otherwise``."""
    for group in groups:
        if group.get(name):
            return group[name][0]
    return otherwise


def _numbers(header: Any, tag: str) -> tuple[float, ...] | None:  # noqa: ANN401
    stored = header.get(tag)
    return tuple(float(value) for value in stored) if stored else None


def damaged_dicom(file: Path, error: Exception) -> DataError:
    """What to raise where pydicom cannot read a file."""
    return DataError(
        f"{file}: cannot be read as DICOM ({error}). It is truncated, damaged or compressed in a "
        "way this machine cannot decode: copy it again, or convert the series to NIfTI"
    )


def order_slices(
    headers: Sequence[SliceHeader],
) -> tuple[list[SliceHeader], npt.NDArray[np.float64] | None]:
    """Slices by position along the normal, and the affine (d, h, w) to LPS millimetres.

    A single slice without a position has no affine, nor have the frames of a cine loop.

    Raises:
        DataError: slices are missing, doubled, or of different stacks.
    """
    if len({header.file for header in headers}) == 1 and headers[0].position is None:
        return list(headers), None
    first = headers[0]
    for header in headers:
        for tag, value in (
            ("ImagePositionPatient", header.position),
            ("ImageOrientationPatient", header.orientation),
            ("PixelSpacing", header.pixel_spacing),
        ):
            if value is None:
                raise DataError(
                    f"{header.file}: no {tag}, so the series cannot be put in order. Convert "
                    "it to NIfTI, or name its pictures in a listing"
                )
        if header.shape != first.shape or not np.allclose(
            _array(header.orientation), _array(first.orientation), atol=1e-3
        ):
            raise DataError(
                f"{header.file}: its size or orientation differs from {first.file} of the "
                "same series. Keep the slices of one stack in the folder"
            )
    along_row, along_column = np.reshape(_array(first.orientation), (2, 3))
    normal = np.cross(along_row, along_column)
    ordered = sorted(headers, key=lambda header: float(_array(header.position) @ normal))
    positions = np.array([_array(header.position) for header in ordered])
    step = _step(ordered, positions, normal)
    row_spacing, column_spacing = _array(first.pixel_spacing)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = along_column * row_spacing
    affine[:3, 2] = along_row * column_spacing
    affine[:3, 3] = positions[0]
    return ordered, affine


def _array(values: tuple[float, ...] | None) -> npt.NDArray[np.float64]:
    assert values is not None
    return np.array(values, np.float64)


def _step(
    ordered: list[SliceHeader], positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Vector from one slice to the next in millimetres; refuses gaps and doubled slices."""
    if len(ordered) == 1:
        return normal * (ordered[0].thickness or 1.0)
    gaps_mm = np.diff(positions @ normal)
    doubled = np.flatnonzero(gaps_mm < _SAME_POSITION_MM)
    if doubled.size:
        first, second = ordered[doubled[0]], ordered[doubled[0] + 1]
        raise DataError(
            f"{first.file} and {second.file}: two slices of one series at the same "
            "position. Split the phases into series, or delete the copy"
        )
    usual_mm = float(np.median(gaps_mm))
    for index, gap_mm in enumerate(gaps_mm):
        if abs(gap_mm - usual_mm) > _STEP_TOLERANCE * usual_mm:
            raise DataError(
                f"{ordered[index].file} and {ordered[index + 1].file}: {gap_mm:.2f} mm "
                f"apart where the series has {usual_mm:.2f} mm. A slice is missing: copy the "
                "series again, or resample it to NIfTI"
            )
    return np.asarray((positions[-1] - positions[0]) / (len(ordered) - 1), np.float64)
