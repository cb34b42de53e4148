"""Which of a file's pages the kernel keeps in memory, and how to drop them."""

import ctypes
import mmap
import os
from pathlib import Path

__all__ = ["drop", "resident_share", "warm"]

_BLOCK = 1 << 22


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size]


def drop(folder: Path) -> None:
    """Write what is not on the disk yet and drop all pages of a folder's files."""
    for file in _files(folder):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm(folder: Path) -> None:
    """Read all files of a folder once."""
    for file in _files(folder):
        with file.open("rb") as opened:
            while opened.read(_BLOCK):
                pass


def resident_share(folder: Path) -> float:
    """Give the share of the pages of a folder's files that are in memory, 0 to 1 (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = total = 0
    for file in _files(folder):
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        pages = -(-len(mapped) // mmap.PAGESIZE)
        states = (ctypes.c_ubyte * pages)()
        first = ctypes.c_char.from_buffer(mapped)
        failed = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), states
        )
        del first
        mapped.close()
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore failed for {file}")
        there += sum(state & 1 for state in bytes(states))
        total += pages
    return there / total if total else 0.0
