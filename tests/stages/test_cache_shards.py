"""Rows in any order become whole shards."""

import numpy as np
import pytest

from cache import CacheWriter
from stages.cache_shards import ShardAssembler
from tests.stages.passes import CountedTeacher, make_index, make_spec


@pytest.fixture
def writer(tmp_path):
    spec, index = make_spec(CountedTeacher()), make_index()
    with CacheWriter.create_or_resume(tmp_path / "cache", spec, index) as writer:
        yield writer


def rows_of(writer, rows):
    """Every array of the prompts, each row full of its number."""
    return {
        array.name: np.broadcast_to(
            np.asarray(rows, array.dtype).reshape(-1, *(1,) * len(array.shape)),
            (len(rows), *array.shape),
        )
        for array in writer.spec.arrays_of("prompts")
    }


def test_a_shard_comes_when_its_last_row_does(writer):
    shards = ShardAssembler(writer, "prompts")
    assert shards.missing_rows == 40
    order = np.random.default_rng(0).permutation(40)
    done = []
    for rows in np.split(order, 8):
        done += shards.add(rows, rows_of(writer, rows))
    assert sorted(shard.number for shard in done) == list(range(10))
    for shard in done:
        first = 4 * shard.number
        assert shard.arrays["mask_iou"][:, 0].tolist() == [first, first + 1, first + 2, first + 3]


def test_shards_that_a_step_completes_come_in_order(writer):
    shards = ShardAssembler(writer, "prompts")
    rows = np.arange(12)[::-1].copy()
    assert [shard.number for shard in shards.add(rows, rows_of(writer, rows))] == [0, 1, 2]


def test_only_missing_shards_are_wanted(writer):
    rows = np.arange(4)
    writer.write_shard("prompts", 0, rows_of(writer, rows))
    shards = ShardAssembler(writer, "prompts")
    assert shards.wants(np.array([3, 4, 39])).tolist() == [False, True, True]
    assert shards.missing_rows == 36
