import numpy as np

from cache import ArraySpec
from cache.buffers import make_ring
from cache.placement import placed_zeros

ARRAYS = [
    ArraySpec(name="a", rows="slices", shape=(2, 4096), dtype="float16"),
    ArraySpec(name="b", rows="slices", shape=(3,), dtype="float32"),
]


def test_batches_begin_a_quarter_into_a_page():
    values = placed_zeros((3, 5, 7), "float16")
    assert values.ctypes.data % 4096 == 1024
    assert (values.shape, values.dtype) == ((3, 5, 7), np.float16)
    assert values.flags.c_contiguous
    assert not values.any()


def test_so_do_those_of_a_ring():
    for slot in make_ring(ARRAYS, slots=2, batch_size=3):
        for array in ARRAYS:
            view, tensor = slot.views[array.name], slot.tensors[array.name]
            assert view.ctypes.data % 4096 == 1024
            assert view.shape == (3, *array.shape)
            assert view.dtype == array.dtype
            view[...] = 2
            assert (tensor == 2).all()
