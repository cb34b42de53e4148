"""Rows straight from shard files into the caller's memory, every byte verified.

``preadv`` scatters a row's values into their place and its stored checksum beside them; rows
that lie one after the other come in one call. Each row's crc32c is compared with the one that
the ledger recorded, so that a damaged, exchanged or foreign shard never gives values.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cache.checksum import CRC_BYTES, crc32c
from cache.errors import CacheCorruptError
from cache.ledger_entry import ShardFile
from cache.schema import ArraySpec
from cache.shard_index import ShardIndex
from cache.store import ArrayStore

__all__ = ["DirectReader", "Lookup", "read_shard"]

Values = npt.NDArray[Any]
Lookup = Callable[[ArraySpec, int, int], ShardFile]

_OPEN_FILES = 256
_CALL_BYTES = 1 << 20  # what one call reads is still in the processor's cache when it is summed
_CALL_ROWS = 256  # two pieces each; the kernel takes 1024 in one call
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
_UNKNOWN = -1


class _OpenShard:
    """An open shard file; closed when nobody refers to it any more."""

    __slots__ = ("checksums", "descriptor", "index")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.index: ShardIndex
        self.checksums: memoryview | None = None

    def __del__(self) -> None:
        os.close(self.descriptor)


class _Call(NamedTuple):
    """One call to the kernel: rows that lie one after the other in one file."""

    opened: _OpenShard
    pieces: list[Any]
    offset: int
    wanted: int
    payloads: list[Any]
    array: ArraySpec
    shard: int
    slot: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Neighbours:
    """Asked rows that follow each other in one shard, and their places among the asked."""

    shard: int
    slot: int
    places: list[int]


class DirectReader:
    """Reads rows of one cache. May be used from several threads and after a fork.

    Args:
        cache: the cache folder.
        store: the store whose files are read.
        rows_per_shard: rows of a full shard.
        lookup: (array, shard, row) → what the ledger says of the file; raises where the shard is
            not finished.
    """

    def __init__(
        self, cache: Path, store: ArrayStore, *, rows_per_shard: int, lookup: Lookup
    ) -> None:
        self._cache = cache
        self._store = store
        self._rows_per_shard = rows_per_shard
        self._lookup = lookup
        self._no_wait = _NO_WAIT
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int], _OpenShard] = {}

    def forget(self, array: str, shard: int) -> None:
        """Close a shard's file where it is open: the file is going to be removed."""
        self._open.pop((array, shard), None)

    def read(self, rows: Sequence[int], outs: Sequence[tuple[ArraySpec, Values]]) -> None:
        """Read the same rows of several arrays of one row space.

        Args:
            rows: row numbers, in any order; one may be asked more than once.
            outs: array, and memory (rows, *shape of a row) of its type, C-contiguous.

        Raises:
            CacheMissingError: a row was never written.
            CacheCorruptError: a file is missing, cut off, damaged, exchanged or foreign.
        """
        if not rows:
            return
        neighbours = self._neighbours(rows)
        stored = np.empty((len(rows) * len(outs), CRC_BYTES), dtype=np.uint8)
        trailers = list(stored)
        calls: list[_Call] = []
        expected: list[int] = []
        for array, out in outs:
            self._plan(array, out, neighbours, trailers, calls, expected)
        found = self._execute(calls)
        if found != expected or (
            calls[0].opened.index.trailing and found != stored.view("<u4")[:, 0].tolist()
        ):
            self._compare(calls, found, expected, stored.view("<u4")[:, 0].tolist())

    def _neighbours(self, rows: Sequence[int]) -> list[_Neighbours]:
        found: list[_Neighbours] = []
        size, following = self._rows_per_shard, -1
        for place in sorted(range(len(rows)), key=rows.__getitem__):
            row = rows[place]
            shard, slot = divmod(row, size)
            if row == following and slot:
                found[-1].places.append(place)
            else:
                found.append(_Neighbours(shard=shard, slot=slot, places=[place]))
            following = row + 1
        return found

    def _plan(
        self,
        array: ArraySpec,
        out: Values,
        neighbours: list[_Neighbours],
        trailers: list[Any],
        calls: list[_Call],
        expected: list[int],
    ) -> None:
        payloads = list(out.reshape(len(out), -1).view(np.uint8))
        row_bytes = payloads[0].nbytes
        at_once = max(1, min(_CALL_ROWS, _CALL_BYTES // row_bytes))
        name, known = array.name, self._open
        for item in neighbours:
            opened = known.get((name, item.shard)) or self._open_shard(array, item)
            offsets, trailing = opened.index.offsets, opened.index.trailing
            step = row_bytes + CRC_BYTES if trailing else row_bytes
            regular = isinstance(offsets, range)
            for start in range(0, len(item.places), at_once if regular else 1):
                slot = item.slot + start
                here = [payloads[i] for i in item.places[start : start + at_once]]
                if not regular:
                    del here[1:]
                first, count = len(expected), len(here)
                if not trailing:
                    pieces: list[Any] = here
                elif count == 1:
                    pieces = [here[0], trailers[first]]
                else:
                    pieces = [here[0]] * (2 * count)
                    pieces[0::2] = here
                    pieces[1::2] = trailers[first : first + count]
                calls.append(
                    _Call(
                        opened, pieces, offsets[slot], count * step, here, array, item.shard, slot
                    )
                )
                if opened.checksums is None:
                    expected.extend([_UNKNOWN] * count)
                else:
                    expected.extend(opened.checksums[slot : slot + count])

    def _execute(self, calls: list[_Call]) -> list[int]:
        """Read everything and give each row's checksum, in order of the calls."""
        found: list[int] = []
        wait = not self._no_wait
        for number, call in enumerate(calls):
            got = 0
            if not wait:
                try:
                    got = os.preadv(call.opened.descriptor, call.pieces, call.offset, _NO_WAIT)
                except BlockingIOError:
                    pass
                except OSError:  # a file system that has no such flag; real errors come again
                    self._no_wait = 0
            if got < call.wanted:
                if not wait:
                    wait = True
                    _announce(calls[number:])
                self._read_rest(call, got)
            found.extend(map(crc32c, call.payloads))
        return found

    def _read_rest(self, call: _Call, done: int) -> None:
        while done < call.wanted:
            try:
                got = os.preadv(
                    call.opened.descriptor, _after(call.pieces, done), call.offset + done
                )
            except OSError as error:
                raise self._store.damage(call.array, call.shard, str(error)) from error
            if not got:
                raise self._store.damage(call.array, call.shard, "the file ends too early")
            done += got

    def _compare(
        self, calls: list[_Call], found: list[int], expected: list[int], stored: list[int]
    ) -> None:
        number = 0
        for call in calls:
            for slot in range(call.slot, call.slot + len(call.payloads)):
                row = call.shard * self._rows_per_shard + slot
                if call.opened.index.trailing and stored[number] != found[number]:
                    raise self._store.damage(
                        call.array, call.shard, f"row {row} does not fit the checksum beside it"
                    )
                if expected[number] not in (_UNKNOWN, found[number]):
                    raise self._store.damage(
                        call.array,
                        call.shard,
                        f"row {row} has not the checksum that was recorded for it: the file is "
                        "damaged, was exchanged with another one, or belongs to another cache",
                    )
                number += 1

    def _open_shard(self, array: ArraySpec, item: _Neighbours) -> _OpenShard:
        recorded = self._lookup(array, item.shard, item.shard * self._rows_per_shard + item.slot)
        file = self._cache / recorded.file
        try:
            opened = _OpenShard(os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
        except FileNotFoundError:
            raise self._unreadable(array, item, recorded, "is missing") from None
        if hasattr(os, "posix_fadvise"):
            # Reading ahead would fetch neighbours that nobody asked for.
            os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        size = os.fstat(opened.descriptor).st_size
        if size != recorded.bytes:
            problem = f"has {size} bytes, not {recorded.bytes}"
            raise self._unreadable(array, item, recorded, problem)
        try:
            opened.index = self._store.read_index(array, item.shard, opened.descriptor, size)
        except (ValueError, OSError) as error:
            raise self._store.damage(array, item.shard, str(error)) from error
        checksums = opened.index.checksums if recorded.row_crc32c is None else recorded.row_crc32c
        if checksums is not None:
            values: Any = np.ascontiguousarray(checksums, dtype=np.uint32)
            opened.checksums = memoryview(values)
        if self._process != os.getpid():  # another thread of the parent may have held the lock
            self._process, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            self._open[array.name, item.shard] = opened
            while len(self._open) > _OPEN_FILES:
                del self._open[next(iter(self._open))]
        return opened

    def _unreadable(
        self, array: ArraySpec, item: _Neighbours, file: ShardFile, problem: str
    ) -> CacheCorruptError:
        row = item.shard * self._rows_per_shard + item.slot
        return CacheCorruptError(
            f"{self._cache / file.file} {problem}: row {row} of {array.name}, shard {item.shard} "
            f"of {array.rows}, cannot be read. Write it again: efficient-medsam2 precompute --set "
            f"cache.path={self._cache}"
        )


def _announce(calls: Sequence[_Call]) -> None:
    """Let the kernel fetch all that is going to be read, so that the disk is never idle."""
    if hasattr(os, "posix_fadvise"):
        for call in calls:
            os.posix_fadvise(
                call.opened.descriptor, call.offset, call.wanted, os.POSIX_FADV_WILLNEED
            )


def _after(pieces: list[Any], done: int) -> list[Any]:
    """Give the pieces that are left when the first ``done`` bytes are there."""
    rest = []
    for piece in pieces:
        if done >= len(piece):
            done -= len(piece)
        else:
            rest.append(piece[done:] if done else piece)
            done = 0
    return rest


def read_shard(
    cache: Path, store: ArrayStore, array: ArraySpec, shard: int, *, rows_per_shard: int
) -> Callable[[npt.NDArray[np.int64]], Values]:
    """Give a function that reads rows of a shard as it lies there, whatever the ledger says.

    Raises:
        CacheCorruptError: the file is missing or damaged.
    """
    name = store.shard_file(array, shard)
    file = cache / name

    def lookup(array: ArraySpec, shard: int, row: int) -> ShardFile:
        if not file.is_file():
            raise store.damage(array, shard, f"the file is missing (row {row} is asked)")
        return ShardFile(file=name, bytes=file.stat().st_size, sha256="")

    reader = DirectReader(cache, store, rows_per_shard=rows_per_shard, lookup=lookup)

    def read(rows: npt.NDArray[np.int64]) -> Values:
        out = np.empty((len(rows), *array.shape), dtype=array.dtype)
        reader.read(rows.tolist(), [(array, out)])
        return out

    return read
