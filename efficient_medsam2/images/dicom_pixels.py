"""Pixels of DICOM images: one slice a file, or many frames in one.

The modality rescale is applied (DICOM PS3.3 C.11.1), MONOCHROME1 turned so that bright is bright.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import iter_pixels

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.dicom_grid import SliceHeader, damaged_dicom

__all__ = ["FramePlanes", "SeriesPlanes"]


@dataclass(frozen=True, kw_only=True)
class _Rescale:
    """Stored grey values to what they mean.

    Attributes:
        mirror: MONOCHROME1 values are taken from this number; None where bright is bright.
        slope: factor, applied then.
        intercept: summand.
    """

    mirror: int | None
    slope: float
    intercept: float

    @classmethod
    def of(cls, header: Any, frame: SliceHeader | None = None) -> "_Rescale":  # noqa: ANN401
        """From a file's header, or a frame's own where it has one."""
        mirror = None
        if header.get("PhotometricInterpretation") == "MONOCHROME1":
            is_signed = bool(header.get("PixelRepresentation"))
            mirror = -1 if is_signed else 2 ** int(header.BitsStored) - 1
        if frame is not None and frame.rescale is not None:
            return cls(mirror=mirror, slope=frame.rescale[0], intercept=frame.rescale[1])
        return cls(
            mirror=mirror,
            slope=float(header.get("RescaleSlope") or 1.0),
            intercept=float(header.get("RescaleIntercept") or 0.0),
        )

    def apply(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(H, W) in whole numbers where the rescale keeps them; (H, W, 3) stays as it is."""
        if pixels.ndim == 3:
            return np.ascontiguousarray(pixels)
        stored = pixels.astype(np.int32)
        if self.mirror is not None:
            stored = self.mirror - stored
        if not (self.slope.is_integer() and self.intercept.is_integer()):
            return stored.astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)
        values = stored * int(self.slope) + int(self.intercept)
        bounds = np.iinfo(np.int16)
        fits = bounds.min <= values.min() and values.max() <= bounds.max
        return values.astype(np.int16) if fits else values


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (
        pydicom.errors.InvalidDicomError,
        AttributeError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
        EOFError,
    ) as error:
        raise damaged_dicom(file, error) from error


def _differs(
    file: Path, pixels: npt.NDArray[Any], shape: tuple[int, ...], first: Path
) -> DataError:
    return DataError(
        f"{file}: its pixels of shape {pixels.shape} differ from {shape} of {first} of the same "
        "series. Keep the slices of one stack in the folder"
    )


class SeriesPlanes:
    """One file a slice.

    Every slice is decoded once on construction: only its values tell what type holds them all.

    Args:
        ordered: the slices in order.

    Raises:
        DataError: a file is damaged, or compressed in a way that cannot be decoded here.
    """

    def __init__(self, ordered: Sequence[SliceHeader]) -> None:
        self._files = tuple(header.file for header in ordered)
        first = _slice_values(self._files[0])
        self.shape = (len(self._files), *first.shape)
        self.dtype = first.dtype
        for file in self._files[1:]:
            values = _slice_values(file)
            if values.shape != first.shape:
                raise _differs(file, values, first.shape, self._files[0])
            self.dtype = np.promote_types(self.dtype, values.dtype)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """See ``Planes.read``."""
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for index in range(start, stop):
            block[index - start] = _slice_values(self._files[index])
        return block

    def close(self) -> None:
        """Each file is closed as soon as it is read."""


def _slice_values(file: Path) -> npt.NDArray[Any]:
    with _readable(file):
        header: Any = pydicom.dcmread(file)
        return _Rescale.of(header).apply(header.pixel_array)


class FramePlanes:
    """Frames of multi-frame files, put in order in a temporary file, once.

    Args:
        ordered: the frames in order.

    Raises:
        DataError: as ``SeriesPlanes``.
    """

    def __init__(self, ordered: Sequence[SliceHeader]) -> None:
        self._rescales: list[_Rescale] = [_Rescale(mirror=None, slope=1, intercept=0)] * len(
            ordered
        )
        self._stored: np.dtype[Any] | None = None
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        places = {(header.file, header.frame): index for index, header in enumerate(ordered)}
        self._file = tempfile.TemporaryFile(prefix="frames_")  # noqa: SIM115
        try:
            for file in dict.fromkeys(header.file for header in ordered):
                with _readable(file):
                    header = pydicom.dcmread(file, stop_before_pixels=True)
                    for frame, pixels in enumerate(iter_pixels(file)):
                        place = places[file, frame]
                        self._rescales[place] = _Rescale.of(header, ordered[place])
                        self._keep(place, pixels, file, ordered[0].file, len(ordered))
        except BaseException:
            self.close()
            raise

    def _keep(
        self, place: int, pixels: npt.NDArray[Any], file: Path, first: Path, count: int
    ) -> None:
        kind = self._rescales[place].apply(pixels).dtype
        if self._stored is None:
            self._stored, self.dtype, self.shape = pixels.dtype, kind, (count, *pixels.shape)
        if pixels.shape != self.shape[1:] or pixels.dtype != self._stored:
            raise _differs(file, pixels, self.shape[1:], first)
        self.dtype = np.promote_types(self.dtype, kind)
        self._file.seek(place * pixels.nbytes)
        self._file.write(pixels.tobytes())

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """See ``Planes.read``."""
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        assert self._stored is not None
        size = int(np.prod(self.shape[1:])) * self._stored.itemsize
        for index in range(start, stop):
            self._file.seek(index * size)
            pixels = np.frombuffer(self._file.read(size), self._stored).reshape(self.shape[1:])
            block[index - start] = self._rescales[index].apply(pixels)
        return block

    def close(self) -> None:
        """See ``Planes.close``."""
        self._file.close()
