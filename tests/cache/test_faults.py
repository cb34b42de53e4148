"""The fault campaign in small; in full: ``python -m benchmarks.faults``."""

from contextlib import suppress

import numpy as np
import pytest

from benchmarks.faults import campaign, totals
from benchmarks.faults_cache import FORMATS, judge, write
from cache import CacheMissingError, CacheReader
from tests.cache import example


def test_no_fault_of_a_small_campaign_is_silent_or_costs_a_row(tmp_path):
    lines = []
    found = campaign(1, seed=7, work=tmp_path, precompute=False, workers=False, tell=lines.append)
    of_all = totals(found)
    assert (of_all["silent"], of_all["lost"]) == (0, 0), lines
    assert of_all["survived"] + of_all["detected"] >= 31
    assert found["flip"]["detected"] >= 15
    assert found["two"]["detected"] + found["two"]["survived"] == 1


@pytest.mark.parametrize("store", FORMATS)
def test_the_judge_sees_other_values_and_blind_checks(store, tmp_path):
    """A campaign that could not fail would say nothing."""
    path = tmp_path / "cache"
    write(path, store, data="e")
    verdict = judge(path, digest=None)
    assert verdict.outcome == "silent"
    assert any("other values without an error" in line for line in verdict.wrong)
    assert any("splits.json: other bytes without an error" in line for line in verdict.wrong)


def test_a_reader_beside_a_live_writer_sees_finished_rows_only(tmp_path, start):
    path = tmp_path / "live.cache"
    process = start(example.__file__, path)
    assert process.stdout.readline() == "writing\n"
    seen = [-1]
    while process.poll() is None:
        reader = CacheReader(path)
        for space in example.SPACES:
            rows = reader.finished_rows(space)
            for array in reader.spec.arrays_of(space):
                read = reader.read(array.name, rows)
                assert read.tobytes() == example.values_of(array, rows).tobytes()
            absent = np.setdiff1d(np.arange(reader.counts[space]), rows)
            if len(absent):
                with pytest.raises(CacheMissingError, match="never written"):
                    reader.read(array.name, absent[:1])
        there = sum(len(reader.finished_rows(space)) for space in example.SPACES)
        if there > seen[-1]:
            with suppress(BrokenPipeError):  # it has ended
                process.stdin.write("\n")  # the next shard is written while this one is read
                process.stdin.flush()
        seen.append(there)
    assert process.returncode == 0
    assert seen == sorted(seen)
    shards = sum(-(-count // reader.spec.rows_per_shard) for count in reader.counts.values())
    assert len({*seen}) > shards  # none of them was missed
