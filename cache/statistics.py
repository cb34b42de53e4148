"""Per-channel mean and standard deviation of feature maps.

Each shard's ledger entry keeps float64 sums of its rows; merging them in order of shard gives the
same bits whatever the interruptions, without a second reading. Distillation losses divide by
these deviations.

Letters: N rows, C channels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ChannelStatistics", "ChannelSums", "merge_sums", "sum_channels"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelSums:
    """Sums over all rows and positions of a shard.

    Attributes:
        count: values per channel.
        total: float64 (C,): sum of values.
        squares: float64 (C,): sum of squared values.
    """

    count: int
    total: Float64
    squares: Float64

    def to_json(self) -> dict[str, Any]:
        """Give JSON values; decimal text of a float64 is exact both ways."""
        return {
            "count": self.count,
            "sum": self.total.tolist(),
            "sum_of_squares": self.squares.tolist(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ChannelSums":
        """Read what ``to_json`` gave."""
        return cls(
            count=int(record["count"]),
            total=np.asarray(record["sum"], dtype=np.float64),
            squares=np.asarray(record["sum_of_squares"], dtype=np.float64),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelStatistics:
    """Figures of one array over the whole cache.

    Attributes:
        count: values per channel.
        mean: float64 (C,).
        std: float64 (C,), of the whole population (divisor ``count``).
    """

    count: int
    mean: Float64
    std: Float64

    def to_json(self) -> dict[str, Any]:
        """Give JSON values."""
        return {"count": self.count, "mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ChannelStatistics":
        """Read what ``to_json`` gave."""
        return cls(
            count=int(record["count"]),
            mean=np.asarray(record["mean"], dtype=np.float64),
            std=np.asarray(record["std"], dtype=np.float64),
        )


def sum_channels(features_NCHW: Iterable[npt.NDArray[np.generic]]) -> ChannelSums:
    """Sum feature maps (N, C, h, w) per channel in float64, row by row to bound the memory."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for features_CHW in features_NCHW:
        values = features_CHW.reshape(len(features_CHW), -1).astype(np.float64)
        count += values.shape[1]
        total = total + values.sum(axis=1)
        squares = squares + np.square(values).sum(axis=1)
    return ChannelSums(count=count, total=total, squares=squares)


def merge_sums(parts: Iterable[ChannelSums]) -> ChannelStatistics:
    """Merge sums in the given order.

    Raises:
        ValueError: there is nothing to merge.
    """
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for part in parts:
        count += part.count
        total = total + part.total
        squares = squares + part.squares
    if count == 0:
        raise ValueError("no rows to take statistics of")
    mean = total / count
    return ChannelStatistics(
        count=count, mean=mean, std=np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    )
