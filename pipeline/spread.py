"""Mean and standard deviation of a figure over seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread", "spread_of"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean and the sample standard deviation (n - 1); none of one seed."""

    mean: float
    deviation: float | None

    def text(self, digits: int = 3) -> str:
        """``0.836 ± 0.004``, or the mean alone."""
        if self.deviation is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


def spread_of(values: Sequence[float], *, scale: float = 1.0) -> Spread | None:
    """The spread of ``values`` times ``scale``; None of no value."""
    if not values:
        return None
    scaled = [value * scale for value in values]
    deviation = statistics.stdev(scaled) if len(scaled) > 1 else None
    return Spread(mean=statistics.fmean(scaled), deviation=deviation)
