import numpy as np
import pytest

from cache.shuffle import ShuffledRows


def test_every_row_comes_once_an_epoch_in_a_fresh_order():
    rows = np.arange(100, 160)
    order = ShuffledRows(rows, 12, seed=5)
    assert order.steps_per_epoch == 5
    epochs = [np.concatenate([order.batch(e * 5 + s) for s in range(5)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == rows.tolist()
    assert epochs[0].tolist() != epochs[1].tolist() != epochs[2].tolist()


def test_a_step_is_a_pure_function_of_seed_and_step():
    first, second = (ShuffledRows(range(50), 8, seed=3) for _ in range(2))
    forwards = [first.batch(step).tolist() for step in range(30)]
    backwards = [second.batch(step).tolist() for step in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert ShuffledRows(range(50), 8, seed=4).batch(0).tolist() != forwards[0]


def test_the_order_is_the_same_on_every_machine():
    # Recorded: a resumed run on another machine or numpy must see the same rows.
    order = ShuffledRows(range(10), 4, seed=0)
    assert [order.batch(step).tolist() for step in range(4)] == [
        [4, 6, 2, 7],
        [3, 5, 9, 0],
        [8, 1, 4, 6],
        [9, 1, 3, 8],
    ]


def test_the_last_batch_is_filled_up_from_the_start_of_its_epoch():
    order = ShuffledRows(range(10), 4, seed=1)
    assert order.steps_per_epoch == 3
    first, _, last = (order.batch(step) for step in range(3))
    assert len(last) == 4
    assert last[2:].tolist() == first[:2].tolist()


def test_a_batch_may_be_larger_than_the_set():
    order = ShuffledRows([7, 8, 9], 8, seed=0)
    assert order.steps_per_epoch == 1
    batch = order.batch(3)
    assert sorted(batch[:3]) == [7, 8, 9]
    assert np.bincount(batch)[7:].min() >= 2


def test_ranks_share_the_batches_of_one_larger_order():
    whole = ShuffledRows(range(50), 12, seed=3)
    ranks = [ShuffledRows(range(50), 4, seed=3, rank=rank, world_size=3) for rank in range(3)]
    for step in range(3 * whole.steps_per_epoch):
        parts = [order.batch(step) for order in ranks]
        assert np.concatenate(parts).tolist() == whole.batch(step).tolist()
    with pytest.raises(ValueError, match="rank must be 0 to 1, not 2"):
        ShuffledRows([1], 1, seed=0, rank=2, world_size=2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no rows"):
        ShuffledRows([], 4, seed=0)
    with pytest.raises(ValueError, match="batch_size"):
        ShuffledRows([1], 0, seed=0)
    with pytest.raises(ValueError, match="counted from 0"):
        ShuffledRows([1], 1, seed=0).batch(-1)
