"""What users call a cache."""

import pytest

from cache.address import keep_address, place_of
from cache.mending import precompute_command, repair_command


@pytest.fixture
def mirrored(tmp_path):
    """The folder of a mirror that looks like the cache."""
    (tmp_path / "m" / "state").mkdir(parents=True)
    (tmp_path / "m" / "cache" / "index").mkdir(parents=True)
    keep_address(tmp_path / "m", "s3://bucket/ct.cache")
    return tmp_path / "m" / "cache"


def test_a_folder_is_called_by_its_path_and_a_mirror_by_its_address(mirrored, tmp_path):
    assert place_of(mirrored) == "s3://bucket/ct.cache"
    assert place_of(mirrored / "index" / "a.parquet") == "s3://bucket/ct.cache/index/a.parquet"
    assert place_of(tmp_path / "cache" / "index") == str(tmp_path / "cache" / "index")
    assert place_of("gs://bucket/x") == "gs://bucket/x"
    keep_address(tmp_path / "m", "gs://bucket/other")
    assert place_of(mirrored) == "gs://bucket/other"


def test_commands_name_the_address(mirrored):
    for place in (mirrored, "s3://bucket/ct.cache"):
        assert repair_command(place).endswith("cache repair s3://bucket/ct.cache -c CONFIG")
        assert precompute_command(place).endswith("--set cache.path=s3://bucket/ct.cache")
