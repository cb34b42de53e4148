"""crc32c (Castagnoli), which Zarr, the ledger and every read are checked by.

Two libraries give the same numbers. ``crc32c_rs`` uses carry-less multiplication beside the
processor's own instruction, and lets other threads run meanwhile; ``google_crc32c`` uses the
instruction alone and is everywhere where Zarr is. The first is taken where it is installed.
"""

import importlib
import importlib.util
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["CRC_BYTES", "crc32c", "crc32c_library", "row_checksums"]

CRC_BYTES = 4


class Crc32c(Protocol):
    """What either library gives."""

    def __call__(self, data: Any, previous: int = 0, /) -> int: ...  # noqa: ANN401


def _load() -> tuple[Crc32c, str]:
    if importlib.util.find_spec("crc32c_rs") is not None:
        return importlib.import_module("crc32c_rs").crc32c, "crc32c-rs"
    extend = importlib.import_module("google_crc32c").extend
    return lambda data, previous=0: extend(previous, data), "google-crc32c"


crc32c, crc32c_library = _load()
"""The crc32c of contiguous bytes (an array of uint8, or ``bytes``), and whose function that is; a
second argument is the crc32c of what comes before them."""


def row_checksums(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint32]:
    """Give the crc32c of each row's bytes, uint32 (rows,)."""
    plain = np.ascontiguousarray(values)
    flat = plain.reshape(len(plain), -1).view(np.uint8)
    return np.array([crc32c(row) for row in flat], dtype=np.uint32)
