"""Batches of cached rows for a training loop, without a copy and without worker processes.

Background threads read batches ahead into a ring of buffers; the training gets tensors that are
views of them. Worker processes would copy every batch once more, which costs several times the
reading.

Letters: K slots of the ring, B rows of a batch.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from cache.buffers import BatchSlot, make_ring
from cache.reader import CacheReader
from cache.shuffle import ShuffledRows
from cache.stored import Stored, as_stored, names_to_read

__all__ = ["BatchLoader", "RowBatch"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBatch:
    """One batch.

    Attributes:
        step: number of the batch, counted from 0 over all epochs.
        rows: int64 (B,): row numbers.
        arrays: array name → (B, *shape of a row) as it is stored. The memory belongs to the
            loader, which fills it again after ``keep`` more batches.
    """

    step: int
    rows: Tensor
    arrays: Mapping[str, Stored]
    slot: BatchSlot

    def to(self, device: torch.device | str) -> dict[str, Tensor]:
        """Copy the arrays to a device, at once on a CPU, in the background on a GPU.

        Maps in int8 become float32 there; everything else keeps its type. The loader does not fill
        the batch's memory again before the copies have ended.
        """
        place = torch.device(device)
        copies = {
            name: values.clone()
            if place.type == "cpu" and isinstance(values, Tensor)
            else values.to(place, non_blocking=True)
            for name, values in self.arrays.items()
        }
        if place.type == "cuda":
            event: Any = cast(Any, torch.cuda.Event)()
            event.record(torch.cuda.current_stream(place))
            self.slot.copied = event
        return copies


class BatchLoader(Iterator[RowBatch]):
    """Endless batches of the same rows of several arrays, in the order of a ``ShuffledRows``.

    Threads start at the first batch and end with ``close``, with the context, on an error, or
    when the loader is no longer referenced.

    Args:
        reader: the open cache.
        arrays: names of arrays of one row space; scales come with the maps that they belong to.
        order: which rows make up the batch of a step.
        threads: how many read, each a batch of its own; two help on disks more than in memory.
        depth: finished batches that wait at most, over the one being read by each thread.
        keep: how many batches stay valid: with 1, a batch is until the next one is asked for.

    Raises:
        ValueError: no arrays, arrays of different row spaces, or a number below 1.

    Attributes:
        wait_seconds: how long the consumer has waited for data so far.
    """

    def __init__(
        self,
        reader: CacheReader,
        arrays: Sequence[str],
        order: ShuffledRows,
        *,
        threads: int = 1,
        depth: int = 2,
        keep: int = 1,
    ) -> None:
        if min(threads, depth, keep) < 1:
            raise ValueError("threads, depth and keep must be at least 1")
        specs = [reader.spec.array(name) for name in arrays]
        if len({spec.rows for spec in specs}) != 1:
            raise ValueError(f"arrays must be of one row space: {list(arrays)}")
        self.wait_seconds = 0.0
        self._reader = reader
        self._order = order
        self._threads = threads
        self._keep = keep
        self._specs = specs
        stored = [reader.spec.array(part) for spec in specs for part in names_to_read(spec)]
        slots = depth + keep + threads
        self._ring = make_ring(stored, slots=slots, batch_size=order.batch_size)
        self._step = 0
        self._work: _Work | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._order.steps_per_epoch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RowBatch:
        """Give the next batch; batches before the ``keep`` latest are no longer valid.

        Raises:
            CacheError: a row of this batch is not written or damaged; see ``CacheReader.read``.
        """
        if self._work is None:
            self._start()
        work = self._work
        assert work is not None
        work.release(self._step - self._keep + 1)
        started = time.perf_counter()
        rows = work.take(self._step)
        self.wait_seconds += time.perf_counter() - started
        if isinstance(rows, BaseException):
            self.close()
            raise rows
        slot = self._ring[self._step % len(self._ring)]
        arrays = {spec.name: as_stored(spec, slot.tensors) for spec in self._specs}
        batch = RowBatch(step=self._step, rows=torch.from_numpy(rows), arrays=arrays, slot=slot)
        self._step += 1
        return batch

    def _start(self) -> None:
        self._work = _Work(self._step, len(self._ring), threads=self._threads)
        for _ in range(self._threads):
            # The threads must not refer to self, or they would keep their own consumer alive.
            threading.Thread(
                target=_produce,
                args=(self._work, self._reader, self._order, self._ring),
                name="cache-loader",
                daemon=True,
            ).start()

    def state_dict(self) -> dict[str, int]:
        """Give the position: the next batch's step and what its rows follow from."""
        order = self._order
        return {
            "step": self._step,
            "epoch": self._step // order.steps_per_epoch,
            "seed": order.seed,
            "batch_size": order.batch_size,
            "world_size": order.world_size,
            "rows": len(order),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a position that ``state_dict`` gave.

        Raises:
            ValueError: the position is of another order, whose rows would be others.
        """
        for key, mine in self.state_dict().items():
            if key not in ("step", "epoch") and state[key] != mine:
                raise ValueError(
                    f"the position belongs to another order: {key} is {state[key]} there, {mine} "
                    "here. Use the same setting, or start anew"
                )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stop the threads and wait until they have ended; the next batch starts them again."""
        if self._work is not None:
            self._work.stop()
            self._work = None

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
        work = getattr(self, "_work", None)  # absent when the constructor refused its arguments
        if work is not None:
            work.ask_to_stop()


class _Work:
    """What the threads and the consumer tell each other."""

    def __init__(self, first: int, slots: int, *, threads: int) -> None:
        self._running = threads
        self._changed = threading.Condition()
        self._next = first
        self._limit = first + slots
        self._slots = slots
        self._done: dict[int, Any] = {}
        self._stopped = False

    def claim(self) -> int | None:
        """Give the next step whose slot is free, or ``None`` when all is over."""
        with self._changed:
            while self._next >= self._limit and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return None
            self._next += 1
            return self._next - 1

    def put(self, step: int, result: Any) -> None:  # noqa: ANN401 - rows, or the error
        with self._changed:
            self._done[step] = result
            self._changed.notify_all()

    def take(self, step: int) -> Any:  # noqa: ANN401
        with self._changed:
            while step not in self._done:
                self._changed.wait()
            return self._done.pop(step)

    def release(self, step: int) -> None:
        """Let the slots of all batches before ``step`` be filled again."""
        with self._changed:
            if step + self._slots > self._limit:
                self._limit = step + self._slots
                self._changed.notify_all()

    def ended(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def ask_to_stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def stop(self) -> None:
        self.ask_to_stop()
        with self._changed:
            while self._running:
                self._changed.wait()


def _produce(
    work: _Work, reader: CacheReader, order: ShuffledRows, ring: Sequence[BatchSlot]
) -> None:
    try:
        while (step := work.claim()) is not None:
            try:
                rows = order.batch(step)
                slot = ring[step % len(ring)]
                slot.wait()
                reader.read_into(slot.views, rows)
            except BaseException as error:  # noqa: BLE001 - raised again in the consumer
                work.put(step, error)
            else:
                work.put(step, np.array(rows))
    finally:
        work.ended()
