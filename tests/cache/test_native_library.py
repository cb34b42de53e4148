import ctypes

import numpy as np
import pytest

from cache import native_library as module
from cache.checksum import crc32c
from cache.native_library import NativeLibrary, native_library

LIBRARY = native_library()
pytestmark = pytest.mark.skipif(
    LIBRARY is None, reason="no library was built, or this processor lacks an instruction"
)


@pytest.fixture(params=[1, 2])
def library(request):
    if LIBRARY.way < request.param:
        pytest.skip("this processor cannot fold 256 bits at once")
    own = object.__new__(NativeLibrary)
    own.__dict__.update(vars(LIBRARY), way=request.param)
    return own


def test_checksums_are_those_of_the_other_libraries(library):
    assert library.crc32c(np.frombuffer(b"123456789", dtype=np.uint8)) == 0xE3069283
    data = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)
    # Rounds take 160 or 96 bytes: every length around them, from any byte on.
    for size in (*range(700), 4096, 4999):
        piece = data[size % 7 : size % 7 + size]
        assert library.crc32c(piece) == crc32c(piece), size
    for cut in (0, 1, 8, 159, 320, 2048, 4999):
        assert library.crc32c(data[cut:], library.crc32c(data[:cut])) == crc32c(data)


def test_sums_of_many_lengths_in_turn(library):
    # What is remembered of one length must not be taken for the next.
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, 1 << 21, dtype=np.uint8)
    for size in rng.integers(1, len(data), 60).tolist():
        assert library.crc32c(data[:size]) == crc32c(data[:size]), size


def test_a_library_of_another_version_or_kind_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_VERSION", module._VERSION + 1)
    native_library.cache_clear()
    try:
        assert native_library() is None
        monkeypatch.undo()
        native_library.cache_clear()
        monkeypatch.setattr(module, "__file__", str(tmp_path / "native_library.py"))
        assert native_library() is None
        (tmp_path / f"_row_reads{module.EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
        native_library.cache_clear()
        assert native_library() is None
        monkeypatch.setattr(ctypes, "CDLL", lambda name: ctypes.pythonapi)
        native_library.cache_clear()
        assert native_library() is None
    finally:
        monkeypatch.undo()
        native_library.cache_clear()
