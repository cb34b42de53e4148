"""Exact percentiles of values that are met block by block, in memory that does not grow.

Values are mapped to unsigned keys of the same order. A histogram of the keys' upper 16 bits says
in which of its cells an order statistic lies; another pass resolves the next 16 bits of that cell,
until the whole key is known (8 and 16 bits take no further pass, 32 bits one, 64 bits three).
Between two order statistics numpy itself interpolates, so the result is ``numpy.percentile``'s.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

__all__ = ["NonzeroSurvey"]

_DIGIT_BITS = 16


class NonzeroSurvey:
    """What is known of an image's values after one pass: extremes, finiteness, a histogram.

    Args:
        dtype: of the values: integers or floats of 8 to 64 bits.

    Attributes:
        size: values met.
        not_finite: how many of them are NaN or infinite.
        lowest: the smallest value; None before the first block.
        highest: the largest value.
        nonzero: how many are not 0.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype.newbyteorder("=")
        self._bits = 8 * dtype.itemsize
        self._histogram = np.zeros(1 << min(self._bits, _DIGIT_BITS), np.int64)
        self.size = 0
        self.not_finite = 0
        self.lowest: float | None = None
        self.highest: float | None = None
        self.nonzero = 0

    def add(self, block: npt.NDArray[Any]) -> None:
        """Take note of more values, in any shape and order."""
        if block.size == 0:
            return
        self.size += block.size
        if block.dtype.kind == "f":
            bad = block.size - int(np.count_nonzero(np.isfinite(block)))
            self.not_finite += bad
            if bad:
                return
        low, high = float(block.min()), float(block.max())
        self.lowest = low if self.lowest is None else min(self.lowest, low)
        self.highest = high if self.highest is None else max(self.highest, high)
        keys = self._keys(block)
        self.nonzero += keys.size
        upper = keys >> keys.dtype.type(self._bits - min(self._bits, _DIGIT_BITS))
        self._histogram += np.bincount(upper.astype(np.int64), minlength=self._histogram.size)

    def percentiles(
        self,
        percentiles: tuple[float, float],
        blocks: Callable[[], Iterator[npt.NDArray[Any]]],
    ) -> tuple[float, float]:
        """``numpy.percentile`` of all values that are not 0, bit for bit.

        Args:
            percentiles: two numbers in 0..100.
            blocks: reads the same values once more, as often as it is called.

        Raises:
            ValueError: every value is 0, or one was not finite.
        """
        if self.nonzero == 0 or self.not_finite:
            raise ValueError("percentiles need finite values that are not all 0")
        last = self.nonzero - 1
        # As numpy: positions between order statistics in float64, the last one at the end.
        positions = last * np.true_divide(np.asanyarray(percentiles), 100)
        below = np.minimum(np.floor(positions), last).astype(np.int64)
        above = np.minimum(below + 1, last)
        value_at = self._order_statistics(sorted({*below.tolist(), *above.tolist()}), blocks)
        found: list[float] = []
        for position, lower, upper in zip(positions, below.tolist(), above.tolist(), strict=True):
            pair = np.concatenate([value_at[lower], value_at[upper]])
            share = np.array([position - lower])
            found.append(float(np.quantile(pair, share)[0]))
        return found[0], found[1]

    def _order_statistics(
        self, ranks: list[int], blocks: Callable[[], Iterator[npt.NDArray[Any]]]
    ) -> dict[int, npt.NDArray[Any]]:
        """Rank → the value of that rank among the sorted non-zero values, as (1,)."""
        digit_bits = min(self._bits, _DIGIT_BITS)
        # Rank → the leading bits of its key, and its rank among the keys that begin so.
        places: dict[int, tuple[int, int]] = {
            rank: _place(self._histogram, 0, rank, digit_bits) for rank in ranks
        }
        unresolved = self._bits - digit_bits
        while unresolved:
            histograms = self._refine({prefix for prefix, _ in places.values()}, unresolved, blocks)
            unresolved -= _DIGIT_BITS
            places = {
                rank: _place(histograms[prefix], prefix, within, _DIGIT_BITS)
                for rank, (prefix, within) in places.items()
            }
        return {rank: self._value(key) for rank, (key, _) in places.items()}

    def _refine(
        self,
        prefixes: set[int],
        unresolved: int,
        blocks: Callable[[], Iterator[npt.NDArray[Any]]],
    ) -> dict[int, npt.NDArray[np.int64]]:
        """Histograms of the next 16 bits of the keys that begin with each prefix."""
        histograms = {prefix: np.zeros(1 << _DIGIT_BITS, np.int64) for prefix in prefixes}
        for block in blocks():
            keys = self._keys(block)
            kind = keys.dtype.type
            leading = keys >> kind(unresolved)
            for prefix, histogram in histograms.items():
                digits = keys[leading == kind(prefix)] >> kind(unresolved - _DIGIT_BITS)
                digits &= kind((1 << _DIGIT_BITS) - 1)
                histogram += np.bincount(digits.astype(np.int64), minlength=histogram.size)
        return histograms

    def _keys(self, block: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Unsigned integers (n,) in the order of the non-zero values."""
        values = block[block != 0].astype(self._dtype, copy=False)
        unsigned = np.dtype(f"u{self._dtype.itemsize}")
        if self._dtype.kind == "u":
            return cast("npt.NDArray[Any]", values)
        bits = values.view(unsigned)
        sign = unsigned.type(1 << (self._bits - 1))
        if self._dtype.kind == "i":
            return cast("npt.NDArray[Any]", bits ^ sign)
        # IEEE 754: negative numbers grow in magnitude with their bits, so all bits turn round.
        return cast("npt.NDArray[Any]", np.where(bits & sign, ~bits, bits | sign))

    def _value(self, key: int) -> npt.NDArray[Any]:
        """The value (1,) that a key stands for."""
        keys = np.array([key], f"u{self._dtype.itemsize}")
        sign = keys.dtype.type(1 << (self._bits - 1))
        if self._dtype.kind == "i":
            keys ^= sign
        elif self._dtype.kind == "f":
            keys = np.where(keys & sign, keys ^ sign, ~keys)
        value: npt.NDArray[Any] = keys.view(self._dtype)
        return value


def _place(histogram: npt.NDArray[np.int64], prefix: int, rank: int, bits: int) -> tuple[int, int]:
    """The prefix made longer by the digit in which ``rank`` falls, and the rank within it."""
    until = np.cumsum(histogram)
    digit = int(np.searchsorted(until, rank, side="right"))
    before = int(until[digit - 1]) if digit else 0
    return (prefix << bits) | digit, rank - before
