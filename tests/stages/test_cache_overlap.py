"""Three roles at a time: order, bounds, and how they end."""

import signal
import threading
import time

import pytest

from cache import CacheSpaceError
from efficient_medsam2.errors import DataError
from stages.cache_overlap import PIECES_AHEAD, SHARDS_BEHIND, Overlap


def numbers(count, log=None):
    try:
        for number in range(count):
            if log is not None:
                log.append(number)
            yield number
    finally:
        if log is not None:
            log.append("closed")


def grown(items, count):
    """Wait until there are so many, and then a little for more."""
    deadline = time.monotonic() + 60
    while len(items) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)


def doubled(overlap):
    for piece in overlap.pieces():
        overlap.hand_over(2 * piece)


def run(pieces, write):
    overlap = Overlap(pieces, write)
    with overlap:
        doubled(overlap)
    return overlap


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"cache-reader", "cache-writer"}


def test_everything_is_written_once_and_in_order():
    written = []
    run(numbers(200), written.append)
    assert written == [2 * number for number in range(200)]


def test_nothing_to_do_ends_at_once():
    written = []
    run(numbers(0), written.append)
    assert written == []


def test_reading_stays_ahead_by_a_bounded_number():
    log = []
    overlap = Overlap(numbers(50, log), lambda _: None)
    with overlap:
        pieces = overlap.pieces()
        next(pieces)
        # One in hand, one ready, one read and waiting to be handed over.
        grown(log, PIECES_AHEAD + 1)
        assert len(log) == PIECES_AHEAD + 1
        for _ in pieces:
            pass
    assert log[-1] == "closed"


def test_shards_in_flight_are_bounded():
    gate, made, written = threading.Event(), [], []

    def write(shard):
        gate.wait()
        written.append(shard)

    def look():
        grown(made, SHARDS_BEHIND + 1)
        seen.append(len(made))
        gate.set()

    seen = []
    threading.Thread(target=look).start()
    overlap = Overlap(numbers(6), write)
    with overlap:
        for piece in overlap.pieces():
            made.append(piece)
            overlap.hand_over(piece)
    assert seen == [SHARDS_BEHIND + 1]
    assert written == list(range(6))


def test_a_failing_reader_ends_the_run_with_its_error():
    def pieces():
        yield 0
        raise DataError("slice 1 is damaged")

    with pytest.raises(DataError, match="slice 1"):
        run(pieces(), lambda _: None)


def test_a_reader_that_fails_while_closing_is_heard():
    def pieces():
        try:
            yield from range(100)
        finally:
            raise DataError("cannot close")

    with pytest.raises(DataError, match="cannot close"):
        run(pieces(), lambda _: None)


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_full_disk_ends_the_run_with_its_error(at):
    written, log = [], []

    def write(shard):
        if len(written) == at:
            raise CacheSpaceError("no room")
        written.append(shard)

    with pytest.raises(CacheSpaceError, match="no room"):
        run(numbers(10, log), write)
    assert written == [2 * number for number in range(at)]
    assert log[-1] == "closed"


def test_a_failing_teacher_ends_the_others_and_the_shard_in_hand_is_written():
    written, log = [], []

    def write(shard):
        time.sleep(0.02)
        written.append(shard)

    def divide(overlap):
        for piece in overlap.pieces():
            if piece == 3:
                raise ZeroDivisionError
            overlap.hand_over(piece)

    overlap = Overlap(numbers(1000, log), write)
    with pytest.raises(ZeroDivisionError), overlap:
        divide(overlap)
    assert written == [0, 1, 2]
    assert log[-1] == "closed"
    assert len(log) < 10


@pytest.mark.parametrize("waiting_for", ["reader", "teacher", "writer"])
def test_an_interrupt_ends_the_run_wherever_it_waits(waiting_for):
    there, go, two = threading.Event(), threading.Event(), threading.Event()
    main = threading.main_thread().ident

    def wait_at(role, number):
        if (role, number) == (waiting_for, 2):
            there.set()
            go.wait()

    def interrupt():
        there.wait()
        two.wait()
        time.sleep(0.05)  # more likely than not, the others wait by now too
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        go.set()

    def pieces():
        for number in range(100):
            wait_at("reader", number)
            yield number

    written = []

    def write(shard):
        wait_at("writer", shard)
        written.append(shard)
        if len(written) == 2:
            two.set()

    def teach(overlap):
        for piece in overlap.pieces():
            wait_at("teacher", piece)
            overlap.hand_over(piece)

    interrupter = threading.Thread(target=interrupt)
    overlap = Overlap(pieces(), write)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt), overlap:
        teach(overlap)
    interrupter.join()
    assert written[:2] == [0, 1]
    assert written == list(range(len(written)))


def test_each_role_has_its_time():
    def pieces():
        for number in range(3):
            time.sleep(0.01)
            yield number

    overlap = Overlap(pieces(), lambda _: time.sleep(0.03))
    with overlap:
        for piece in overlap.pieces():
            time.sleep(0.005)
            overlap.hand_over(piece)
    times = overlap.times
    assert 0.03 <= times.reader <= times.seconds
    assert 0.015 <= times.teacher < times.seconds
    assert 0.09 <= times.writer <= times.seconds
