"""The first pass: image, label and the teacher's features of every slice.

Shape letters: B rows, C channels, S network input in pixels.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from stages.cache_calls import Made, TeacherCalls
from stages.cache_pictures import PictureReader
from stages.cache_shards import ShardAssembler

__all__ = ["SlicePass", "SlicePiece"]


@dataclass(frozen=True, kw_only=True)
class SlicePiece:
    """A batch of slices.

    Attributes:
        rows: (B,) slice rows.
        image: uint8 (B, C, S, S) on the CPU.
        label: uint16 (B, S, S).
    """

    rows: np.ndarray
    image: Tensor
    label: np.ndarray


class SlicePass:
    """Encodes each missing slice row once.

    Args:
        pictures: reads the slices.
        calls: the teacher.
        batch_size: B at most.
    """

    description = "encoding slices"

    def __init__(self, pictures: PictureReader, calls: TeacherCalls, *, batch_size: int) -> None:
        self._pictures = pictures
        self._calls = calls
        self._batch_size = batch_size

    def pieces(self, shards: ShardAssembler) -> Generator[SlicePiece, None, None]:
        """Batches, none across two shards, so that a resumed run cuts them the same way."""
        for rows in shards.missing.values():
            for start in range(rows.start, rows.stop, self._batch_size):
                part = range(start, min(start + self._batch_size, rows.stop))
                read = self._pictures.read(part)
                yield SlicePiece(
                    rows=np.arange(part.start, part.stop),
                    image=self._calls.host(read.image),
                    label=read.label,
                )

    def compute(self, piece: SlicePiece) -> Iterator[tuple[np.ndarray, Made]]:
        """Rows and their arrays."""
        made = self._calls.encode(piece.image)
        yield piece.rows, made.beside({"image": piece.image.numpy(), "label": piece.label})
