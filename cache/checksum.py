"""crc32c (Castagnoli), which Zarr, the ledger and every read are checked by.

Two libraries give the same numbers, and which is faster depends on the processor: ``crc32c_rs``
uses carry-less multiplication beside the processor's own instruction, ``google_crc32c`` the
instruction alone. Both are tried when this module is imported, for a tenth of a millisecond.
"""

import importlib
import importlib.util
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["CRC_BYTES", "crc32c", "crc32c_library", "row_checksums"]

CRC_BYTES = 4

_TRIAL_BYTES = 1 << 17
_TRIALS = 3


class Crc32c(Protocol):
    """What either library gives."""

    def __call__(self, data: Any, previous: int = 0, /) -> int: ...  # noqa: ANN401


def _installed() -> dict[str, Crc32c]:
    extend = importlib.import_module("google_crc32c").extend
    found: dict[str, Crc32c] = {"google-crc32c": lambda data, previous=0: extend(previous, data)}
    if importlib.util.find_spec("crc32c_rs") is not None:
        found["crc32c-rs"] = importlib.import_module("crc32c_rs").crc32c
    return found


def _fastest(libraries: Mapping[str, Crc32c]) -> str:
    """Give the name of the library that takes the shortest time here."""
    data = np.arange(_TRIAL_BYTES, dtype=np.uint8)
    best: dict[str, float] = {}
    for name, function in libraries.items():
        for _ in range(_TRIALS):
            started = time.perf_counter()
            function(data)
            seconds = time.perf_counter() - started
            best[name] = min(seconds, best.get(name, seconds))
    return min(best, key=best.__getitem__)


_libraries = _installed()
crc32c_library = _fastest(_libraries)
crc32c = _libraries[crc32c_library]
"""The crc32c of contiguous bytes (an array of uint8, or ``bytes``), and whose function that is; a
second argument is the crc32c of what comes before them."""


def row_checksums(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint32]:
    """Give the crc32c of each row's bytes, uint32 (rows,)."""
    plain = np.ascontiguousarray(values)
    flat = plain.reshape(len(plain), -1).view(np.uint8)
    return np.array([crc32c(row) for row in flat], dtype=np.uint32)
