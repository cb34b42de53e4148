from collections.abc import Iterator

import numpy as np
import pytest

from efficient_medsam2.images.percentiles import NonzeroSurvey

TYPES = ["i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">i2", ">f4"]
PAIRS = [(0.5, 99.5), (0, 100), (1, 37.7), (33.333333, 33.3334), (99.9, 100)]


def survey_of(values: np.ndarray, block: int = 97) -> tuple[NonzeroSurvey, object]:
    def blocks() -> Iterator[np.ndarray]:
        return (values[start : start + block] for start in range(0, len(values), block))

    survey = NonzeroSurvey(values.dtype)
    for part in blocks():
        survey.add(part)
    return survey, blocks


def check(values: np.ndarray) -> None:
    survey, blocks = survey_of(values)
    inside = values[values != 0]
    assert (survey.size, survey.nonzero) == (values.size, inside.size)
    assert (survey.lowest, survey.highest) == (float(values.min()), float(values.max()))
    for pair in PAIRS:
        with np.errstate(over="ignore", invalid="ignore"):
            expected = tuple(float(value) for value in np.percentile(inside, pair))
            found = survey.percentiles(pair, blocks)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 500])
def test_random_values(rng, kind, count):
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        values = (rng.normal(size=count) * 50).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        low, high = max(limits.min, -(2**62)), min(limits.max, 2**62)
        values = rng.integers(low, high, count).astype(dtype)
    values[values == 0] = 1
    check(values)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_floats_that_differ_in_their_last_bit_and_by_magnitudes(kind):
    dtype = np.dtype(kind)
    one = dtype.type(1)
    close = [one]
    for _ in range(40):
        close.append(np.nextafter(close[-1], dtype.type(2)))
    limits = np.finfo(dtype)
    edges = [limits.tiny, -limits.tiny, limits.smallest_subnormal, -limits.smallest_subnormal]
    check(np.array(close, dtype))
    check(np.array([*close, *edges, 0.0, -0.0, 0.0, -1, -1, -1], dtype))
    check(np.array([limits.max / 4, limits.min / 4, *edges], dtype))


def test_integers_at_their_ends_and_many_equal_ones():
    check(np.array([-32768, 32767] * 3 + [0] * 5, np.int16))
    check(np.array([7] * 400 + [0] * 100 + [8], np.int32))
    check(np.array([2**63 - 1, -(2**63), 2**53 + 1, 2**53], np.int64))
    check(np.array([2**64 - 1, 2**63, 1, 1], np.uint64))


def test_values_that_are_not_finite_are_counted():
    survey, blocks = survey_of(np.array([1.0, np.nan, np.inf, 2.0], np.float32), block=1)
    assert (survey.size, survey.not_finite) == (4, 2)
    with pytest.raises(ValueError, match="finite"):
        survey.percentiles((1, 99), blocks)


def test_nothing_but_zeros():
    survey, blocks = survey_of(np.zeros(9, np.float32))
    assert survey.nonzero == 0
    with pytest.raises(ValueError, match="not all 0"):
        survey.percentiles((1, 99), blocks)
