import gc
import itertools
import threading
import time

import pytest

from cache.prefetch import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "cache-prefetch"]


def wait_until(condition):
    limit = time.monotonic() + 5
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


def test_waiting_is_measured():
    slow = prefetch(lambda step: time.sleep(0.02), range(5))
    list(slow)
    assert 0.05 < slow.wait_seconds < 2
    ready = prefetch(lambda step: step, range(2))
    assert wait_until(lambda: threads() == [] or ready._ready.full())
    list(ready)
    assert ready.wait_seconds < 0.05


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth"):
        prefetch(lambda step: step, range(2), depth=0)
