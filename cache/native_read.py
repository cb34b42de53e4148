"""Rows from shard files by the built library, a whole batch in one call that holds no lock.

``row_reads.c`` says how. ``portable_read`` does the same where there is no library.
"""

import errno
import itertools
import os
from array import array
from collections.abc import Sequence

import numpy as np

from cache.native_library import NativeLibrary
from cache.open_shards import OpenShard, OpenShards
from cache.row_sums import NO_WAIT, UNKNOWN, Outs, RowSums, announce, unreadable
from cache.store import ArrayStore

__all__ = ["NativeRead"]

_PLACE = 4
"""Numbers that say where a row lies: descriptor, gap, offset, recorded checksum."""
_OFFSET, _RECORDED = 2, 3


class NativeRead:
    """Reads rows of one cache through the library. May be used from several threads.

    Args:
        library: the library.
        store: the store whose files are read.
        files: its open files.
        rows_per_shard: rows of a full shard.
    """

    def __init__(
        self, library: NativeLibrary, store: ArrayStore, files: OpenShards, *, rows_per_shard: int
    ) -> None:
        self._library = library
        self._store = store
        self._files = files
        self._rows_per_shard = rows_per_shard
        self._no_wait = bool(NO_WAIT)

    def read(self, rows: Sequence[int], outs: Outs) -> RowSums | None:
        """Read rows, at least one, of several arrays of one row space; see ``RowRead``."""
        numbers, opened, slots = self._plan(rows, outs)
        total = len(opened)
        if self._fill(numbers, opened, rows=len(rows), arrays=len(outs)):
            return None
        sums = np.frombuffer(numbers, dtype=np.uint32)[-2 - 2 * total : -2].tolist()
        return RowSums(
            sums[:total],
            numbers[_RECORDED : _PLACE * total : _PLACE].tolist(),
            sums[total:],
            lambda: zip(opened, itertools.cycle(slots), strict=False),
        )

    def _plan(
        self, rows: Sequence[int], outs: Outs
    ) -> tuple["array[int]", list[OpenShard], list[int]]:
        """Give what the library calls a batch, the file of each row of each array, and slots.

        Who keeps the files, keeps them open. A batch comes to cold processor caches, because the
        one before went through them; so there is one list of plain numbers, and nothing else.
        """
        size, known = self._rows_per_shard, self._files.known
        order = sorted(range(len(rows)), key=rows.__getitem__)
        where = [divmod(rows[place], size) for place in order]
        opened: list[OpenShard] = []
        numbers: list[int] = []
        memory: list[int] = []
        for spec, out in outs:
            name = spec.name
            memory += (out.ctypes.data, out.nbytes // len(rows))
            for shard, slot in where:
                file = known.get((name, shard)) or self._files.open(spec, shard, slot)
                opened.append(file)
                index, sums = file.index, file.checksums
                recorded = UNKNOWN if sums is None else sums[slot]
                numbers += (file.descriptor, index.gap, index.offsets[slot], recorded)
        numbers += memory
        numbers += order
        numbers += [0] * (len(opened) + 1)
        return array("q", numbers), opened, [slot for _, slot in where]

    def _fill(
        self, numbers: "array[int]", opened: Sequence[OpenShard], *, rows: int, arrays: int
    ) -> bool:
        """Read all; whether all checksums fit."""
        done, total = 0, len(opened)
        if self._no_wait:
            done = self._library.read(numbers, rows, arrays, 0, wait=False)
            if done == total:
                return not numbers[-1]
            if numbers[-1] == errno.EOPNOTSUPP:  # a file system that cannot tell what is in memory
                self._no_wait = False
        announce(
            (
                opened[row],
                numbers[_PLACE * row + _OFFSET],
                numbers[_PLACE * total + 2 * (row // rows) + 1],
            )
            for row in range(done, total)
        )
        done = self._library.read(numbers, rows, arrays, done, wait=True)
        if done < total:
            error = numbers[-1]
            reason = OSError(error, os.strerror(error)) if error else None
            raise unreadable(self._store, opened[done], reason)
        return not numbers[-1]
