"""What a pass tells about its speed."""

import pytest

from stages.cache_meter import PassReport, WrittenBytes, summary_of
from stages.cache_overlap import RoleTimes


def report(name="slices", rows=100, **times):
    values = {"reader": 1.0, "teacher": 9.0, "writer": 2.0, "seconds": 10.0}
    return PassReport(name=name, rows=rows, written=3_000_000, times=RoleTimes(**values | times))


@pytest.mark.parametrize(
    ("times", "verdict"),
    [({}, "teacher-bound"), ({"reader": 9.5}, "reader-bound"), ({"writer": 9.9}, "disk-bound")],
)
def test_the_verdict_is_the_role_that_worked_longest(times, verdict):
    assert report(**times).verdict == verdict


def test_the_line_has_the_figures():
    assert report().line() == (
        "slices: 100 rows in 10.0 s (10 rows/s), 3 MB written; teacher-bound (teacher at work "
        "90% of the time, reader 10%, disk 20%)"
    )


def test_the_summary_is_that_of_the_slices():
    summary = summary_of({"slices": report(), "prompts": report("prompts", writer=9.9)})
    assert summary == {
        "seconds": {"slices": 10.0, "prompts": 10.0},
        "bytes_written": 6_000_000,
        "verdicts": {"slices": "teacher-bound", "prompts": "disk-bound"},
        "slices_per_second": 10.0,
        "verdict": "teacher-bound",
    }


def test_a_rerun_that_made_nothing_claims_no_speed():
    nothing = PassReport(name="slices", rows=0, written=0)
    assert nothing.rows_per_second == 0
    summary = summary_of({"slices": nothing})
    assert "slices_per_second" not in summary
    assert summary["verdicts"] == {}


def test_written_bytes_count_up_to_all(tmp_path):
    written = WrittenBytes(tmp_path, written=500_000_000, total=2_000_000_000)
    written.add(1_000_000_000)
    figures = written.figures()
    assert figures["written"] == "1.5 GB of 2 GB"
    assert figures["free"].endswith("B")
