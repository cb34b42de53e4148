"""What every store must do; a new one subclasses ``StoreContract`` and gives itself."""

import h5py
import numpy as np
import pytest
import zarr

from cache import ArraySpec, CacheCorruptError
from cache.hdf5_store import DATASET_NAME, Hdf5Store
from cache.store import ArrayStore
from cache.zarr_store import ZarrStore
from tests.cache.example import make_spec

FEATURES = ArraySpec(name="features", rows="slices", shape=(3, 4, 4), dtype="float16")
LONG = ArraySpec(name="long", rows="slices", shape=(4157,), dtype="uint8")  # 67 bytes between
SCORE = ArraySpec(name="score", rows="tracks", shape=(1,), dtype="float32")
NOTHING = ArraySpec(name="nothing", rows="prompts", shape=(2, 2), dtype="uint8")
COUNTS = {"slices": 12, "prompts": 0, "tracks": 4}


def values_of(array, rows):
    return (
        np.random.default_rng(len(rows))
        .uniform(0, 250, (len(rows), *array.shape))
        .astype(array.dtype)
    )


class StoreContract:
    format = "zarr"

    def make(self, path) -> ArrayStore:
        raise NotImplementedError

    @pytest.fixture
    def spec(self):
        return make_spec(arrays=(FEATURES, LONG, SCORE, NOTHING), format=self.format)

    @pytest.fixture
    def store(self, tmp_path, spec):
        store = self.make(tmp_path, spec)
        store.prepare()
        return store

    def test_a_prepared_store_has_no_problem_and_no_shard(self, store):
        for array in (FEATURES, LONG, SCORE, NOTHING):
            assert store.problem(array) is None
            assert store.stored_shards(array) == ()

    def test_an_unprepared_store_says_so(self, tmp_path, spec):
        assert "cannot be opened" in self.make(tmp_path, spec).problem(FEATURES)

    def test_rows_come_back_in_any_order(self, store, tmp_path):
        last = values_of(FEATURES, range(10, 12))
        store.write_shard(FEATURES, 2, last)
        full = values_of(FEATURES, range(5))
        store.write_shard(FEATURES, 0, full)
        rows = np.array([4, 0, 1, 4, 3])
        np.testing.assert_array_equal(store.read_rows(FEATURES, 0, rows), full[rows])
        np.testing.assert_array_equal(store.read_rows(FEATURES, 2, np.array([11])), last[1:])
        assert store.stored_shards(FEATURES) == (0, 2)

    def test_a_second_store_reads_what_the_first_wrote(self, store, spec, tmp_path):
        values = values_of(SCORE, range(4))
        store.write_shard(SCORE, 0, values)
        again = self.make(tmp_path, spec)
        np.testing.assert_array_equal(again.read_rows(SCORE, 0, np.arange(4)), values)

    @pytest.mark.parametrize("array", [FEATURES, LONG, SCORE], ids=lambda array: array.name)
    def test_the_file_has_the_announced_size(self, store, spec, tmp_path, array):
        for rows in (range(5), range(10, 12)):
            shard, count = rows.start // 5, COUNTS[array.rows]
            rows = spec.shard_rows(shard, count)
            if rows:
                store.write_shard(array, shard, values_of(array, rows))
                size = (tmp_path / store.shard_file(array, shard)).stat().st_size
                assert size == spec.shard_file_bytes(array, len(rows))

    def test_zeros_are_stored(self, store, tmp_path, spec):
        store.write_shard(FEATURES, 0, np.zeros((5, 3, 4, 4), dtype=np.float16))
        size = (tmp_path / store.shard_file(FEATURES, 0)).stat().st_size
        assert size == spec.shard_file_bytes(FEATURES, 5)

    def test_the_same_values_make_the_same_bytes(self, store, spec, tmp_path):
        other = self.make(tmp_path / "other", spec)
        (tmp_path / "other").mkdir()
        other.prepare()
        for one in (store, other):
            one.write_shard(FEATURES, 0, values_of(FEATURES, range(5)))
        name = store.shard_file(FEATURES, 0)
        assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()

    @pytest.mark.parametrize("place", [1, -1])
    def test_damage_is_an_error_that_names_array_shard_and_file(self, store, tmp_path, place):
        store.write_shard(FEATURES, 0, values_of(FEATURES, range(5)))
        file = tmp_path / store.shard_file(FEATURES, 0)
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(CacheCorruptError, match=rf"{file}: rows of features, shard 0"):
            store.read_rows(FEATURES, 0, np.arange(5))

    def test_removed_shards_are_gone(self, store, tmp_path):
        store.write_shard(FEATURES, 0, values_of(FEATURES, range(5)))
        store.remove_shard(FEATURES, 0)
        store.remove_shard(FEATURES, 1)
        assert store.stored_shards(FEATURES) == ()
        assert not (tmp_path / store.shard_file(FEATURES, 0)).exists()

    def test_preparing_again_keeps_the_shards(self, store, spec, tmp_path):
        values = values_of(FEATURES, range(5))
        store.write_shard(FEATURES, 0, values)
        again = self.make(tmp_path, spec)
        again.prepare()
        np.testing.assert_array_equal(again.read_rows(FEATURES, 0, np.arange(5)), values)

    def test_the_formats_own_library_reads_the_same(self, store):
        values = values_of(FEATURES, range(5))
        store.write_shard(FEATURES, 0, values)
        rows = np.array([4, 1, 1, 2])
        np.testing.assert_array_equal(store.read_rows_plainly(FEATURES, 0, rows), values[rows])

    def test_a_shard_is_whole_or_absent_while_it_is_written(self, store, tmp_path, monkeypatch):
        def fail(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(f"{type(store).__module__}.write_pieces", fail)
        with pytest.raises(OSError, match="No space"):
            store.write_shard(FEATURES, 0, values_of(FEATURES, range(5)))
        assert not (tmp_path / store.shard_file(FEATURES, 0)).exists()
        store.remove_shard(FEATURES, 0)
        assert store.stored_shards(FEATURES) == ()

    def test_leftovers_go_and_the_shard_stays(self, store, tmp_path):
        store.write_shard(FEATURES, 0, values_of(FEATURES, range(5)))
        file = tmp_path / store.shard_file(FEATURES, 0)
        left = file.with_name(f"{file.name}.77.partial")
        left.write_bytes(b"half")
        assert store.remove_leftovers(FEATURES, 0) == (left.relative_to(tmp_path).as_posix(),)
        assert store.stored_shards(FEATURES) == (0,)
        assert not left.exists()


class TestZarrStore(StoreContract):
    def make(self, path, spec):
        return ZarrStore(path, spec, COUNTS)

    def test_the_bytes_are_those_that_zarr_writes(self, store, tmp_path):
        values = values_of(FEATURES, range(10, 12))
        store.write_shard(FEATURES, 2, values)
        ours = (tmp_path / store.shard_file(FEATURES, 2)).read_bytes()
        opened = zarr.open_array(tmp_path / "arrays/features", mode="r+")
        opened.with_config({"write_empty_chunks": True})[10:12] = values
        assert (tmp_path / store.shard_file(FEATURES, 2)).read_bytes() == ours

    def test_long_rows_start_at_a_multiple_of_64_bytes_and_zarr_reads_them(self, store, tmp_path):
        values = values_of(LONG, range(5))
        store.write_shard(LONG, 0, values)
        content = (tmp_path / store.shard_file(LONG, 0)).read_bytes()
        for row, value in enumerate(values):
            start = -(-(LONG.row_bytes + 4) // 64) * 64 * row
            assert content[start : start + LONG.row_bytes] == value.tobytes()
        np.testing.assert_array_equal(
            zarr.open_array(tmp_path / "arrays/long", mode="r")[:5], values
        )

    @pytest.mark.parametrize("rows", [[4, 0, 1, 2, 4], [3], [0, 1, 2, 3, 4]], ids=str)
    def test_long_rows_that_lie_close_together_are_read(self, store, tmp_path, rows):
        # As zarr writes them, and as versions of ours did.
        values = values_of(LONG, range(5))
        zarr.open_array(tmp_path / "arrays/long", mode="r+")[:5] = values
        size = (tmp_path / store.shard_file(LONG, 0)).stat().st_size
        assert size == 5 * (LONG.row_bytes + 4) + 16 * 5 + 4
        np.testing.assert_array_equal(store.read_rows(LONG, 0, np.array(rows)), values[rows])


class TestHdf5Store(StoreContract):
    format = "hdf5"

    def make(self, path, spec):
        return Hdf5Store(path, spec, COUNTS)

    @pytest.mark.parametrize("array", [FEATURES, SCORE], ids=["features", "score"])
    def test_any_hdf5_reader_opens_a_shard(self, store, tmp_path, array):
        values = values_of(array, store._rows(array, 0))
        store.write_shard(array, 0, values)
        with h5py.File(tmp_path / store.shard_file(array, 0), "r") as opened:
            dataset = opened[DATASET_NAME]
            assert dataset.chunks == (1, *array.shape)
            assert dataset.compression is None
            assert dataset.dtype == array.dtype
            np.testing.assert_array_equal(dataset[:], values)
