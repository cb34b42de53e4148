"""Files that are either whole or absent, whenever the power goes.

A file counts once its name exists: bytes go to a temporary name in the same folder, are flushed
to the disk, and are renamed; then the folder is flushed, because a rename lives in the folder.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "TEMPORARY_SUFFIX",
    "canonical_json",
    "flush_file",
    "flush_folder",
    "sha256_of_bytes",
    "sha256_of_file",
    "write_durably",
    "write_pieces",
]

TEMPORARY_SUFFIX = ".tmp"
"""Files of this suffix are leftovers of a killed writer and are swept on resume."""

_BLOCK_BYTES = 1 << 20
_PIECES_AT_ONCE = 512  # the kernel takes 1024


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Give the one spelling of ``value`` that digests are made of: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def sha256_of_bytes(data: bytes) -> str:
    """Give the SHA-256 of ``data`` as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Give the SHA-256 of a file's bytes as hexadecimal text, reading in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def flush_file(path: Path) -> None:
    """Force a written file's bytes to the disk."""
    _flush(path, os.O_RDONLY)


def flush_folder(path: Path) -> None:
    """Force a folder's entries (creations and renames) to the disk."""
    _flush(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that no crash leaves half of it.

    Args:
        path: the file; its folder must exist. An older file of that name is replaced.
        data: the whole content.

    Raises:
        OSError: the disk is full, or the folder cannot be written. Nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_pieces(descriptor: int, pieces: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Write pieces of memory one after the other without copying them together.

    Args:
        descriptor: a file that is open for writing.
        pieces: contiguous bytes.

    Raises:
        OSError: the disk is full or failing.
    """
    for start in range(0, len(pieces), _PIECES_AT_ONCE):
        left: list[Any] = [piece for piece in pieces[start : start + _PIECES_AT_ONCE] if len(piece)]
        while left:
            written = os.writev(descriptor, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left and written:
                left[0] = left[0][written:]
