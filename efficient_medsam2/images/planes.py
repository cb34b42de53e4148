"""Stored volumes read slice by slice: from a byte stream, or by way of a temporary file.

Shape letters: n planes of a block, D H W the axes of a case; ``...`` what is left of a shape.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from efficient_medsam2.errors import DataError

__all__ = ["BLOCK_BYTES", "MappedPlanes", "Planes", "StreamedPlanes", "TurnedPlanes", "blocks_of"]

BLOCK_BYTES = 1 << 21
"""How much of a volume is read at a time; one slice, where a slice is larger."""


class Planes(Protocol):
    """A volume along its first axis; blocks are cheapest in ascending order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, H, W) or (D, H, W, 3)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that ``read`` gives."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Planes ``start`` to ``stop`` as (n, ...), a new array.

        Raises:
            DataError: the file is damaged.
        """

    def close(self) -> None:
        """Let go of files; a second call does nothing."""


def blocks_of(planes: Planes) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """All planes in ascending order: the first one's number, and a block (n, ...)."""
    for start, stop in _spans(planes.shape, planes.dtype):
        yield start, planes.read(start, stop)


def _spans(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[tuple[int, int]]:
    plane_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    step = max(1, BLOCK_BYTES // max(plane_bytes, 1))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


class MappedPlanes:
    """Planes of which every block passes through a function.

    Args:
        planes: what is stored.
        dtype: what the function gives.
        function: a block (n, ...) to one of the same number of planes.
    """

    def __init__(
        self,
        planes: Planes,
        dtype: npt.DTypeLike,
        function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    ) -> None:
        self._planes = planes
        self._function = function
        self.shape = planes.shape
        self.dtype = np.dtype(dtype)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """See ``Planes.read``."""
        return self._function(self._planes.read(start, stop))

    def close(self) -> None:
        """See ``Planes.close``."""
        self._planes.close()


class StreamedPlanes:
    """Planes that lie one after another in a stream of bytes, first axis slowest.

    Reading on is free, reading from 0 opens the stream again, and the first step back in the
    middle copies the stream to a temporary file, once, unless the stream can seek cheaply.

    Args:
        shape: of the whole.
        dtype: as stored.
        open_stream: opens the stream at its first value.
        guard: what turns a damaged stream's errors into a DataError; ValueError for a short one.
        can_seek: whether going back is as cheap as going on.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        open_stream: Callable[[], IO[bytes]],
        guard: Callable[[], AbstractContextManager[None]],
        can_seek: bool = False,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._open_stream = open_stream
        self._guard = guard
        self._can_seek = can_seek
        self._plane_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self._stream: IO[bytes] | None = None
        self._origin = 0
        self._at = 0
        self._turned: TurnedPlanes | None = None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """See ``Planes.read``."""
        if self._turned is not None:
            return self._turned.read(start, stop)
        # From the very end, where every pass ends, the stream is opened again instead.
        if 0 < start < self._at < self.shape[0] and not self._can_seek:
            self._close_stream()
            self._turned = TurnedPlanes(self, axes=tuple(range(len(self.shape))))
            return self._turned.read(start, stop)
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._guard():
            stream = self._stream_at(start)
            _fill(stream, _bytes_of(block))
            self._at = stop
            # Only behind the last byte do zip and gzip compare their checksums.
            while stop == self.shape[0] and not self._can_seek and stream.read(BLOCK_BYTES):
                pass
        return block

    def close(self) -> None:
        """See ``Planes.close``."""
        self._close_stream()
        if self._turned is not None:
            self._turned.close()
            self._turned = None

    def _stream_at(self, start: int) -> IO[bytes]:
        if self._stream is None or (start < self._at and not self._can_seek):
            self._close_stream()
            self._stream = self._open_stream()
            self._origin = self._stream.tell() if self._can_seek else 0
            self._at = 0
        if self._can_seek:
            self._stream.seek(self._origin + start * self._plane_bytes)
            return self._stream
        ahead = (start - self._at) * self._plane_bytes
        while ahead > 0:
            skipped = len(self._stream.read(min(ahead, BLOCK_BYTES)))
            if skipped == 0:
                raise ValueError("it ends before its last slice")
            ahead -= skipped
        return self._stream

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class TurnedPlanes:
    """Planes along any axis of a stored volume, by way of one pass into a temporary file.

    Each block of the stored volume goes to the file already turned, so that a plane is read from
    it in as many pieces as there were blocks; memory stays at one block.

    Args:
        stored: the volume along its slowest stored axis.
        axes: for each axis of the result the stored axis that it is.
        flips: for each axis of the result whether it runs against the stored one.

    Raises:
        DataError: the stored volume is damaged, or the temporary folder is full.
    """

    def __init__(
        self, stored: Planes, *, axes: tuple[int, ...], flips: tuple[bool, ...] = ()
    ) -> None:
        self._flips = flips or (False,) * len(axes)
        self.shape = tuple(stored.shape[axis] for axis in axes)
        self.dtype = stored.dtype
        self._cut = axes.index(0)
        # Offset in the file, first and last place along the cut axis of each block.
        self._tiles: list[tuple[int, int, int]] = []
        self._file: IO[bytes] | None = None
        try:
            self._file = tempfile.TemporaryFile(prefix="case_", buffering=0)  # noqa: SIM115
            for start, block in blocks_of(stored):
                self._append(self._turn(block, axes), start)
        except OSError as error:
            self.close()
            raise DataError(
                f"{tempfile.gettempdir()}: cannot hold a copy of a volume while it is read "
                f"({error}). Make room there, or name another folder in TMPDIR"
            ) from error
        except BaseException:
            self.close()
            raise

    def _turn(self, block: npt.NDArray[Any], axes: tuple[int, ...]) -> npt.NDArray[Any]:
        flipped = tuple(axis for axis, flip in enumerate(self._flips) if flip)
        return np.ascontiguousarray(np.flip(np.transpose(block, axes), flipped))

    def _append(self, tile: npt.NDArray[Any], start: int) -> None:
        assert self._file is not None
        length = tile.shape[self._cut]
        first = self.shape[self._cut] - start - length if self._flips[self._cut] else start
        self._tiles.append((self._file.tell(), first, first + length))
        remaining = _bytes_of(tile)
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """See ``Planes.read``."""
        assert self._file is not None, "closed"
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for offset, first, last in self._tiles:
            if self._cut == 0:
                begin, end = max(start, first), min(stop, last)
                if begin < end:
                    self._read_tile(offset, begin - first, block[begin - start : end - start])
                continue
            place = (slice(None),) * self._cut + (slice(first, last),)
            piece = np.empty(block[place].shape, self.dtype)
            self._read_tile(offset, start, piece)
            block[place] = piece
        return block

    def _read_tile(self, offset: int, row: int, piece: npt.NDArray[Any]) -> None:
        """Fill ``piece`` (n, ...) with a tile's rows from ``row`` on."""
        assert self._file is not None
        row_bytes = int(np.prod(piece.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self._file.seek(offset + row * row_bytes)
        _fill(self._file, _bytes_of(piece))

    def close(self) -> None:
        """See ``Planes.close``."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _bytes_of(values: npt.NDArray[Any]) -> memoryview:
    """The memory of a contiguous array."""
    return values.reshape(-1).view(np.uint8).data


def _fill(stream: IO[bytes], target: memoryview) -> None:
    while target:
        count = stream.readinto(target)  # type: ignore[attr-defined]  # IO lacks what files have
        if not count:
            raise ValueError("it ends before its last slice")
        target = target[count:]
