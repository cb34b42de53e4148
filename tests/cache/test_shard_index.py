import os

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from cache.checksum import crc32c
from cache.shard_index import LONGEST_GAP, read_zarr_index, zarr_index, zarr_row_stride

ROW = 12
EMPTY = 2**64 - 1


def read(tmp_path, content, rows=3, slots=4):
    file = tmp_path / "shard"
    file.write_bytes(content)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return read_zarr_index(descriptor, len(content), row_bytes=ROW, rows=rows, slots=slots)
    finally:
        os.close(descriptor)


def made(pairs, payload=3 * 16):
    table = np.array(pairs, dtype="<u8").tobytes()
    return bytes(payload) + table + crc32c(table).to_bytes(4, "little")


def test_the_index_is_the_one_that_zarr_writes(tmp_path):
    array = zarr.create_array(
        tmp_path / "a",
        shape=(3, 3),
        chunks=(1, 3),
        shards=(4, 3),
        dtype="float32",
        compressors=Crc32cCodec(),
        filters=None,
        fill_value=0,
    )
    array[:] = np.arange(1, 10).reshape(3, 3)
    content = (tmp_path / "a/c/0/0").read_bytes()
    assert content.endswith(zarr_index(ROW, 3, 4))
    assert list(read(tmp_path, content).offsets) == [0, 16, 32]


def test_long_rows_start_where_processors_copy_fast():
    assert zarr_row_stride(ROW) == ROW + 4
    for row_bytes in (4096, 4157, 4200, 1 << 20):
        stride = zarr_row_stride(row_bytes)
        assert stride % 64 == 0
        assert 4 <= stride - row_bytes <= LONGEST_GAP


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ((0, 16, 32), range(0, 48, 16)),
        ((2, 22, 42), range(2, 62, 20)),
        ((0, 100, 200), (0, 100, 200)),
        ((0, 16, 36), (0, 16, 36)),
    ],
)
def test_rows_at_equal_distances_can_be_read_at_once(tmp_path, starts, expected):
    index = read(tmp_path, made([*((at, 16) for at in starts), (EMPTY, EMPTY)], payload=256))
    assert index.offsets == expected
    assert index.gap == (expected.step - ROW if isinstance(expected, range) else 4)


def test_rows_may_lie_in_another_order(tmp_path):
    index = read(tmp_path, made([(32, 16), (0, 16), (16, 16), (EMPTY, EMPTY)]))
    assert list(index.offsets) == [32, 0, 16]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (made([(0, 16), (EMPTY, EMPTY), (32, 16), (EMPTY, EMPTY)]), "no row in slot 1"),
        (made([(0, 16), (16, 16), (32, 16), (0, 16)]), "more than 3 rows"),
        (made([(0, 16), (16, 12), (32, 16), (EMPTY, EMPTY)]), "slot 1 has 12 bytes, not 16"),
        (made([(0, 16), (16, 16), (33, 16), (EMPTY, EMPTY)]), "slot 2 lies outside"),
        (made([(0, 16), (16, 16), (2**63, 16), (EMPTY, EMPTY)]), "slot 2 lies outside"),
        (made([(0, 16), (16, 16), (32, 16), (EMPTY, EMPTY)])[:-1] + b"!", "its checksum"),
        (b"short", "shorter than the index"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)
