"""Reading, computing and writing at the same time, in order, with bounded hand-overs.

A reader thread makes pieces, the calling thread turns them into shards, a writer thread stores
those. Whatever ends one of the three ends all of them, and nothing waits for ever.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["Overlap", "RoleTimes"]

T = TypeVar("T")
PieceT = TypeVar("PieceT")
ShardT = TypeVar("ShardT")

PIECES_AHEAD = 2
"""Pieces between reader and teacher: one in the teacher's hands, one ready."""

SHARDS_BEHIND = 1
"""Shards in the writer's hands while the next one is computed: two in memory at a time."""


@dataclass
class RoleTimes:
    """Seconds that each of the three roles worked, waiting left out.

    Attributes:
        reader: reading pieces.
        teacher: computing.
        writer: writing, flushing and rereading shards.
        seconds: of the whole.
    """

    reader: float = 0.0
    teacher: float = 0.0
    writer: float = 0.0
    seconds: float = 0.0


class _Channel(Generic[T]):
    """A bounded hand-over from one thread to another that either side can end.

    An item counts until its taker comes back for the next one.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._in_hand = 0
        self._ended = False
        self._cancelled = False
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Hand over; False where the taker has gone."""
        with self._changed:
            while len(self._items) + self._in_hand >= self._capacity and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def take(self) -> tuple[T] | None:
        """The next item, in a tuple; None after the last."""
        with self._changed:
            self._in_hand = 0
            self._changed.notify_all()
            while not self._items and not self._ended:
                self._changed.wait()
            if not self._items:
                return None
            self._in_hand = 1
            return (self._items.popleft(),)

    def wait_empty(self) -> None:
        """Until every item is dealt with, or the taker has gone."""
        with self._changed:
            while (self._items or self._in_hand) and not self._cancelled:
                self._changed.wait()

    def end(self) -> None:
        """The giver's last word: what was handed over is still dealt with."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """The taker's last word: what was handed over is dropped."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._in_hand = 0
            self._changed.notify_all()


class Overlap(Generic[PieceT, ShardT]):
    """Three roles at work; a context manager that ends them all.

    Args:
        pieces: makes what is to be computed, in order; run in the reader's thread alone, which
            also closes it.
        write: stores a shard; run in the writer's thread alone.
        clock: seconds from a monotonic clock.

    Attributes:
        times: how long each role has worked; whole after the block.
    """

    def __init__(
        self,
        pieces: Generator[PieceT, None, None],
        write: Callable[[ShardT], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.times = RoleTimes()
        self._pieces = pieces
        self._write = write
        self._clock = clock
        self._read: _Channel[PieceT] = _Channel(PIECES_AHEAD)
        self._made: _Channel[ShardT] = _Channel(SHARDS_BEHIND)
        self._reader_error: BaseException | None = None
        self._writer_error: BaseException | None = None
        self._waited = 0.0
        self._threads = (
            threading.Thread(target=self._run_reader, name="cache-reader", daemon=True),
            threading.Thread(target=self._run_writer, name="cache-writer", daemon=True),
        )
        self._started = clock()

    def __enter__(self) -> Self:
        self._started = self._clock()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._timed(self._made.wait_empty)
        finally:
            # A stopped run keeps the shard that is complete: the writer deals with it first.
            self._read.cancel()
            self._made.end()
            for thread in self._threads:
                thread.join()
            self.times.seconds = self._clock() - self._started
            self.times.teacher = self.times.seconds - self._waited
        if error is None:
            self._raise_failure()

    def pieces(self) -> Iterator[PieceT]:
        """What the reader made, in order.

        Raises:
            BaseException: whatever ended the reader or the writer.
        """
        while True:
            taken = self._timed(self._read.take)
            self._raise_failure()
            if taken is None:
                return
            yield taken[0]

    def hand_over(self, shard: ShardT) -> None:
        """Give a shard to the writer; waits while it still has the one before.

        Raises:
            BaseException: whatever ended the writer.
        """
        self._timed(lambda: self._made.put(shard))
        self._raise_failure()

    def _timed(self, wait: Callable[[], T]) -> T:
        start = self._clock()
        try:
            return wait()
        finally:
            self._waited += self._clock() - start

    def _raise_failure(self) -> None:
        failure = self._writer_error or self._reader_error
        if failure is not None:
            raise failure

    def _run_reader(self) -> None:
        try:
            going = True
            while going:
                start = self._clock()
                piece = next(self._pieces, None)
                self.times.reader += self._clock() - start
                going = piece is not None and self._read.put(piece)
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            self._reader_error = error
        finally:
            try:
                self._pieces.close()
            except BaseException as error:  # noqa: BLE001 - likewise
                self._reader_error = self._reader_error or error
            self._read.end()

    def _run_writer(self) -> None:
        try:
            while (taken := self._made.take()) is not None:
                start = self._clock()
                self._write(taken[0])
                self.times.writer += self._clock() - start
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            self._writer_error = error
        finally:
            self._made.cancel()
