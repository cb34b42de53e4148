"""The header of a cache on an object store is lost or damaged, and no row with it."""

import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from cache import CacheCorruptError, CacheReader, CacheStaleError, CacheWriter
from cache.mirror import Mirror
from tests.cache import example

BOUND = 12_000  # a shard of slices takes 7 740 bytes, the whole cache 57 kB


def opened(folder, remote, *, replace=False, **changes):
    mirror = Mirror(folder, remote, max_bytes=BOUND)
    writer = CacheWriter.create_or_resume
    spec = example.make_spec(**changes)
    return mirror, lambda: writer(
        mirror.path, spec, example.make_index(), mirror=mirror, replace=replace
    )


def content_of(remote):
    return {name: remote.read(name)[0] for name in remote.list()}


@pytest.fixture
def stored(tmp_path, bucket):
    """A store with a cache, its last shard and its end unwritten, and what it has."""
    mirror, start = opened(tmp_path / "mirror", bucket())
    with mirror, start() as writer:
        last = writer.missing_shards("tracks")[-1]
        for space in example.SPACES:
            for k in writer.missing_shards(space):
                if (space, k) != ("tracks", last):
                    writer.write_shard(space, k, example.shard_values(writer, space, k))
    return bucket(), last


@pytest.mark.parametrize("folder", ["mirror", "another"])
@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_no_row_is_lost_with_the_header(tmp_path, stored, damage, folder):
    remote, last = stored
    whole = content_of(remote)
    if damage == "gone":
        remote.delete("cache.json")
    else:
        remote.put("cache.json", whole["cache.json"][:-9])
    mirror, start = opened(tmp_path / folder, remote)
    with mirror:
        mirror.sync()
        with pytest.raises(
            CacheCorruptError, match=r"s3://bucket/.*cache\.json.*keeping all rows: .*repair s3://"
        ):
            CacheReader(mirror.path, mirror=mirror)
        with start() as writer:
            assert {space: writer.missing_shards(space) for space in example.SPACES} == {
                "slices": (),
                "prompts": (),
                "tracks": (last,),
            }
            assert not [line for line in writer.discarded if "again" in line]
            assert {name: remote.read(name)[0] for name in whole} == whole
            digest = example.fill(writer)
    assert digest == example.make_cache(tmp_path / "local").digest()
    assert content_of(remote) == example.content_of(tmp_path / "local")


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("folder", ["mirror", "another"])
def test_rows_of_other_settings_are_refused_and_left_alone(tmp_path, stored, folder, replace):
    remote, _ = stored
    remote.delete("cache.json")
    before = content_of(remote)
    mirror, start = opened(tmp_path / folder, remote, replace=replace, data_sha256="e" * 64)
    with (
        mirror,
        pytest.raises(
            CacheStaleError,
            match=r"^s3://bucket/\S+ holds a cache that lost its cache\.json.*"
            r"cache repair s3://bucket/\S+ -c CONFIG; or use another folder",
        ),
    ):
        start()
    assert content_of(remote) == before


def test_a_cache_without_its_header_can_be_replaced_by_its_own_settings(tmp_path, stored):
    remote, _ = stored
    remote.delete("cache.json")
    mirror, start = opened(tmp_path / "another", remote, replace=True)
    with mirror, start() as writer:
        assert len(writer.missing_shards("slices")) == 6
        assert not remote.list("ledger")
        assert not remote.list("arrays/image/c")
