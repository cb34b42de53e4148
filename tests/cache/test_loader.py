import gc
import threading
import time

import numpy as np
import pytest
import torch

from cache import CacheCorruptError, CacheReader
from cache.loader import BatchLoader
from cache.shuffle import ShuffledRows
from tests.cache.example import ARRAYS, values_of

BY_NAME = {array.name: array for array in ARRAYS}
NAMES = ("features_s4", "features_s8", "image", "label")


@pytest.fixture(autouse=True)
def _others():
    """Threads that an earlier test has left to the garbage collector are not this one's."""
    _OTHERS.clear()
    _OTHERS.update(threading.enumerate())


_OTHERS = set()


def threads():
    return [t for t in threading.enumerate() if t.name == "cache-loader" and t not in _OTHERS]


def make(reader, *, arrays=NAMES, seed=3, **options):
    return BatchLoader(reader, arrays, ShuffledRows(range(28), 6, seed=seed), **options)


def check(batch):
    for name, tensor in batch.arrays.items():
        np.testing.assert_array_equal(tensor.numpy(), values_of(BY_NAME[name], batch.rows.tolist()))


@pytest.mark.parametrize("count", [1, 2])
def test_batches_are_those_of_the_order(reader, count):
    order = ShuffledRows(range(28), 6, seed=3)
    with make(reader, threads=count) as loader:
        for step in range(2 * loader.steps_per_epoch):
            batch = next(loader)
            assert batch.step == step
            assert batch.rows.tolist() == order.batch(step).tolist()
            check(batch)
    assert threads() == []


def test_tensors_are_views_of_a_ring(reader):
    with make(reader, threads=1, depth=1, keep=2) as loader:
        batches = [next(loader) for _ in range(4)]
        check(batches[3])
        check(batches[2])  # keep=2: the one before is still there
        places = [batch.arrays["image"].data_ptr() for batch in batches]
        assert len(set(places)) == 4
        assert next(loader).arrays["image"].data_ptr() == places[0]
        assert batches[0].arrays["features_s4"].dtype == torch.float16


def test_copies_outlive_the_ring(reader):
    with make(reader, depth=1) as loader:
        batch = next(loader)
        rows, copy = batch.rows.tolist(), batch.to("cpu")
        for _ in range(8):
            next(loader)
        np.testing.assert_array_equal(copy["image"].numpy(), values_of(BY_NAME["image"], rows))


def test_a_position_is_taken_up_exactly(reader):
    with make(reader, threads=2) as loader:
        for _ in range(7):
            next(loader)
        state = loader.state_dict()
        assert (state["step"], state["epoch"]) == (7, 1)
        expected = [next(loader).rows.tolist() for _ in range(4)]
    with make(reader, threads=1, depth=4) as again:
        next(again)
        again.load_state_dict(state)
        assert [next(again).rows.tolist() for _ in range(4)] == expected
    with (
        make(reader, seed=4) as other,
        pytest.raises(ValueError, match="seed is 3 there, 4 here"),
    ):
        other.load_state_dict(state)


def test_an_error_comes_with_its_batch_and_ends_the_threads(copy):
    file = copy / "arrays/image/c/3/0/0/0"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    order = ShuffledRows(range(28), 4, seed=0)
    bad = next(step for step in range(7) if 15 in order.batch(step))
    with BatchLoader(CacheReader(copy), ["image"], order) as loader:
        for _ in range(bad):
            check(next(loader))
        with pytest.raises(CacheCorruptError, match="row 15 does not fit"):
            next(loader)
        assert threads() == []


def test_a_forgotten_loader_ends_its_threads(reader):
    loader = make(reader, threads=2)
    next(loader)
    del loader
    gc.collect()
    limit = time.monotonic() + 60
    while threads() and time.monotonic() < limit:
        time.sleep(0.01)
    assert threads() == []


def test_waiting_is_measured(reader):
    with make(reader) as loader:
        started = time.perf_counter()
        next(loader)
        assert 0 < loader.wait_seconds <= time.perf_counter() - started


def test_wrong_settings_are_refused(reader):
    with pytest.raises(ValueError, match="one row space"):
        make(reader, arrays=("image", "mask_iou"))
    with pytest.raises(ValueError, match="at least 1"):
        make(reader, threads=0)
    with pytest.raises(KeyError, match="no array 'picture'"):
        make(reader, arrays=("picture",))
