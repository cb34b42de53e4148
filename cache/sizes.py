"""How much room a cache needs, before anything is written."""

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cache.errors import CacheSpaceError
from cache.schema import ArraySpec, CacheSpec, RowSpace

__all__ = [
    "NO_END",
    "check_room",
    "fits",
    "free_bytes",
    "required_bytes",
    "shard_bytes",
    "space_errors",
]

_RESERVE_BYTES = 1 << 20  # ledger entries, folders, rounding to blocks
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def required_bytes(spec: CacheSpec, counts: Mapping[RowSpace, int]) -> dict[str, int]:
    """Give the exact bytes of each array's shard files, and their sum as ``total``.

    What is not a row comes on top: ``cache.overhead``.

    Args:
        spec: the planned cache.
        counts: planned rows of each row space.
    """
    sizes = {array.name: _array_bytes(spec, array, counts[array.rows]) for array in spec.arrays}
    return {**sizes, "total": sum(sizes.values())}


def _array_bytes(spec: CacheSpec, array: ArraySpec, rows: int) -> int:
    return sum(
        spec.shard_file_bytes(array, len(spec.shard_rows(shard, rows)))
        for shard in range(spec.shard_count(rows))
    )


def shard_bytes(spec: CacheSpec, counts: Mapping[RowSpace, int], space: RowSpace, k: int) -> int:
    """Give the exact bytes of one shard over all arrays of its space."""
    rows = len(spec.shard_rows(k, counts[space]))
    return sum(spec.shard_file_bytes(array, rows) for array in spec.arrays_of(space))


def check_room(path: Path, needed: int) -> None:
    """Refuse to start writing ``needed`` bytes where they do not fit.

    Raises:
        CacheSpaceError: the file system of ``path`` has less room.
    """
    free = free_bytes(path)
    if not fits(needed, free):
        wanted = f"{needed:,} bytes and {_RESERVE_BYTES:,} in reserve"
        raise _no_room(path, wanted, free, "not enough free disk")


@contextmanager
def space_errors(path: Path, needed: int) -> Iterator[None]:
    """Turn "disk full", "quota exceeded" and "file too large" into a ``CacheSpaceError``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        reason = error.strerror or "no space left"
        raise _no_room(path, f"{needed:,} bytes", free_bytes(path), reason) from error


NO_END = 1 << 62
"""Free bytes of an object store, which tells no end of its room."""


def fits(needed: int, free: int) -> bool:
    """Whether ``needed`` bytes can be written where ``free`` are left, with a small reserve."""
    return needed + _RESERVE_BYTES <= free


def free_bytes(path: Path) -> int:
    """Give the free bytes of the disk on which ``path`` lies or would lie."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _no_room(path: Path, needed: str, free: int, reason: str) -> CacheSpaceError:
    # Whatever was writing goes on: precompute, convert, copy, the mirror of a training.
    return CacheSpaceError(
        f"{path}: {reason}: {needed} needed, {free:,} free. Finished shards are kept. Make room "
        "there, then type the same command again: it goes on"
    )
