"""One background thread that makes the next batches while the current one is trained on."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["Prefetcher", "prefetch"]

T = TypeVar("T")

_POLL_SECONDS = 0.05


class _End:
    """Put last into the queue: how the producer ended."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetcher(Iterator[T], Generic[T]):
    """An iterator over what a background thread makes; see ``prefetch``.

    The thread ends when the iterator is exhausted, closed, left as a context manager, or no
    longer referenced.

    Attributes:
        wait_seconds: how long the consumer has waited for data so far.
    """

    def __init__(self, make: Callable[[int], T], steps: Iterable[int], *, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self.wait_seconds = 0.0
        self._ready: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._done = False
        # The thread must not refer to self, or it would keep its own consumer alive.
        self._thread = threading.Thread(
            target=_produce,
            args=(make, steps, self._ready, self._stop),
            name="cache-prefetch",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._done:
            raise StopIteration
        started = time.perf_counter()
        item = self._ready.get()
        self.wait_seconds += time.perf_counter() - started
        if isinstance(item, _End):
            self.close()
            if item.error is not None:
                raise item.error
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop the thread and wait until it has ended; a second call does nothing."""
        self._done = True
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        stop = getattr(self, "_stop", None)  # absent when the constructor refused its arguments
        if stop is not None:
            stop.set()


def _produce(
    make: Callable[[int], T],
    steps: Iterable[int],
    ready: "queue.Queue[T | _End]",
    stop: threading.Event,
) -> None:
    end = _End(None)
    try:
        for step in steps:
            if stop.is_set() or not _put(ready, make(step), stop):
                return
    except BaseException as error:  # noqa: BLE001 - raised again in the consumer
        end = _End(error)
    _put(ready, end, stop)


def _put(ready: "queue.Queue[T | _End]", item: T | _End, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
        except queue.Full:
            continue
        return True
    return False


def prefetch(make: Callable[[int], T], steps: Iterable[int], *, depth: int = 2) -> Prefetcher[T]:
    """Make ``make(step)`` for each step, in order, ahead of the consumer.

    Args:
        make: called in a background thread; its exceptions are raised at the consumer, after
            the items made before.
        steps: finite or endless.
        depth: how many finished items wait at most; one more is in the making.

    Returns:
        An iterator with ``wait_seconds`` and ``close()``.

    Raises:
        ValueError: ``depth`` is below 1.
    """
    return Prefetcher(make, steps, depth=depth)
