"""Where the rows of one shard lie in its file, parsed once and checked.

Zarr v3 ``sharding_indexed``: the file ends with (offset, length) of every row slot, uint64 little
endian, and the crc32c of that table; an empty slot is two times 2^64 - 1. Each row is followed by
its own crc32c. https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/

The index may leave room between rows, and ours does: long rows start at a multiple of 64 bytes,
because processors copy them out of the kernel's memory faster from there. In caches of earlier
versions each row starts right behind the one before, and stays so when such a cache is written on.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cache.checksum import CRC_BYTES, crc32c

__all__ = [
    "CLOSE_TOGETHER",
    "LONGEST_GAP",
    "ROW_ALIGNMENT",
    "ShardIndex",
    "read_zarr_index",
    "zarr_index",
    "zarr_row_stride",
]

_EMPTY = (1 << 64) - 1
ROW_ALIGNMENT = 64
"""Bytes at a multiple of which a long row starts in a new cache."""
CLOSE_TOGETHER = 1
"""The same of caches of earlier versions."""
_LONG_ROW = 4096  # below, the room between rows would be more than 1.5 % of a file
LONGEST_GAP = CRC_BYTES + ROW_ALIGNMENT
"""Bytes between rows that are read along where neighbouring rows are read at once."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShardIndex:
    """Where rows lie in a shard's file.

    Attributes:
        offsets: byte of each row; a ``range`` where rows lie one after the other.
        gap: bytes from a row's end to the next row's start, where ``offsets`` is a ``range``; the
            first four are the row's crc32c, little endian. 0 where rows have none behind them.
        checksums: uint32 (rows,): crc32c of the rows as the file itself states them elsewhere,
            or ``None``.
    """

    offsets: Sequence[int]
    gap: int
    checksums: npt.NDArray[np.uint32] | None = None


def zarr_row_stride(row_bytes: int, alignment: int = ROW_ALIGNMENT) -> int:
    """Give the bytes from the start of a row to that of the next, its checksum included."""
    length = row_bytes + CRC_BYTES
    return length if row_bytes < _LONG_ROW else -(-length // alignment) * alignment


@lru_cache(maxsize=256)
def zarr_index(row_bytes: int, rows: int, slots: int, *, alignment: int = ROW_ALIGNMENT) -> bytes:
    """Give the index of a shard as we write it, its checksum included.

    Args:
        row_bytes: bytes of a row without its checksum.
        rows: rows that are there.
        slots: rows that a full shard has.
        alignment: of long rows.
    """
    stride = zarr_row_stride(row_bytes, alignment)
    table = np.full((slots, 2), _EMPTY, dtype="<u8")
    table[:rows, 0] = np.arange(rows, dtype=np.uint64) * np.uint64(stride)
    table[:rows, 1] = row_bytes + CRC_BYTES
    content = table.tobytes()
    return content + crc32c(content).to_bytes(CRC_BYTES, "little")


def read_zarr_index(
    descriptor: int, size: int, *, row_bytes: int, rows: int, slots: int
) -> ShardIndex:
    """Read and check the index of a Zarr shard.

    Args:
        descriptor: the open file.
        size: its bytes.
        row_bytes: bytes of a row without its checksum.
        rows: rows that must be there.
        slots: row slots of the index.

    Raises:
        ValueError: the index is damaged, has no row where one must be, or points outside.
    """
    length, index_bytes = row_bytes + CRC_BYTES, 16 * slots + CRC_BYTES
    start = size - index_bytes
    content = os.pread(descriptor, index_bytes, start) if start >= 0 else b""
    if content == zarr_index(row_bytes, rows, slots):
        return _one_after_the_other(0, zarr_row_stride(row_bytes), row_bytes, rows)
    if len(content) != index_bytes:
        raise ValueError("the file is shorter than the index of its shard")
    if crc32c(content[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != content[-CRC_BYTES:]:
        raise ValueError("the shard's index does not fit its checksum")
    table = np.frombuffer(content, dtype="<u8", count=2 * slots).reshape(slots, 2)
    empty = (table == _EMPTY).all(axis=1)
    if empty[:rows].any():
        raise ValueError(f"the shard's index has no row in slot {int(np.argmax(empty[:rows]))}")
    if not empty[rows:].all():
        raise ValueError(f"the shard's index has more than {rows} rows")
    other = table[:rows, 1] != length
    if other.any():
        slot = int(np.argmax(other))
        raise ValueError(
            f"the row in slot {slot} has {int(table[slot, 1])} bytes, not {length} "
            "(values and crc32c)"
        )
    outside = table[:rows, 0] > start - length if start >= length else np.ones(rows, dtype=bool)
    if outside.any():
        slot = int(np.argmax(outside))
        raise ValueError(f"the row in slot {slot} lies outside the file")
    offsets: list[int] = table[:rows, 0].tolist()
    strides = set(np.diff(table[:rows, 0].astype(np.int64)).tolist()) or {length}
    if len(strides) == 1 and length <= min(strides) <= row_bytes + LONGEST_GAP:
        return _one_after_the_other(offsets[0], min(strides), row_bytes, rows)
    return ShardIndex(offsets=tuple(offsets), gap=CRC_BYTES)


@lru_cache(maxsize=256)
def _one_after_the_other(first: int, stride: int, row_bytes: int, rows: int) -> ShardIndex:
    return ShardIndex(offsets=range(first, first + rows * stride, stride), gap=stride - row_bytes)
