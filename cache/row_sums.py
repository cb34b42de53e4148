"""What reading rows gives beside their values: the checksums by which they are judged."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from cache.errors import CacheCorruptError
from cache.open_shards import OpenShard
from cache.schema import ArraySpec
from cache.store import ArrayStore

__all__ = ["NO_WAIT", "UNKNOWN", "Outs", "RowRead", "RowSums", "announce", "unreadable"]

Outs = Sequence[tuple[ArraySpec, npt.NDArray[Any]]]
"""Arrays, and memory for the same rows of each."""

NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
"""The flag of a call that gives only what is in memory; 0 where the system has none."""

UNKNOWN = -1
"""In place of a checksum that nobody recorded."""


@dataclass(frozen=True, slots=True)
class RowSums:
    """Checksums of all rows of all arrays that were read.

    Attributes:
        found: the crc32c of what was read.
        recorded: what the ledger or the file's index says, or ``UNKNOWN``.
        stored: what lies beside the row in its file; where nothing does, what was found.
        where: gives the open shard of each, and the row's slot in it.
    """

    found: list[int]
    recorded: list[int]
    stored: list[int]
    where: Callable[[], Iterable[tuple[OpenShard, int]]]


class RowRead(Protocol):
    """A way to read rows."""

    def read(self, rows: Sequence[int], outs: Outs) -> RowSums | None:
        """Read rows, at least one, of several arrays of one row space.

        Returns:
            The checksums where one does not fit; ``None``: all do.

        Raises:
            CacheMissingError: a row was never written.
            CacheCorruptError: a file is missing, cut off, or cannot be read.
        """


def announce(reads: Iterable[tuple[OpenShard, int, int]]) -> None:
    """Let the kernel fetch all that is going to be read, so that the disk is never idle.

    Args:
        reads: file, offset and bytes.
    """
    if hasattr(os, "posix_fadvise"):
        for opened, offset, size in reads:
            os.posix_fadvise(opened.descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def unreadable(store: ArrayStore, opened: OpenShard, reason: OSError | None) -> CacheCorruptError:
    """Make the error of a file that gives no more bytes; without a reason: that has no more."""
    problem = "the file ends too early" if reason is None else str(reason)
    return store.damage(opened.array, opened.shard, problem)
