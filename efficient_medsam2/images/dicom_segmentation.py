"""DICOM Segmentation objects as a label map on the grid of the image series they refer to.

Frames are placed by their position in the patient (DICOM PS3.3 C.8.20), never by their order.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import iter_pixels

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.objects import overlap_notes
from efficient_medsam2.images.planes import blocks_of

__all__ = ["SegmentationPlanes"]

_OFF_GRID_VOXELS = 0.25


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where one frame lies: its object, and its place in the temporary file."""

    object_id: int
    place: int


class SegmentationPlanes:
    """The segments of DICOM SEG files as one (D, H, W) map, painted slice by slice.

    Ids are 1..n by file name and segment number; smaller segments lie on top where they overlap.
    The frames wait in a temporary file, so that memory holds one of them, and of each other one
    only where it lies.

    Args:
        files: DICOM SEG files, BINARY or FRACTIONAL (half or more counts as inside).
        affine_lps: (d, h, w) of the image to LPS millimetres.
        shape: (D, H, W) of the image.

    Attributes:
        notes: overlaps.

    Raises:
        DataError: a file is damaged, is not on the image's grid, or a segment is wholly covered.
    """

    def __init__(
        self, files: tuple[Path, ...], affine_lps: npt.NDArray[np.float64], shape: tuple[int, ...]
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(np.uint16)
        self._frames: dict[int, list[_Frame]] = defaultdict(list)
        self._packed_bytes = -(-shape[1] * shape[2] // 8)
        self._count = 0
        self._file = tempfile.TemporaryFile(prefix="segmentation_")  # noqa: SIM115
        names: dict[int, str] = {}
        areas: dict[int, int] = {}
        try:
            for file in sorted(files, key=lambda path: path.name):
                self._add(file, affine_lps, names, areas)
            present = {object_id: name for object_id, name in names.items() if areas[object_id]}
            for frames in self._frames.values():
                frames.sort(key=lambda frame: -areas[frame.object_id])
            self.notes: tuple[str, ...] = ()
            if present:
                merged = (block for _, block in blocks_of(self))
                self.notes = overlap_notes(merged, present, areas)
        except BaseException:
            self.close()
            raise

    def _add(
        self,
        file: Path,
        affine_lps: npt.NDArray[np.float64],
        names: dict[int, str],
        areas: dict[int, int],
    ) -> None:
        """Take the segments of one more file."""
        with _readable(file):
            segmentation = pydicom.dcmread(file, stop_before_pixels=True)
            kind = str(segmentation.SegmentationType)
            numbers = sorted(int(item.SegmentNumber) for item in segmentation.SegmentSequence)
        if kind not in ("BINARY", "FRACTIONAL"):
            raise DataError(f"{file}: SegmentationType {kind} is not read. Convert it to NIfTI")
        inside = 1.0
        if kind == "FRACTIONAL":
            with _readable(file):
                inside = 0.5 * float(segmentation.MaximumFractionalValue)
        first_id = len(names) + 1
        for offset, number in enumerate(numbers):
            names[first_id + offset] = f"{file}, segment {number}"
            areas[first_id + offset] = 0
        placements = list(_placements(file, segmentation))
        del segmentation
        with _readable(file):
            for (number, position, orientation), frame in zip(
                placements, iter_pixels(file), strict=True
            ):
                depth = _slice_index(
                    file, position, orientation, affine_lps, self.shape, frame.shape
                )
                object_id = first_id + numbers.index(number)
                mask = frame >= inside
                areas[object_id] += int(np.count_nonzero(mask))
                self._file.write(np.packbits(mask).tobytes())
                self._frames[depth].append(_Frame(object_id, self._count))
                self._count += 1

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """See ``Planes.read``."""
        label = np.zeros((stop - start, *self.shape[1:]), np.uint16)
        pixels = self.shape[1] * self.shape[2]
        for depth in range(start, stop):
            for frame in self._frames.get(depth, ()):
                self._file.seek(frame.place * self._packed_bytes)
                packed = np.frombuffer(self._file.read(self._packed_bytes), np.uint8)
                mask = np.unpackbits(packed, count=pixels).astype(np.bool_)
                label[depth - start][mask.reshape(self.shape[1:])] = frame.object_id
        return label

    def close(self) -> None:
        """See ``Planes.close``."""
        self._file.close()


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what damaged files raise into one error that names the file."""
    try:
        yield
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
