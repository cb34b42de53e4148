"""Time of a piece of work: on the wall, and of all processor cores together."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Clock", "Cost"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds for one unit: on the wall, and of all processor cores together."""

    wall_s: float
    cpu_s: float


@dataclass
class Clock:
    """Adds up time of the blocks it is used around."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    units: int = 0

    @contextmanager
    def over(self, units: int) -> Iterator[None]:
        """Time the block; it does so many units of work."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu
        self.units += units

    def cost(self) -> Cost:
        """Mean over all units."""
        units = max(self.units, 1)
        return Cost(wall_s=self.wall_s / units, cpu_s=self.cpu_s / units)
