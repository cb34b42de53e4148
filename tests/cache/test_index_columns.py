import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cache.index_columns
import cache.ledger
import cache.ledger_seal
from cache import CacheReader
from cache.index_columns import IndexColumns
from cache.ledger_seal import SealedEntries, seal_path
from tests.cache.example import SPACES, make_index


@pytest.fixture(params=[1, 3, 1 << 16])
def pieces(request, monkeypatch):
    """Rows that are read at a time."""
    monkeypatch.setattr(cache.index_columns, "_ROWS_AT_ONCE", request.param)
    monkeypatch.setattr(cache.ledger_seal, "_ROWS_AT_ONCE", request.param)


def test_an_index_is_the_same_however_many_rows_are_read_at_a_time(finished, pieces):
    assert CacheReader(finished).index.content_sha256 == make_index().content_sha256


def test_matrices_have_codes_in_order_of_first_appearance(tmp_path, pieces):
    rows = np.array([[2.0] * 6, [1.0] * 6, [2.0] * 6, [0.5] * 6, [1.0] * 6])
    column = pa.FixedSizeListArray.from_arrays(rows.reshape(-1), 6)
    pq.write_table(pa.table({"affine": column}), tmp_path / "t.parquet", row_group_size=2)
    with IndexColumns(tmp_path / "t.parquet") as columns:
        codes, matrices = columns.affines("affine")
    assert codes.tolist() == [0, 1, 0, 2, 1]
    assert matrices[:, 0].tolist() == [2.0, 1.0, 0.5]
    assert np.array_equal(matrices[codes], rows)


def test_unknown_words_and_missing_columns_are_named(tmp_path, pieces):
    pq.write_table(pa.table({"case_id": ["a", "b", "a", "c"]}), tmp_path / "t.parquet")
    with IndexColumns(tmp_path / "t.parquet") as columns:
        assert columns.codes("case_id", pa.array(["c", "b", "a"]), np.int32).tolist() == [
            2,
            1,
            2,
            0,
        ]
        with pytest.raises(KeyError, match="'c' is not known"):
            columns.codes("case_id", pa.array(["a", "b"]), np.int32)
        with pytest.raises(KeyError, match="view is missing"):
            columns.numbers("view", np.int16)


def test_a_sealed_ledger_is_the_same_however_many_rows_are_read_at_a_time(finished, pieces):
    reader = CacheReader(finished)
    with pq.ParquetFile(seal_path(finished)) as opened:
        sealed = SealedEntries(opened, reader._header)
    written = cache.ledger.load_ledger(finished, reader._header)
    assert list(sealed) == sorted(written.entries)
    assert sealed.without_row_checksums() == 0
    for key, entry in written.entries.items():
        for name, file in entry.arrays.items():
            found = sealed.shard_file(*key, name)
            assert (found.file, found.bytes, found.sha256) == (file.file, file.bytes, file.sha256)
            assert found.row_crc32c.tolist() == file.row_crc32c.tolist()
    assert sealed.shard_file("slices", 99, "image") is None
    assert {space for space, _ in sealed} == set(SPACES)
