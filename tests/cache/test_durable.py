import resource

import pytest

from cache.durable import canonical_json, sha256_of_bytes, sha256_of_file, write_durably


def test_write_replaces_the_whole_file(tmp_path):
    file = tmp_path / "a.json"
    write_durably(file, b"old and longer")
    write_durably(file, b"new")
    assert file.read_bytes() == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]
    assert sha256_of_file(file) == sha256_of_bytes(b"new")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    write_durably(file, b"old")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_durably(file, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert file.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_canonical_json_does_not_depend_on_order():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == b'{"a":[1.5,null],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
