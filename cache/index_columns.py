"""Columns of an index file as numpy arrays, read a piece at a time.

The index of a large cache has far more bytes as text and matrices than as the codes that stay in
memory, so each column is read on its own, a few rows at a time, and turned into codes at once.

Letters: N rows of the file, V distinct matrices, P points of all rows together.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache.tables import PointLists

__all__ = ["IndexColumns"]

_ROWS_AT_ONCE = 1 << 16
_BUFFER_BYTES = 1 << 16
_AFFINE_BYTES = 6 * 8


class IndexColumns:
    """An open index file.

    Args:
        path: a Parquet file as ``cache.index_files`` writes them.

    Raises:
        OSError, ValueError: it is no Parquet file.
    """

    def __init__(self, path: Path) -> None:
        names = pq.read_schema(path).names
        self._file = pq.ParquetFile(
            path,
            memory_map=False,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
            read_dictionary=[name for name in ("case_id", "kind") if name in names],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __contains__(self, name: str) -> bool:
        return name in self._file.schema_arrow.names

    def _pieces(self, name: str) -> Iterator[tuple[slice, Any]]:
        if name not in self:
            raise KeyError(f"column {name} is missing")
        start = 0
        for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=[name], use_threads=False):
            yield slice(start, start + len(batch)), batch.column(0)
            start += len(batch)

    def numbers(self, name: str, dtype: type[np.generic]) -> Any:  # noqa: ANN401 - of dtype
        """Give a column of numbers (N,)."""
        values = np.empty(len(self), dtype=dtype)
        for rows, piece in self._pieces(name):
            values[rows] = piece.to_numpy()
        return values

    def codes(self, name: str, names: Any, dtype: type[np.generic]) -> Any:  # noqa: ANN401
        """Give a column of text (N,) as positions in ``names``, an Arrow array of text.

        Raises:
            KeyError: a text that is not among them.
        """
        values = np.empty(len(self), dtype=dtype)
        for rows, piece in self._pieces(name):
            encoded = piece if pa.types.is_dictionary(piece.type) else piece.dictionary_encode()
            places = pc.index_in(encoded.dictionary, value_set=names)
            if places.null_count:
                unknown = encoded.dictionary.filter(places.is_null())[0].as_py()
                raise KeyError(f"{name} {unknown!r} is not known")
            values[rows] = places.to_numpy()[encoded.indices.to_numpy()]
        return values

    def affines(self, name: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """Give codes (N,) and the distinct matrices (V, 6), in order of first appearance."""
        codes = np.empty(len(self), dtype=np.int32)
        known: dict[bytes, int] = {}
        for rows, piece in self._pieces(name):
            values = np.ascontiguousarray(piece.flatten().to_numpy(), dtype=np.float64)
            # Equal matrices are told by their bytes; sorting them takes seconds and copies.
            encoded = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(_AFFINE_BYTES), len(values) // 6, [None, pa.py_buffer(values)]
            ).dictionary_encode()
            places = [known.setdefault(item, len(known)) for item in encoded.dictionary.to_pylist()]
            codes[rows] = np.array(places, dtype=np.int32)[encoded.indices.to_numpy()]
        matrices = np.frombuffer(b"".join(known), dtype=np.float64).reshape(-1, 6)
        return codes, matrices

    def points(self) -> PointLists:
        """Give the point lists of columns ``points`` and ``labels``."""
        if not len(self):
            return PointLists.of(())
        counts: list[npt.NDArray[np.int64]] = []
        points: list[npt.NDArray[np.float32]] = []
        for _, piece in self._pieces("points"):
            counts.append(np.diff(piece.offsets.to_numpy()))
            points.append(piece.flatten().flatten().to_numpy().astype(np.float32))
        labels = [piece.flatten().to_numpy().astype(np.int8) for _, piece in self._pieces("labels")]
        return PointLists(
            offsets=np.cumsum(np.concatenate([[0], *counts]), dtype=np.int64),
            points=np.concatenate(points).reshape(-1, 2),
            labels=np.concatenate(labels),
        )
