import json
import pickle
import shutil

import numpy as np
import pytest
import zarr

from cache import (
    CacheCorruptError,
    CacheMissingError,
    CacheReader,
    CacheStaleError,
    CacheWriter,
    describe,
)
from cache.durable import canonical_json, sha256_of_bytes
from cache.schema import SCHEMA_VERSION
from tests.cache.example import (
    ARRAYS,
    content_of,
    make_cache,
    make_index,
    make_spec,
    shard_values,
    values_of,
)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: array.name)
def test_rows_come_in_the_asked_order(reader, array):
    count = reader.counts[array.rows]
    rows = np.random.default_rng(3).integers(0, count, 2 * count)
    np.testing.assert_array_equal(reader.read(array.name, rows), values_of(array, rows.tolist()))


def test_reading_nothing_and_everything(reader):
    assert reader.read("image", []).shape == (0, 3, 16, 16)
    np.testing.assert_array_equal(
        reader.read("features_s4", range(28)), values_of(ARRAYS[2], range(28))
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [([28], "rows 0 to 27, not 28"), ([-1], "not -1"), ([[0]], "integers"), ([0.5], "integers")],
)
def test_wrong_rows_are_refused(reader, rows, message):
    with pytest.raises(ValueError, match=message):
        reader.read("image", rows)


def test_unknown_arrays_are_refused(reader):
    with pytest.raises(KeyError, match=r"no array 'features_s2'.*features_s4"):
        reader.read("features_s2", [0])


def test_any_zarr_reader_opens_every_array(finished):
    group = zarr.open_group(finished / "arrays", mode="r")
    assert sorted(group.array_keys()) == sorted(array.name for array in ARRAYS)
    counts = make_index().counts()
    for array in ARRAYS:
        stored = group[array.name]
        assert stored.chunks == (1, *array.shape)
        assert stored.shards == (5, *array.shape)
        np.testing.assert_array_equal(stored[:], values_of(array, range(counts[array.rows])))


def test_the_folder_can_be_moved_and_has_no_place_in_it(copy, finished, tmp_path):
    moved = tmp_path / "elsewhere" / "renamed.cache"
    moved.parent.mkdir()
    copy.rename(moved)
    reader = CacheReader(moved)
    assert reader.digest() == CacheReader(finished).digest()
    assert reader.complete
    np.testing.assert_array_equal(reader.read("label", [27, 3]), values_of(ARRAYS[1], [27, 3]))
    text = b"".join(content_of(moved).values())
    assert str(finished).encode() not in text
    assert str(tmp_path).encode() not in text


def test_digest_tells_contents_apart(finished, tmp_path):
    digest = CacheReader(finished).digest()
    again = make_cache(tmp_path / "again.cache", created_by="somebody else")
    assert again.digest() == digest
    assert make_cache(tmp_path / "other.cache", data_sha256="e" * 64).digest() != digest
    values = {"created_by": "the same spec, one other value"}
    with CacheWriter.create_or_resume(
        tmp_path / "value.cache", make_spec(**values), make_index()
    ) as writer:
        for space in ("slices", "prompts", "tracks"):
            for k in writer.missing_shards(space):
                arrays = shard_values(writer, space, k)
                if (space, k) == ("slices", 0):
                    arrays["image"][0, 0, 0, 0] ^= 1
                writer.write_shard(space, k, arrays)
        assert writer.finish() != digest


def test_digest_of_the_writer_is_that_of_the_reader(copy):
    with CacheWriter.create_or_resume(copy, make_spec(), make_index()) as writer:
        assert writer.finish() == CacheReader(copy).digest()


def test_statistics_are_those_of_the_values(reader):
    arrays = [array for array in ARRAYS if array.has_channel_statistics]
    assert sorted(reader.statistics) == sorted(array.name for array in arrays)
    for array in arrays:
        count = reader.counts[array.rows]
        values = values_of(array, range(count)).astype(np.float64)
        figures = reader.statistics[array.name]
        assert figures.count == values[:, 0].size
        np.testing.assert_allclose(figures.mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(figures.std, values.std(axis=(0, 2, 3)), rtol=1e-10)


def test_rows_of_zeros_are_stored_not_left_out(tmp_path):
    path = tmp_path / "zeros.cache"
    with CacheWriter.create_or_resume(path, make_spec(), make_index()) as writer:
        arrays = shard_values(writer, "slices", 0)
        writer.write_shard("slices", 0, {k: np.zeros_like(v) for k, v in arrays.items()})
    assert not CacheReader(path).read("image", [0, 4]).any()
    assert (path / "arrays/image/c/0/0/0/0").stat().st_size == 5 * (768 + 4) + 5 * 16 + 4


def test_rows_that_were_never_written_are_refused_not_zero(tmp_path):
    path = tmp_path / "part.cache"
    with CacheWriter.create_or_resume(path, make_spec(), make_index()) as writer:
        writer.write_shard("slices", 1, shard_values(writer, "slices", 1))
    reader = CacheReader(path)
    assert reader.finished_rows("slices").tolist() == [5, 6, 7, 8, 9]
    assert reader.finished_rows("tracks").tolist() == []
    np.testing.assert_array_equal(reader.read("image", [7]), values_of(ARRAYS[0], [7]))
    with pytest.raises(
        CacheMissingError, match=r"row 3 of image was never written: shard 0 of slices.*precompute"
    ):
        reader.read("image", [7, 3])
    assert not reader.complete
    with pytest.raises(CacheMissingError, match=r"not complete, so it has no statistics"):
        _ = reader.statistics


def test_a_missing_or_cut_shard_is_named(copy):
    file = copy / "arrays/features_s8/c/1/0/0/0"
    reader = CacheReader(copy)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(CacheCorruptError, match=rf"{file} has \d+ bytes, not \d+: row 9 of feat"):
        reader.read("features_s8", [0, 9])
    file.unlink()
    with pytest.raises(CacheCorruptError, match=rf"{file} is missing: row 5.*shard 1 of slices"):
        reader.read("features_s8", [5])
    np.testing.assert_array_equal(reader.read("features_s8", [4]), values_of(ARRAYS[3], [4]))


@pytest.mark.parametrize("place", [0, 30, -5, -30])
def test_a_flipped_bit_is_named(copy, place):
    file = copy / "arrays/features_s8/c/1/0/0/0"
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)
    with pytest.raises(CacheCorruptError) as caught:
        CacheReader(copy).read("features_s8", range(5, 10))
    message = str(caught.value)
    assert f"{file}: rows of features_s8, shard 1 of slices" in message
    assert f"efficient-medsam2 cache repair {copy} -c CONFIG" in message


def test_damaged_statistics_are_named(copy):
    file = copy / "statistics.json"
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(CacheCorruptError, match=r"statistics.json has other bytes.*cache repair"):
        _ = CacheReader(copy).statistics
    file.unlink()
    with pytest.raises(CacheCorruptError, match=r"statistics.json is missing"):
        _ = CacheReader(copy).statistics


def test_no_cache_here(tmp_path):
    with pytest.raises(CacheMissingError, match=r"no cache here.*efficient-medsam2 precompute"):
        CacheReader(tmp_path)


def test_a_newer_schema_is_refused(copy):
    file = copy / "cache.json"
    record = json.loads(file.read_text())
    record.pop("sha256")
    record["schema_version"] = SCHEMA_VERSION + 1
    record["sha256"] = sha256_of_bytes(canonical_json(record))
    file.write_text(json.dumps(record))
    with pytest.raises(CacheStaleError, match=r"schema_version is 3.*reads up to 2.*pip install"):
        CacheReader(copy)


def test_a_foreign_ledger_entry_is_refused(copy, tmp_path):
    other = make_cache(tmp_path / "other.cache", data_sha256="e" * 64).path
    shutil.copy(other / "ledger" / "slices-000002.json", copy / "ledger")
    with pytest.raises(CacheStaleError, match=r"slices-000002.json: belongs to another cache"):
        CacheReader(copy)


def test_a_reader_travels_to_another_process(reader):
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.read("image", [2]), reader.read("image", [2]))


def test_describe(finished, copy):
    info = describe(finished)
    assert info.state == "complete"
    assert info.teacher.name == "tiny"
    assert info.rows == info.finished_rows == {"slices": 28, "prompts": 9, "tracks": 12}
    assert info.row_bytes["features_s4"] == 2 * 4 * 4 * 2
    assert info.cases == {"train": 1, "val": 1}
    (copy / "ledger" / "slices-000000.json").unlink()
    assert describe(copy).state == "unfinished"
    assert describe(copy).finished_rows["slices"] == 23
