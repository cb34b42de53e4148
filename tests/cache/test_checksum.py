import importlib.util

import numpy as np
import pytest

from cache import checksum
from cache.checksum import crc32c, row_checksums


@pytest.mark.parametrize("name", ["crc32c-rs", "google-crc32c"])
def test_either_library_gives_crc32c(name, monkeypatch):
    find = importlib.util.find_spec
    if name == "google-crc32c":
        hidden = "crc32c_rs"
        monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == hidden else find(n))
    function, library = checksum._load()
    assert library == name
    assert function(b"123456789") == 0xE3069283  # the check value of CRC-32C (Castagnoli)
    for size in (0, 1, 63, 64, 4097, 100_003):
        data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
        assert function(data) == crc32c(data)
        assert function(data[size // 3 :], function(data[: size // 3])) == function(data)


def test_checksums_of_rows_are_those_of_their_bytes():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert row_checksums(values).tolist() == [crc32c(row.tobytes()) for row in values]
