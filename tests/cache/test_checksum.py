import numpy as np
import pytest

from cache import checksum
from cache.checksum import crc32c, row_checksums

LIBRARIES = checksum._installed()


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_gives_crc32c(name):
    function = LIBRARIES[name]
    assert function(b"123456789") == 0xE3069283  # the check value of CRC-32C (Castagnoli)
    for size in (0, 1, 63, 64, 4097, 100_003):
        data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
        assert function(data) == LIBRARIES["google-crc32c"](data)
        assert function(data[size // 3 :], function(data[: size // 3])) == function(data)


def test_the_fastest_library_is_taken():
    def slow(data, previous=0, /):
        return sum(range(50_000))

    assert checksum._fastest({"slow": slow, "fast": lambda data, previous=0: 0}) == "fast"
    assert checksum.crc32c_library in LIBRARIES


def test_checksums_of_rows_are_those_of_their_bytes():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert row_checksums(values).tolist() == [crc32c(row.tobytes()) for row in values]
