"""Memory that rows are read into, where in a page it should begin.

Processors of AMD's Zen 3 and 4 kind copy up to five times slower where the place to write lies in
its page a few bytes behind the place that is read in its own (``rep movsb``, which kernels copy
with; glibc's bug 30994), and memory of the usual allocators begins 16 bytes behind a page's start,
where rows in files begin. A quarter of a page away from both layouts of ours nothing meets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PLACE_BYTES", "place_in_page", "placed_zeros"]

_PAGE = 4096
_OFFSET = 1024  # rows begin at 0 to 252 (Zarr) or 2048 (HDF5)
PLACE_BYTES = _PAGE
"""Bytes to allocate on top, so that the place can be chosen."""


def place_in_page(address: int) -> int:
    """Give how many bytes behind ``address`` rows should begin, 0 to ``PLACE_BYTES`` - 1."""
    return (_OFFSET - address) % _PAGE


def placed_zeros(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Give an array of zeros in memory that ``CacheReader.read_into`` fills fastest.

    Args:
        shape: of a batch of rows.
        dtype: as they are stored.
    """
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    memory = np.zeros(size + PLACE_BYTES, dtype=np.uint8)
    start = place_in_page(memory.ctypes.data)
    return memory[start : start + size].view(kind).reshape(shape)
