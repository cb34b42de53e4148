"""DICOM Segmentation objects as a label map on the grid of the image series they refer to.

Frames are placed by their position in the patient (DICOM PS3.3 C.8.20), never by their order.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.objects import overlap_notes

__all__ = ["read_segmentations"]

_OFF_GRID_VOXELS = 0.25


def read_segmentations(
    files: tuple[Path, ...], affine_lps: npt.NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.uint16], tuple[str, ...]]:
    """Paint the segments of ``files`` into one (D, H, W) map.

    Args:
        files: DICOM SEG files, BINARY or FRACTIONAL (half or more counts as inside).
        affine_lps: (d, h, w) of the image to LPS millimetres.
        shape: (D, H, W) of the image.

    Returns:
        Ids 1..n by file name and segment number, smaller segments on top where they overlap,
        and the notes on overlaps.

    Raises:
        DataError: a file is damaged, is not on the image's grid, or a segment is wholly covered.
    """
    frames: dict[int, list[tuple[int, npt.NDArray[np.bool_]]]] = {}
    names: dict[int, str] = {}
    for file in sorted(files, key=lambda path: path.name):
        segmentation, pixels = _read(file)
        first_id = len(names) + 1
        numbers = sorted(int(item.SegmentNumber) for item in segmentation.SegmentSequence)
        for offset, number in enumerate(numbers):
            names[first_id + offset] = f"{file}, segment {number}"
            frames[first_id + offset] = []
        for index, (number, position, orientation) in enumerate(_placements(file, segmentation)):
            depth = _slice_index(file, position, orientation, affine_lps, shape, pixels.shape[1:])
            object_id = first_id + numbers.index(number)
            frames[object_id].append((depth, pixels[index]))
    label = np.zeros(shape, np.uint16)
    areas = {i: sum(int(np.count_nonzero(f)) for _, f in frames[i]) for i in names}
    present = {object_id: name for object_id, name in names.items() if areas[object_id]}
    for object_id in sorted(present, key=lambda i: -areas[i]):
        for depth, frame in frames[object_id]:
            label[depth][frame] = object_id
    if not present:
        return label, ()
    return label, overlap_notes(label, present, areas)


def _read(file: Path) -> tuple[Any, npt.NDArray[np.bool_]]:
    """Read the header and its frames (N, H, W)."""
    try:
        segmentation = pydicom.dcmread(file)
        pixels: npt.NDArray[Any] = segmentation.pixel_array
        kind = str(segmentation.SegmentationType)
    except (
        pydicom.errors.InvalidDicomError,
        AttributeError,
        NotImplementedError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
    ) as error:
        raise DataError(
            f"{file}: cannot be read as DICOM SEG ({error}). It is truncated or damaged: copy it "
            "again, or convert it to NIfTI"
        ) from error
    if pixels.ndim == 2:
        pixels = pixels[None]
    if kind == "BINARY":
        return segmentation, pixels > 0
    if kind == "FRACTIONAL":
        return segmentation, pixels >= 0.5 * float(segmentation.MaximumFractionalValue)
    raise DataError(f"{file}: SegmentationType {kind} is not read. Convert it to NIfTI")


def _placements(
    file: Path,
    segmentation: Any,  # noqa: ANN401
) -> Iterator[tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Segment number, position (3,) and orientation (6,) of each frame, LPS."""
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        try:
            number = _group(frame, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber
            position = _group(frame, shared, "PlanePositionSequence").ImagePositionPatient
            orientation = _group(frame, shared, "PlaneOrientationSequence").ImageOrientationPatient
        except (AttributeError, KeyError) as error:
            raise DataError(
                f"{file}: a frame does not say its segment, position or orientation ({error}). "
                "Export the segmentation again, or convert it to NIfTI"
            ) from error
        yield int(number), np.array(position, np.float64), np.array(orientation, np.float64)


def _group(frame: Any, shared: Any, name: str) -> Any:  # noqa: ANN401
    return (frame[name] if name in frame else shared[name])[0]


def _slice_index(
    file: Path,
    position: npt.NDArray[np.float64],
    orientation: npt.NDArray[np.float64],
    affine_lps: npt.NDArray[np.float64],
    shape: tuple[int, ...],
    frame_shape: tuple[int, ...],
) -> int:
    """Slice of the image that a frame covers exactly."""
    index = np.linalg.solve(affine_lps, np.append(position, 1.0))[:3]
    unit = affine_lps[:3, [2, 1]] / np.linalg.norm(affine_lps[:3, [2, 1]], axis=0)
    is_parallel = np.allclose(orientation.reshape(2, 3), unit.T, atol=1e-3)
    depth = int(np.rint(index[0]))
    is_on_grid = np.abs(index - [depth, 0, 0]).max() <= _OFF_GRID_VOXELS
    if not (is_parallel and is_on_grid and 0 <= depth < shape[0] and frame_shape == shape[1:]):
        raise DataError(
            f"{file}: a frame of {frame_shape} at {position.tolist()} mm is not a slice of the "
            f"image's grid {shape} (it falls on voxel {np.round(index, 2).tolist()}). Resample "
            "the segmentation to the image, or leave it out"
        )
    return depth
