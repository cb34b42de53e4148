"""Progress for terminals, log files and nobody."""

import io

import pytest

from pipeline.progress import make_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_plain_tells_every_ten_seconds_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    progress = make_progress("plain", stream=stream, clock=clock)
    with progress.bar(total=100, description="encoder", unit="steps", initial=40) as bar:
        for _ in range(25):
            clock.now_s += 1
            bar.update(2, loss=0.123456, split="train")
    assert stream.getvalue().splitlines() == [
        "encoder: 60/100 steps, 10 s, 2 steps/s, 20 s left, loss 0.1235, split train",
        "encoder: 80/100 steps, 20 s, 2 steps/s, 10 s left, loss 0.1235, split train",
        "encoder: 90/100 steps, 25 s, 2 steps/s, 5 s left, loss 0.1235, split train",
    ]


@pytest.mark.parametrize(
    ("step_s", "left"), [(1, "1 min 35 s left"), (1000, "26 h 23 min left"), (0.01, "1 s left")]
)
def test_plain_tells_the_time_that_is_left(step_s, left):
    stream, clock = io.StringIO(), Clock()
    progress = make_progress("plain", stream=stream, clock=clock)
    with progress.bar(total=100, description="slices", unit="row") as bar:
        for _ in range(5):
            clock.now_s += step_s
            bar.update(1)
    assert stream.getvalue().splitlines()[-1].endswith(left)


def test_plain_says_when_it_was_stopped():
    stream = io.StringIO()
    progress = make_progress("plain", stream=stream, clock=Clock())
    with (
        pytest.raises(KeyboardInterrupt),
        progress.bar(total=3, description="cases", unit="case"),
    ):
        raise KeyboardInterrupt
    assert stream.getvalue() == "cases: 0/3 case, 0 s (stopped)\n"


def test_auto_is_plain_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = make_progress("auto", stream=stream, clock=Clock())
    progress.note("encoder: fresh")
    with progress.bar(total=1, description="x", unit="step") as bar:
        bar.update()
    assert stream.getvalue() == "encoder: fresh\nx: 1/1 step, 0 s\n"


def test_auto_draws_a_bar_on_a_terminal():
    stream = Terminal()
    progress = make_progress("auto", stream=stream)
    progress.note("encoder: running")
    with progress.bar(total=4, description="encoder", unit="step", initial=1) as bar:
        bar.update(3, loss=0.5)
    text = stream.getvalue()
    assert "encoder: running\n" in text
    assert "4/4" in text
    assert "loss=0.5" in text


def test_none_is_silent(capsys):
    progress = make_progress("none")
    progress.note("x")
    with progress.bar(total=1, description="x", unit="step") as bar:
        bar.update(1, loss=1.0)
    assert capsys.readouterr() == ("", "")
