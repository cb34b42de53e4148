"""Rows gathered into whole shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cache.schema import CacheSpec, RowSpace

__all__ = ["Shard", "ShardAssembler", "ShardSink"]


class ShardSink(Protocol):
    """Where shards go: ``cache.CacheWriter``, or ``cache.worker_writer.WorkerWriter``."""

    path: Path
    spec: CacheSpec

    def missing_shards(self, space: RowSpace) -> tuple[int, ...]:
        """The shards that are to be written, ascending."""

    def rows_of_shard(self, space: RowSpace, k: int) -> range:
        """The rows of a shard."""

    def missing_bytes(self) -> int:
        """Bytes of all shards that are to be written, where that is known."""

    def write_shard(self, space: RowSpace, k: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write and publish a whole shard."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A whole shard, to be written.

    Attributes:
        space: its row space.
        number: its number.
        arrays: array name → rows.
    """

    space: RowSpace
    number: int
    arrays: Mapping[str, np.ndarray]


class ShardAssembler:
    """Takes rows in any order and gives each missing shard once it is whole.

    Args:
        writer: tells which shards are missing; only asked here, before it is at work.
        space: the row space.
    """

    def __init__(self, writer: ShardSink, space: RowSpace) -> None:
        self._space: RowSpace = space
        self._specs = writer.spec.arrays_of(space)
        self._per_shard = writer.spec.rows_per_shard
        self.missing = {
            shard: writer.rows_of_shard(space, shard) for shard in writer.missing_shards(space)
        }
        self._parts: dict[int, tuple[dict[str, np.ndarray], np.ndarray]] = {}

    @property
    def missing_rows(self) -> int:
        """Rows that are still to be made, as of the start."""
        return sum(len(rows) for rows in self.missing.values())

    def wants(self, rows: np.ndarray) -> np.ndarray:
        """Which of these rows belong to missing shards, bool (n,)."""
        shards = np.asarray(rows) // self._per_shard
        return np.isin(shards, np.fromiter(self.missing, np.int64, len(self.missing)))

    def add(self, rows: np.ndarray, values: Mapping[str, np.ndarray]) -> list[Shard]:
        """Take rows of missing shards; give the shards that they complete, ascending.

        Args:
            rows: (n,) row numbers, each given once in all.
            values: array name → (n, *shape of a row).
        """
        done: list[Shard] = []
        shards = np.asarray(rows) // self._per_shard
        for number in np.unique(shards).tolist():
            inside = np.flatnonzero(shards == number)
            arrays, filled = self._part(number)
            places = rows[inside] - self.missing[number].start
            for name, array in arrays.items():
                array[places] = values[name][inside]
            filled[places] = True
            if filled.all():
                del self._parts[number]
                done.append(Shard(space=self._space, number=number, arrays=arrays))
        return done

    def _part(self, number: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        if number not in self._parts:
            count = len(self.missing[number])
            arrays = {spec.name: np.empty((count, *spec.shape), spec.dtype) for spec in self._specs}
            self._parts[number] = (arrays, np.zeros(count, bool))
        return self._parts[number]
