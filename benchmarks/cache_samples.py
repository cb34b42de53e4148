"""Samples for the cache benchmarks: feature maps as a 512-pixel teacher gives them.

Noise with heavy tails, because that is what such features look like to a compressor or quantiser.
Each sample is made of its number alone, so that every format holds the same bytes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache import CacheIndex, CacheSpec, CaseRow, SliceRow, TeacherIdentity
from cache.encoding import StoredWord, array_specs

__all__ = [
    "LEVELS",
    "SAMPLE_BYTES",
    "Batch",
    "empty_batch",
    "index",
    "placed_zeros",
    "sample",
    "samples",
    "spec",
]

Float16 = npt.NDArray[np.float16]
Batch = dict[str, Float16]

LEVELS: dict[str, tuple[int, int, int]] = {
    "features_s4": (32, 128, 128),
    "features_s8": (64, 64, 64),
    "features_s16": (256, 32, 32),
}
SAMPLE_BYTES = sum(int(np.prod(shape)) * 2 for shape in LEVELS.values())

_POOL = np.random.default_rng(0).standard_t(3, 1 << 22).astype(np.float16)


def sample(number: int) -> Batch:
    """Give one sample's levels, each (C, h, w) float16."""
    made = {}
    for position, (name, shape) in enumerate(LEVELS.items()):
        size = int(np.prod(shape))
        # A piece of one long noise, at a place of its own, is much faster than noise of its own.
        start = (number * 104_729 + position * 1_299_709) % (len(_POOL) - size)
        values = _POOL[start : start + size].reshape(shape).copy()
        values.flat[0] = number % 2048
        made[name] = values
    return made


def samples(count: int) -> Iterator[Batch]:
    """Give samples 0 to ``count - 1``."""
    return (sample(number) for number in range(count))


_PAGE, _PLACE = 4096, 1024


def placed_zeros(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Give zeros whose memory begins a quarter into a page.

    Some processors copy several times slower to a place that lies, in its page, a few bytes behind
    the place in its own that is read (glibc's bug 30994). Allocators begin 16 bytes into a page,
    and the yardstick's samples at the start of one.
    """
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    memory = np.zeros(size + _PAGE, dtype=np.uint8)
    start = (_PLACE - memory.ctypes.data) % _PAGE
    return memory[start : start + size].view(kind).reshape(shape)


def empty_batch(size: int) -> Batch:
    """Give memory for a batch, its pages already there, where no format is slowed by its place."""
    return {name: placed_zeros((size, *shape), np.float16) for name, shape in LEVELS.items()}


def spec(store: str, word: StoredWord = "fp16") -> CacheSpec:
    """Give the spec of a cache of these samples in a format, ``zarr`` or ``hdf5``, and type."""
    return CacheSpec.model_validate(
        {
            "teacher": TeacherIdentity(name="noise", weights_sha256="0" * 64, config={}),
            "preprocessing": {},
            "precompute": {},
            "data_sha256": "0" * 64,
            "arrays": tuple(
                array
                for name, shape in LEVELS.items()
                for array in array_specs(name, "slices", shape, word)
            ),
            "format": store,
            "created_by": "benchmarks",
        }
    )


def index(count: int) -> CacheIndex:
    """Give an index of ``count`` slices of one case."""
    case = CaseRow(
        case_id="noise",
        patient_id="noise",
        split="train",
        modality="",
        depth=count,
        height=512,
        width=512,
        spacing_mm=(1.0, 1.0, 1.0),
    )
    rows = [SliceRow(row=row, case_id="noise", slice_index=row, view=0) for row in range(count)]
    return CacheIndex.from_rows(cases=[case], slices=rows)
