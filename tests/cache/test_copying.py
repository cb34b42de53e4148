"""A copy over an earlier copy, some of it changed since, is the cache that was copied."""

import numpy as np
import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from cache import CacheReader, CacheStaleError, CacheWriter, verify
from cache.copying import download_cache, upload_cache
from cache.side_files import record_side_files
from tests.cache import example


def make(path, *, other=None, text="{}"):
    """The example's cache; the values of one shard as a machine of another kind makes them."""
    with CacheWriter.create_or_resume(path, example.make_spec(), example.make_index()) as writer:
        (path / "splits.json").write_text(text)
        record_side_files(path, ["splits.json"])
        if other is not None:
            values = example.shard_values(writer, "slices", other)
            flipped = {name: np.flip(rows, axis=-1).copy() for name, rows in values.items()}
            writer.write_shard("slices", other, flipped)
        example.fill(writer)
    return path


@pytest.mark.parametrize("changes", [{"other": 1}, {"text": "{ }"}])
def test_a_copy_over_an_earlier_one_is_whole(tmp_path, bucket, changes):
    first, second = make(tmp_path / "first"), make(tmp_path / "second", **changes)
    expected = example.content_of(second)
    assert upload_cache(first, bucket()) == 11
    download_cache(bucket(), tmp_path / "copy")
    shards = int("other" in changes)
    assert upload_cache(second, bucket()) == shards
    assert {name: bucket().read(name)[0] for name in bucket().list()} == expected
    assert download_cache(bucket(), tmp_path / "copy") == shards
    assert example.content_of(tmp_path / "copy") == expected
    assert CacheReader(tmp_path / "copy").digest() == CacheReader(second).digest()


@pytest.mark.parametrize("changes", [{"other": 1}, {"text": "{ }"}])
@pytest.mark.parametrize("killed_at", range(4))
def test_a_copy_that_is_killed_claims_nothing_that_is_not_so(
    tmp_path, bucket, killed_upload, changes, killed_at
):
    upload_cache(make(tmp_path / "first"), bucket())
    second = make(tmp_path / "second", **changes)
    remote = bucket()
    with killed_upload(remote, killed_at):
        upload_cache(second, remote)
    names = bucket().list()
    assert "complete.json" not in names
    assert ("ledger/slices-000001.json" in names) == ("other" not in changes)
    upload_cache(second, bucket())
    download_cache(bucket(), tmp_path / "copy")
    assert verify(tmp_path / "copy").ok
    assert example.content_of(tmp_path / "copy") == example.content_of(second)


def test_rows_whose_header_is_lost_are_not_taken_for_those_of_another_cache(tmp_path, bucket):
    remote = bucket()
    upload_cache(make(tmp_path / "first"), remote)
    remote.delete("cache.json")
    before = {name: remote.read(name)[0] for name in remote.list()}
    example.make_cache(tmp_path / "another", data_sha256="e" * 64)
    with pytest.raises(CacheStaleError, match=r"s3://bucket/.*holds another cache"):
        upload_cache(tmp_path / "another", bucket())
    assert {name: remote.read(name)[0] for name in remote.list()} == before
    assert upload_cache(tmp_path / "first", bucket()) == 0
    assert {name: remote.read(name)[0] for name in remote.list()} == example.content_of(
        tmp_path / "first"
    )
