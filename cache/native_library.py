"""The built library that reads rows and makes their checksums, where there is one.

It is built from ``row_reads.c`` when the package is installed on a machine that has a C compiler.
"""

import ctypes
from array import array
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NativeLibrary", "native_library"]

_VERSION = 3
_WAYS = {1: "crc32 instruction", 2: "crc32 instruction beside carry-less multiplication"}


class NativeLibrary:
    """The built library.

    Args:
        file: where it lies.

    Raises:
        OSError: it cannot be loaded, is of another version, or this processor lacks an
            instruction.

    Attributes:
        way: how checksums are made; ``name`` says it in words.
    """

    def __init__(self, file: Path) -> None:
        library = ctypes.CDLL(str(file))
        library.row_reads_version.restype = ctypes.c_int
        if library.row_reads_version() != _VERSION:
            raise OSError(f"{file} is of another version: install the package again")
        self.way: int = library.row_reads_fastest_way()
        if self.way not in _WAYS:
            raise OSError("this processor has no crc32 instruction")
        self._read: Any = library.row_reads_read
        self._read.restype = ctypes.c_size_t
        self._read.argtypes = (
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t),
            *(ctypes.c_int, ctypes.c_int),
        )
        self._crc32c: Any = library.row_reads_crc32c
        self._crc32c.restype = ctypes.c_uint32
        self._crc32c.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_int)

    @property
    def name(self) -> str:
        """What makes the checksums."""
        return _WAYS[self.way]

    def crc32c(self, data: npt.NDArray[np.uint8], previous: int = 0) -> int:
        """Give the crc32c of contiguous bytes; ``previous`` is that of what comes before them."""
        return int(self._crc32c(data.ctypes.data, data.nbytes, previous, self.way))

    def read(self, numbers: "array[int]", rows: int, arrays: int, done: int, *, wait: bool) -> int:
        """Read the same rows of several arrays in their order, until one cannot be read.

        Args:
            numbers: 64-bit, as ``row_reads.c`` has a batch. Its end is filled: 2 x rows x arrays
                uint32, the checksums found and those beside the rows; and one number, the
                ``errno`` of the row that could not be read (0: its file ends too early), or, where
                all were, whether a checksum does not fit.
            rows: of an array.
            arrays: how many.
            done: rows that are there already, counted through the arrays.
            wait: for the disk; else a row that is not in memory ends the reading.

        Returns:
            Rows that are there now.
        """
        address, _ = numbers.buffer_info()
        there: int = self._read(address, rows, arrays, done, wait, self.way)
        return there


@lru_cache(maxsize=1)
def native_library() -> NativeLibrary | None:
    """Give the library that lies beside this module, or ``None`` where none works here."""
    for suffix in EXTENSION_SUFFIXES:
        file = Path(__file__).with_name(f"_row_reads{suffix}")
        if file.is_file():
            try:
                return NativeLibrary(file)
            except (OSError, AttributeError):
                return None
    return None
