import json

import numpy as np
import pytest

from cache.statistics import ChannelStatistics, ChannelSums, merge_sums, sum_channels


def test_merged_parts_are_numpys_figures():
    features = np.random.default_rng(0).normal(3.0, 5.0, (11, 4, 6, 7)).astype(np.float16)
    merged = merge_sums([sum_channels(features[:4]), sum_channels(features[4:])])
    wide = features.astype(np.float64)
    assert merged.count == 11 * 42
    np.testing.assert_allclose(merged.mean, wide.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(merged.std, wide.std(axis=(0, 2, 3)), rtol=1e-12)


def test_float16_sums_do_not_overflow():
    features = np.full((2, 1, 64, 64), 60000.0, dtype=np.float16)
    merged = merge_sums([sum_channels(features)])
    np.testing.assert_array_equal(merged.mean, [60000.0])
    np.testing.assert_array_equal(merged.std, [0.0])


def test_json_keeps_every_bit():
    features = np.random.default_rng(1).normal(size=(3, 5, 2, 2)).astype(np.float32)
    sums = sum_channels(features)
    again = ChannelSums.from_json(json.loads(json.dumps(sums.to_json())))
    np.testing.assert_array_equal(again.total, sums.total)
    np.testing.assert_array_equal(again.squares, sums.squares)
    merged = merge_sums([sums])
    copy = ChannelStatistics.from_json(json.loads(json.dumps(merged.to_json())))
    np.testing.assert_array_equal(copy.std, merged.std)


def test_nothing_has_no_statistics():
    with pytest.raises(ValueError, match="no rows"):
        merge_sums([])
