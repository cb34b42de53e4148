"""A whole cache in HDF5 files: the same promises as in Zarr."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache import (
    CacheCorruptError,
    CacheReader,
    CacheWriter,
    describe,
    discard_bad,
    required_bytes,
    verify,
)
from cache.hdf5_store import DATASET_NAME
from tests.cache.example import (
    ARRAYS,
    content_of,
    fill,
    make_cache,
    make_index,
    make_spec,
    values_of,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("hdf5") / "my.cache", format="hdf5").path


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy.cache"))


def resume(path):
    return CacheWriter.create_or_resume(path, make_spec(format="hdf5"), make_index())


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: array.name)
def test_rows_are_those_that_any_hdf5_reader_finds(whole, array):
    reader = CacheReader(whole)
    count = reader.counts[array.rows]
    rows = np.random.default_rng(3).integers(0, count, 2 * count)
    np.testing.assert_array_equal(reader.read(array.name, rows), values_of(array, rows.tolist()))
    files = sorted((whole / "arrays" / array.name).glob("*.h5"), key=lambda file: int(file.stem))
    found = []
    for file in files:
        with h5py.File(file, "r") as opened:
            found.append(opened[DATASET_NAME][:])
    assert np.concatenate(found).tobytes() == reader.read(array.name, range(count)).tobytes()


def test_it_is_complete_sound_and_of_the_announced_size(whole):
    assert CacheReader(whole).complete
    assert verify(whole).ok
    assert describe(whole).format == "hdf5"
    files = list(whole.glob("arrays/*/*.h5"))
    sizes = required_bytes(make_spec(format="hdf5"), make_index().counts())
    assert sum(file.stat().st_size for file in files) == sizes["total"]


def test_every_flipped_bit_of_a_shard_is_found(copy):
    file = copy / "arrays/features_s16/2.h5"
    content = file.read_bytes()
    places = [*range(0, 2048, 61), *range(2048, len(content))]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(CacheCorruptError):
            CacheReader(copy).read("features_s16", range(10, 15))


def test_exchanged_missing_and_cut_shards_are_named(copy):
    first, second = (copy / f"arrays/image/{k}.h5" for k in (0, 1))
    aside = copy / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    with pytest.raises(CacheCorruptError, match=r"0\.h5: rows of image.*row 2 has not the checks"):
        CacheReader(copy).read("image", [2])
    second.unlink()
    with pytest.raises(CacheCorruptError, match=r"1\.h5 is missing: row 7"):
        CacheReader(copy).read("image", [7])
    third = copy / "arrays/image/2.h5"
    third.write_bytes(third.read_bytes()[:-1])
    with pytest.raises(CacheCorruptError, match=r"2\.h5 has \d+ bytes, not \d+"):
        CacheReader(copy).read("image", [10])


def test_bad_shards_and_leftovers_are_mended_on_resume(copy, whole):
    file = copy / "arrays/label/3.h5"
    content = bytearray(file.read_bytes())
    content[3000] ^= 1
    file.write_bytes(content)
    (copy / "arrays/label/4.h5.99.partial").write_bytes(b"half")
    (copy / "arrays/label/2.h5").unlink()
    discard_bad(copy, verify(copy))
    with resume(copy) as writer:
        assert writer.missing_shards("slices") == (2, 3)
        assert any("4.h5.99.partial" in line for line in writer.discarded)
        fill(writer)
    assert content_of(copy) == content_of(whole)


def test_the_two_formats_are_two_caches(whole, finished):
    theirs, ours = CacheReader(finished).spec, CacheReader(whole).spec
    assert ours.differences(theirs) == (("format", "hdf5", "zarr"),)
