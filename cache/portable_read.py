"""Rows from shard files by Python's own calls, where there is no built library.

``preadv`` scatters a row's values into their place and its stored checksum beside them; rows
that lie one after the other come in one call.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.checksum import CRC_BYTES, crc32c
from cache.open_shards import OpenShard, OpenShards
from cache.row_sums import NO_WAIT, UNKNOWN, Outs, RowSums, announce, unreadable
from cache.shard_index import LONGEST_GAP
from cache.store import ArrayStore

__all__ = ["PortableRead"]

_CALL_BYTES = 1 << 20  # what one call reads is still in a processor cache when it is summed
_CALL_ROWS = 256  # two pieces each; the kernel takes 1024 in one call

_Run = tuple[int, int, list[int]]
"""Shard, first slot, and places among the asked rows, of rows that follow each other."""

_Call = tuple[OpenShard, int, list[Any], Sequence[Any], int, int, bool]
"""One call to the kernel: file, slot of the first row, memory of each row's values, all memory
that is filled, offset, bytes, and whether more of the same row follows in the next call. A plain
tuple, because each costs its making; a batch has a hundred."""


class PortableRead:
    """Reads rows of one cache. May be used from several threads.

    Args:
        store: the store whose files are read.
        files: its open files.
        rows_per_shard: rows of a full shard.
    """

    def __init__(self, store: ArrayStore, files: OpenShards, *, rows_per_shard: int) -> None:
        self._store = store
        self._files = files
        self._rows_per_shard = rows_per_shard
        self._no_wait = NO_WAIT

    def read(self, rows: Sequence[int], outs: Outs) -> RowSums | None:
        """Read rows, at least one, of several arrays of one row space; see ``RowRead``."""
        runs = self._runs(rows)
        beside = np.empty((len(rows) * len(outs), LONGEST_GAP), dtype=np.uint8)
        found, recorded, trailing = self._execute(self._calls(outs, runs, beside))
        stored = beside.view("<u4")[:, 0].tolist() if trailing else found
        if found == recorded == stored:
            return None
        return RowSums(found, recorded, stored, lambda: _places_of(self._calls(outs, runs, beside)))

    def _runs(self, rows: Sequence[int]) -> list[_Run]:
        found: list[_Run] = []
        size, following = self._rows_per_shard, -1
        for place in sorted(range(len(rows)), key=rows.__getitem__):
            row = rows[place]
            shard, slot = divmod(row, size)
            if row == following and slot:
                found[-1][2].append(place)
            else:
                found.append((shard, slot, [place]))
            following = row + 1
        return found

    def _calls(
        self,
        outs: Outs,
        runs: Sequence[_Run],
        beside: npt.NDArray[np.uint8],
    ) -> Iterator[_Call]:
        """Give the calls that read everything, array by array, as they are needed.

        Args:
            outs: as in ``read``.
            runs: of the rows.
            beside: (rows of all arrays, LONGEST_GAP): what lies behind each row.
        """
        known, number = self._files.known, 0
        trailers = list(beside[:, :CRC_BYTES])
        for array, out in outs:
            name, payloads = array.name, list(out.reshape(len(out), -1).view(np.uint8))
            row_bytes = payloads[0].nbytes
            at_once = min(_CALL_ROWS, _CALL_BYTES // row_bytes)
            for shard, slot, places in runs:
                opened = known.get((name, shard)) or self._files.open(array, shard, slot)
                gap = opened.index.gap
                if at_once and len(places) == 1:
                    payload, offset = payloads[places[0]], opened.index.offsets[slot]
                    if not gap:
                        yield opened, slot, [payload], (payload,), offset, row_bytes, False
                    else:
                        pieces = (payload, trailers[number])
                        wanted = row_bytes + CRC_BYTES
                        yield opened, slot, [payload], pieces, offset, wanted, False
                else:
                    here = [payloads[place] for place in places]
                    ends = list(beside[number : number + len(places), :gap]) if gap else None
                    yield from (
                        _short_rows(opened, slot, here, ends, at_once)
                        if at_once
                        else _long_rows(opened, slot, here, ends)
                    )
                number += len(places)

    def _execute(self, calls: Iterator[_Call]) -> tuple[list[int], list[int], bool]:
        """Read everything; each row's checksum, the recorded one, whether one lies beside it."""
        found: list[int] = []
        recorded: list[int] = []
        rest: list[_Call] = []
        ready, value, trailing = bool(self._no_wait), 0, False
        for call in itertools.chain(calls, rest):
            opened, slot, payloads, pieces, offset, wanted, more = call
            got = 0
            if ready:
                try:
                    got = os.preadv(opened.descriptor, pieces, offset, NO_WAIT)
                except BlockingIOError:
                    pass
                except OSError:  # a file system that has no such flag; real errors come again
                    self._no_wait = 0
            if got < wanted:
                if ready:
                    ready = False
                    rest.extend(calls)
                    announce((call[0], call[4], call[5]) for call in (call, *rest))
                self._read_rest(call, got)
            value = crc32c(payloads[0], value)
            if more:
                continue
            found.append(value)
            value = 0
            sums, count = opened.checksums, len(payloads)
            if count > 1:
                found.extend(map(crc32c, payloads[1:]))
                recorded.extend([UNKNOWN] * count if sums is None else sums[slot : slot + count])
            else:
                recorded.append(UNKNOWN if sums is None else sums[slot])
            trailing = bool(opened.index.gap)
        return found, recorded, trailing

    def _read_rest(self, call: _Call, done: int) -> None:
        opened, _, _, pieces, offset, wanted, _ = call
        while done < wanted:
            try:
                got = os.preadv(opened.descriptor, _after(pieces, done), offset + done)
            except OSError as error:
                raise unreadable(self._store, opened, error) from error
            if not got:
                raise unreadable(self._store, opened, None)
            done += got


def _short_rows(
    opened: OpenShard, slot: int, payloads: list[Any], ends: Sequence[Any] | None, at_once: int
) -> Iterator[_Call]:
    """Give the calls that read rows which follow each other, as many at once as is good."""
    offsets, row_bytes = opened.index.offsets, payloads[0].nbytes
    if not isinstance(offsets, range):  # written by others, in any order
        at_once = 1
    for start in range(0, len(payloads), at_once):
        here = payloads[start : start + at_once]
        pieces, wanted = here, len(here) * row_bytes
        if ends is not None:
            pieces = [here[0]] * (2 * len(here))
            pieces[0::2] = here
            pieces[1::2] = ends[start : start + at_once]
            pieces[-1] = pieces[-1][:CRC_BYTES]
            wanted += (len(here) - 1) * len(ends[0]) + CRC_BYTES
        yield opened, slot + start, here, pieces, offsets[slot + start], wanted, False


def _long_rows(
    opened: OpenShard, slot: int, payloads: list[Any], ends: Sequence[Any] | None
) -> Iterator[_Call]:
    """Give the calls that read rows which are too long for one."""
    for number, payload in enumerate(payloads):
        offset, size = opened.index.offsets[slot + number], payload.nbytes
        for start in range(0, size, _CALL_BYTES):
            piece = payload[start : start + _CALL_BYTES]
            pieces, wanted = [piece], piece.nbytes
            more = start + wanted < size
            if ends is not None and not more:
                pieces.append(ends[number][:CRC_BYTES])
                wanted += CRC_BYTES
            yield opened, slot + number, [piece], pieces, offset + start, wanted, more


def _places_of(calls: Iterator[_Call]) -> Iterator[tuple[OpenShard, int]]:
    """Give file and slot of each row."""
    for opened, first, payloads, _, _, _, more in calls:
        for slot in range(first, first + len(payloads)) if not more else ():
            yield opened, slot


def _after(pieces: Sequence[Any], done: int) -> list[Any]:
    """Give the pieces that are left when the first ``done`` bytes are there."""
    rest = []
    for piece in pieces:
        if done >= len(piece):
            done -= len(piece)
        else:
            rest.append(piece[done:] if done else piece)
            done = 0
    return rest
