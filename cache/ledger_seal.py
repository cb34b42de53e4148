"""All ledger entries of a finished cache in one table, so that it opens at once.

One row for each (space, shard, array), in that order. The table is made of the entries when the
cache is finished, and never counts by itself: ``cache.ledger.open_ledger`` compares it with the
entry files that are there.
"""

import io
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cache.durable import sha256_of_file
from cache.layout import LEDGER_FOLDER, CacheHeader, CompleteMark
from cache.ledger_entry import LedgerEntry, ShardFile
from cache.schema import ROW_SPACES, RowSpace

__all__ = ["SEAL_NAME", "SealedEntries", "encode_seal", "read_seal", "seal_path", "seal_problem"]

SEAL_NAME = "sealed.parquet"

_ROWS_AT_ONCE = 8192
_BUFFER_BYTES = 1 << 16

_SCHEMA = pa.schema(
    [
        ("space", pa.dictionary(pa.int8(), pa.string())),
        ("shard", pa.int64()),
        ("array", pa.dictionary(pa.int16(), pa.string())),
        ("entry_bytes", pa.int64()),  # size of the entry's own file
        ("file", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.binary(32)),
        ("row_crc32c", pa.binary()),  # 4 bytes a row, little endian
    ]
)


def seal_path(cache: Path) -> Path:
    """Give the table's file of the cache at ``cache``."""
    return cache / LEDGER_FOLDER / SEAL_NAME


def encode_seal(
    entries: Mapping[tuple[RowSpace, int], LedgerEntry],
    entry_bytes: Mapping[tuple[RowSpace, int], int],
) -> bytes:
    """Give the table's content.

    Args:
        entries: all entries of the cache.
        entry_bytes: the size of each one's file.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    for (space, shard), entry in sorted(entries.items(), key=itemgetter(0)):
        for name, file in sorted(entry.arrays.items()):
            columns["space"].append(space)
            columns["shard"].append(shard)
            columns["array"].append(name)
            columns["entry_bytes"].append(entry_bytes[space, shard])
            columns["file"].append(file.file)
            columns["bytes"].append(file.bytes)
            columns["sha256"].append(bytes.fromhex(file.sha256))
            checksums = file.row_crc32c
            columns["row_crc32c"].append(
                None if checksums is None else checksums.astype("<u4").tobytes()
            )
    sink = io.BytesIO()
    table = pa.table(columns, schema=_SCHEMA)
    pq.write_table(
        table, sink, compression="none", use_dictionary=["space", "array"], write_statistics=False
    )
    return sink.getvalue()


def seal_problem(cache: Path, mark: CompleteMark) -> str | None:
    """Say what is wrong with the table of a complete cache, or give ``None``."""
    if mark.seal_sha256 is None:
        return None
    file = seal_path(cache)
    if not file.is_file():
        return "is missing"
    if sha256_of_file(file) != mark.seal_sha256:
        return "has other bytes than were written (SHA-256 differs)"
    return None


def read_seal(
    cache: Path, header: CacheHeader, mark: CompleteMark | None
) -> "SealedEntries | None":
    """Read the table, or give ``None`` where there is none that the completion mark knows.

    Without it the entries' own files are read, which takes longer and says the same.
    """
    file = seal_path(cache)
    if mark is None or mark.seal_sha256 is None or not file.is_file():
        return None
    if sha256_of_file(file) != mark.seal_sha256:
        return None
    with pq.ParquetFile(
        file, memory_map=False, pre_buffer=False, buffer_size=_BUFFER_BYTES
    ) as opened:
        return SealedEntries(opened, header)


class _Column:
    """A column of bytes in one piece of memory.

    It is filled a few rows at a time: reading it at once takes several times its size.
    """

    def __init__(self, opened: Any, name: str) -> None:  # noqa: ANN401 - pyarrow
        parts = opened.metadata
        number = opened.schema_arrow.names.index(name)
        size = sum(
            parts.row_group(k).column(number).total_uncompressed_size
            for k in range(parts.num_row_groups)
        )
        # Plainly stored, a column has at least the bytes of its values.
        self._values = np.empty(size, dtype=np.uint8)
        self._ends = np.zeros(parts.num_rows + 1, dtype=np.int64)
        self._absent = np.zeros(parts.num_rows, dtype=bool)
        row, end = 0, 0
        for piece in _pieces(opened, name):
            plain = piece.cast(pa.binary())
            _, bounds, data = plain.buffers()
            offsets = np.frombuffer(bounds, dtype=np.int32)[plain.offset :][: len(plain) + 1]
            first, last = int(offsets[0]), int(offsets[-1])
            if data is not None:
                self._values[end : end + last - first] = np.frombuffer(data, np.uint8)[first:last]
            self._ends[row + 1 : row + 1 + len(plain)] = end + offsets[1:] - first
            self._absent[row : row + len(plain)] = plain.is_null()
            row, end = row + len(plain), end + last - first

    def __getitem__(self, row: int) -> npt.NDArray[np.uint8] | None:
        """Give the bytes of a row, or ``None`` where there are none."""
        if self._absent[row]:
            return None
        return self._values[self._ends[row] : self._ends[row + 1]]

    @property
    def absent(self) -> npt.NDArray[np.bool_]:
        """Which rows have no bytes, bool (N,)."""
        return self._absent


def _pieces(opened: Any, name: str) -> Iterator[Any]:  # noqa: ANN401 - pyarrow
    for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=[name], use_threads=False):
        yield batch.column(0)


def _numbers(opened: Any, name: str) -> npt.NDArray[np.int64]:  # noqa: ANN401 - pyarrow
    pieces = [piece.to_numpy() for piece in _pieces(opened, name)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *pieces])


def _spaces(opened: Any) -> npt.NDArray[np.int8]:  # noqa: ANN401 - pyarrow
    """Give the space of each row as its position in ``ROW_SPACES``."""
    found = [np.zeros(0, dtype=np.int8)]
    for piece in _pieces(opened, "space"):
        places = [ROW_SPACES.index(name) for name in piece.dictionary.to_pylist()]
        found.append(np.array(places, dtype=np.int8)[piece.indices.to_numpy()])
    return np.concatenate(found)


class SealedEntries(Mapping[tuple[RowSpace, int], LedgerEntry]):
    """The entries of a table, made when they are asked for.

    Args:
        opened: what ``encode_seal`` wrote, as an open Parquet file.
        header: the cache's header.
    """

    def __init__(self, opened: Any, header: CacheHeader) -> None:  # noqa: ANN401 - pyarrow
        self._header = header
        self._fingerprint = header.spec.fingerprint()
        self._file = _Column(opened, "file")
        self._sha256 = _Column(opened, "sha256")
        self._row_crc32c = _Column(opened, "row_crc32c")
        self._bytes = _numbers(opened, "bytes")
        self._entry_bytes = _numbers(opened, "entry_bytes")
        shard = _numbers(opened, "shard")
        space = _spaces(opened)
        self._names = {
            space: sorted(array.name for array in header.spec.arrays_of(space))
            for space in ROW_SPACES
        }
        self._first: dict[RowSpace, int] = {}
        self._shards: dict[RowSpace, npt.NDArray[np.int64]] = {}
        for name in ROW_SPACES:
            rows = np.flatnonzero(space == ROW_SPACES.index(name))
            self._first[name] = int(rows[0]) if len(rows) else 0
            self._shards[name] = shard[rows][:: len(self._names[name]) or 1]

    def __len__(self) -> int:
        return sum(len(shards) for shards in self._shards.values())

    def __iter__(self) -> Iterator[tuple[RowSpace, int]]:
        for space in sorted(ROW_SPACES):
            for shard in self._shards[space].tolist():
                yield space, shard

    def __getitem__(self, key: tuple[RowSpace, int]) -> LedgerEntry:
        space, shard = key
        arrays = {name: self.shard_file(space, shard, name) for name in self._names[space]}
        files = {name: file for name, file in arrays.items() if file is not None}
        if not files:
            raise KeyError(key)
        rows = self._header.spec.shard_rows(shard, self._header.counts[space])
        return LedgerEntry(
            space=space,
            shard=shard,
            start=rows.start,
            stop=rows.stop,
            fingerprint=self._fingerprint,
            arrays=files,
        )

    def shards(self, space: RowSpace) -> npt.NDArray[np.int64]:
        """Give the shards of a space, ascending, int64 (n,)."""
        return self._shards[space]

    def shard_file(self, space: RowSpace, shard: int, array: str) -> ShardFile | None:
        """Give an array's file of a shard, or ``None`` where there is no such shard."""
        shards = self._shards[space]
        position = int(np.searchsorted(shards, shard))
        if position == len(shards) or shards[position] != shard:
            return None
        names = self._names[space]
        row = self._first[space] + position * len(names) + names.index(array)
        checksums = self._row_crc32c[row]
        return ShardFile(
            file=_present(self._file[row]).decode(),
            bytes=int(self._bytes[row]),
            sha256=_present(self._sha256[row]).hex(),
            row_crc32c=None if checksums is None else np.frombuffer(checksums, dtype="<u4"),
        )

    def entry_bytes(self) -> dict[tuple[RowSpace, int], int]:
        """Give the size that each entry's own file had."""
        sizes = self._entry_bytes
        found: dict[tuple[RowSpace, int], int] = {}
        for space in ROW_SPACES:
            first, step = self._first[space], len(self._names[space]) or 1
            shards = self._shards[space]
            values = sizes[first : first + step * len(shards) : step]
            found.update(
                ((space, shard), size)
                for shard, size in zip(shards.tolist(), values.tolist(), strict=True)
            )
        return found

    def without_row_checksums(self) -> int:
        """Count the shards of which an array has no row checksums."""
        absent = self._row_crc32c.absent
        count = 0
        for space in ROW_SPACES:
            first, step = self._first[space], len(self._names[space]) or 1
            rows = absent[first : first + step * len(self._shards[space])]
            count += int(rows.reshape(-1, step).any(axis=1).sum())
        return count


def _present(content: npt.NDArray[np.uint8] | None) -> bytes:
    if content is None:
        raise ValueError("a column of the sealed ledger lacks a value")
    return content.tobytes()
