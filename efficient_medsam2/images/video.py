"""A video stored as a folder of pictures, with label maps of its frames in another folder.

The layout of DAVIS: ``images/<video>/<frame>.png`` and ``masks/<video>/<frame>.png``, mask values
being objects. Frames are in natural order (2 before 10). A frame without a mask file shows no
object.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case, Modality, Provenance
from efficient_medsam2.images.objects import id_table
from efficient_medsam2.images.pictures import read_mask_values, read_pixels
from efficient_medsam2.images.streamed import StoredCase

__all__ = ["frame_order", "is_frame_sequence", "open_video"]

_NUMBERED = re.compile(r"(.*?)(\d+)")


def frame_order(file: Path) -> tuple[tuple[int, str], ...]:
    """Key that sorts file names by the numbers in them."""
    parts = re.split(r"(\d+)", file.stem)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)


def is_frame_sequence(files: Sequence[Path]) -> bool:
    """Whether names are one prefix and numbers at a constant step, as frames are named.

    Pictures that merely stand in one folder have other names, or gaps.
    """
    matches = [_NUMBERED.fullmatch(file.stem) for file in files]
    if len(files) < 2 or len({match[1] if match else None for match in matches}) != 1:
        return False
    numbers = sorted(int(match[2]) for match in matches if match)
    steps = {after - before for before, after in pairwise(numbers)}
    return len(numbers) == len(files) and len(steps) == 1 and steps != {0}


def open_video(
    frames: Sequence[Path],
    masks: Sequence[Path] = (),
    *,
    case_id: str,
    patient_id: str,
    modality: Modality | None = None,
) -> StoredCase:
    """Open the frames of one video as a case with D = frames and spacing 1.

    Args:
        frames: PNG or JPEG pictures of one size and type, grey or colour.
        masks: label maps named as their frames; none at all for a video without ground truth.
        case_id: name of the case.
        patient_id: name of its patient.
        modality: what it is; where None RGB, or as a grey picture.

    Raises:
        DataError: a file is damaged, or masks and frames do not meet.
    """
    ordered = tuple(sorted(frames, key=frame_order))
    image = _FramePlanes(ordered)
    grey: Modality = "uint8" if image.dtype == np.uint8 else "other"
    first = Case(
        case_id=case_id,
        patient_id=patient_id,
        image=np.zeros((1, *image.shape[1:]), image.dtype),
        label=None,
        boxes=None,
        spacing_mm=(1.0, 1.0, 1.0),
        modality=modality or ("RGB" if len(image.shape) == 4 else grey),
        affine=None,
        source=Provenance(files=(*ordered, *masks), format="video"),
    )
    if not masks:
        return StoredCase(first=first, image=image, label=None)
    label = _MaskPlanes(ordered, masks, image.shape)
    return StoredCase(first=first, image=image, label=label, notes=label.notes)


class _FramePlanes:
    """One picture a plane, of the first one's shape and type."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        first = read_pixels(files[0])
        self.shape = (len(files), *first.shape)
        self.dtype = first.dtype

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for index in range(start, stop):
            frame = read_pixels(self._files[index])
            if (frame.shape, frame.dtype) != (self.shape[1:], self.dtype):
                raise DataError(
                    f"{self._files[index]}: a frame of shape {frame.shape} and type {frame.dtype} "
                    f"in a video whose first frame {self._files[0].name} has {self.shape[1:]} and "
                    f"{self.dtype}. Bring the frames to one size and type, or name the pictures "
                    "in a listing to read them one by one"
                )
            block[index - start] = frame
        return block

    def close(self) -> None:
        """Each file is closed as soon as it is read."""


class _MaskPlanes:
    """Label maps of frames; what their values stand for is decided over the whole video."""

    def __init__(
        self, frames: Sequence[Path], masks: Sequence[Path], image_shape: tuple[int, ...]
    ) -> None:
        by_stem = {mask.stem: mask for mask in masks}
        stray = sorted(set(by_stem) - {frame.stem for frame in frames})
        if stray:
            raise DataError(
                f"{by_stem[stray[0]]}: a mask without frame: no picture in {frames[0].parent} has "
                "its name. Add the frame, or delete the mask"
            )
        self._masks = [by_stem.get(frame.stem) for frame in frames]
        self._frames = frames
        self.shape = image_shape[:3]
        self.dtype = np.dtype(np.uint16)
        missing = self._masks.count(None)
        self.notes: tuple[str, ...] = ()
        if missing:
            self.notes = (
                f"{masks[0].parent}: {missing} of {len(frames)} frames have no mask file: they "
                "are taken to show no object",
            )
        self._table = self._values_of_ids(masks[0].parent)

    def _values_of_ids(self, folder: Path) -> npt.NDArray[np.uint16] | None:
        """Stored value → id; None where some masks have 16 bits, so that values are ids."""
        present = np.zeros(256, np.bool_)
        is_deep = False
        for index in range(self.shape[0]):
            values = self._stored(index)
            if values is not None and values.dtype.itemsize > 1:
                is_deep = True
            elif values is not None:
                present[values.astype(np.uint8).ravel()] = True
        return None if is_deep else id_table(np.flatnonzero(present), folder)

    def _stored(self, index: int) -> npt.NDArray[Any] | None:
        file = self._masks[index]
        if file is None:
            return None
        values = read_mask_values(file)
        if values.shape != self.shape[1:]:
            raise DataError(
                f"{file}: the mask's shape {values.shape} differs from {self.shape[1:]} (H,W) of "
                f"{self._frames[index]}. Masks are never resized: draw or resample it on the frame"
            )
        return values

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        block = np.zeros((stop - start, *self.shape[1:]), np.uint16)
        for index in range(start, stop):
            values = self._stored(index)
            if values is not None:
                block[index - start] = values if self._table is None else self._table[values]
        return block

    def close(self) -> None:
        """Each file is closed as soon as it is read."""
