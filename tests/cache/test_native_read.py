"""Rows of all lengths by either way of reading, from memory and from a disk."""

import ctypes
import errno
import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from cache import ArraySpec, CacheCorruptError, CacheReader, CacheWriter, SliceRow
from cache.native_library import NativeLibrary, native_library
from tests.cache.example import case_rows, make_index, make_spec

LIBRARY = native_library()
needs_library = pytest.mark.skipif(
    LIBRARY is None, reason="no library was built, or this processor lacks an instruction"
)
SHAPES = {
    # The library reads half a MiB at once: rows of two calls and a bit, rows of one, and rows of
    # which a hundred and more go into a call.
    "features_s4": ((5, 256, 257), "float16"),
    "features_s16": ((4, 64, 64), "float16"),
    "image": ((3, 16, 16), "uint8"),
    "mask_iou": ((1,), "float32"),
}
ROWS = 160


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def long_and_short(request, tmp_path_factory):
    """A cache of rows of every length, in either format, and its values."""
    spec = make_spec(
        format=request.param,
        rows_per_shard=150,
        arrays=tuple(
            ArraySpec(name=name, rows="slices", shape=shape, dtype=dtype)
            for name, (shape, dtype) in SHAPES.items()
        ),
    )
    path = tmp_path_factory.mktemp(request.param) / "my.cache"
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 120, 1 << 20, dtype=np.uint8)
    values = {}
    for name, (shape, dtype) in SHAPES.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        starts = rng.integers(0, len(noise) - size, ROWS)
        rows = np.stack([noise[start : start + size] for start in starts])
        values[name] = rows.view(dtype).reshape(ROWS, *shape)
    case = replace(case_rows()[0], depth=ROWS)
    slices = [SliceRow(row=r, case_id=case.case_id, slice_index=r, view=0) for r in range(ROWS)]
    index = make_index(cases=[case], slices=slices, prompts=[], tracks=[])
    with CacheWriter.create_or_resume(path, spec, index) as writer:
        for shard in writer.missing_shards("slices"):
            rows = writer.rows_of_shard("slices", shard)
            writer.write_shard(
                "slices", shard, {name: value[rows] for name, value in values.items()}
            )
        writer.finish()
    return path, values


@pytest.fixture(params=["native", "portable"])
def way(request, monkeypatch):
    if request.param == "portable":
        monkeypatch.setattr("cache.direct_read.native_library", lambda: None)
    elif LIBRARY is None:
        pytest.skip("no library was built, or this processor lacks an instruction")
    return request.param


def read_and_compare(reader, values, rows):
    outs = {name: np.zeros_like(value[rows]) for name, value in values.items()}
    reader.read_into(outs, rows)
    for name, out in outs.items():
        assert out.tobytes() == values[name][rows].tobytes(), name


def test_rows_of_all_lengths_in_any_order(long_and_short, way):
    path, values = long_and_short
    reader = CacheReader(path)
    rng = np.random.default_rng(2)
    read_and_compare(reader, values, list(range(ROWS)))
    read_and_compare(reader, values, list(reversed(range(ROWS))))
    for _ in range(5):
        read_and_compare(reader, values, rng.integers(0, ROWS, 40).tolist())


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="pages cannot be dropped here")
def test_rows_that_are_on_the_disk_alone(long_and_short, way):
    path, values = long_and_short
    reader = CacheReader(path)
    reader.read("image", [0])
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read_and_compare(reader, values, [3, 155, 4, 90, 5])


@needs_library
def test_reading_goes_on_where_the_first_way_stopped(long_and_short, monkeypatch):
    path, values = long_and_short
    asked = []
    read = NativeLibrary.read

    def stop_early(self, numbers, rows, arrays, done, *, wait):
        asked.append((done, wait))
        if wait:
            return read(self, numbers, rows, arrays, done, wait=True)
        assert read(self, numbers, rows, arrays, done, wait=True) == rows * arrays
        for row in range(7, rows * arrays):  # as if they had not come
            array, place = divmod(row, rows)
            start, row_bytes = numbers[4 * rows * arrays + 2 * array :][:2]
            order = numbers[4 * rows * arrays + 2 * arrays + place]
            ctypes.memset(start + order * row_bytes, 0, row_bytes)
        numbers[-1] = error
        return 7

    monkeypatch.setattr(NativeLibrary, "read", stop_early)
    reader = CacheReader(path)
    error = errno.EAGAIN
    read_and_compare(reader, values, [3, 155, 4])
    assert asked == [(0, False), (7, True)]
    error = errno.EOPNOTSUPP  # then it is not asked for again
    read_and_compare(reader, values, [3, 155, 4])
    read_and_compare(reader, values, [1, 2, 100])
    assert asked[2:] == [(0, False), (7, True), (0, True)]


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="a folder cannot be opened as a file")
def test_an_error_of_the_disk_is_told_with_its_reason(long_and_short):
    path, _ = long_and_short
    reader = CacheReader(path)
    reader.read("image", [0])
    (opened,) = reader._direct._files.known.values()
    folder = os.open(path, os.O_RDONLY)
    os.dup2(folder, opened.descriptor)
    os.close(folder)
    with pytest.raises(CacheCorruptError, match="Is a directory"):
        reader.read("image", [0])
