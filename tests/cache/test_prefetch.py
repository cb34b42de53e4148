import gc
import itertools
import threading
import time
from types import SimpleNamespace

import pytest

from cache.prefetch import prefetch


@pytest.fixture(autouse=True)
def _others():
    """Threads that an earlier test has left to the garbage collector are not this one's."""
    _OTHERS.clear()
    _OTHERS.update(threading.enumerate())


_OTHERS = set()


def threads():
    return [t for t in threading.enumerate() if t.name == "cache-prefetch" and t not in _OTHERS]


def wait_until(condition):
    limit = time.monotonic() + 60
    while not condition() and time.monotonic() < limit:
        time.sleep(0.005)
    return condition()


def test_items_come_in_order_and_the_thread_ends():
    assert list(prefetch(lambda step: step * step, range(50))) == [s * s for s in range(50)]
    assert threads() == []


def test_an_error_comes_after_the_items_before_it():
    def make(step):
        if step == 3:
            raise KeyError("row 3")
        return step

    items = prefetch(make, range(10))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="row 3"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)
    assert threads() == []


def test_an_error_of_the_steps_comes_too():
    with pytest.raises(TypeError):
        list(prefetch(lambda step: step, iter(lambda: 1 + None, 0)))


def test_it_does_not_run_far_ahead():
    made = []
    with prefetch(made.append, itertools.count(), depth=2) as items:
        next(items)
        assert wait_until(lambda: len(made) == 4)  # 1 taken, 2 waiting, 1 in the making
        time.sleep(0.1)
        assert len(made) == 4
    assert threads() == []


def test_a_consumer_that_stops_ends_the_thread():
    items = prefetch(lambda step: step, itertools.count())
    assert next(items) == 0
    items.close()
    items.close()
    assert threads() == []
    with pytest.raises(StopIteration):
        next(items)


def test_a_forgotten_iterator_ends_the_thread():
    for item in prefetch(lambda step: step, itertools.count()):
        if item == 2:
            break
    gc.collect()
    assert wait_until(lambda: threads() == [])


class Clock:
    """Goes on when it is told to, and tells how often it was looked at."""

    def __init__(self):
        self.now, self.looks, self.changed = 0.0, 0, threading.Condition()

    def __call__(self):
        with self.changed:
            self.looks += 1
            self.changed.notify_all()
            return self.now


def test_waiting_is_measured_and_nothing_else(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("cache.prefetch.time", SimpleNamespace(perf_counter=clock))

    def make(step):
        with clock.changed:  # two looks for each item before; the next one begins the wait
            assert clock.changed.wait_for(lambda: clock.looks > 2 * step, timeout=60)
            clock.now += 3
        return step

    with prefetch(make, range(3), depth=1) as items:
        for step in range(3):
            assert next(items) == step
            assert items.wait_seconds == 3 * (step + 1)
            clock.now += 100  # the consumer works


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth"):
        prefetch(lambda step: step, range(2), depth=0)
