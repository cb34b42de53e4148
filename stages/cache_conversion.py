"""One shard of a cache as another cache stores it."""

import numpy as np
import torch

from cache import ArraySpec, CacheReader, CacheSpec
from cache.schema import RowSpace
from cache.stored import encode_maps, names_to_read, read_stored, to_stored
from stages.cache_shards import ShardSink

__all__ = ["convert_shard"]

_ROWS_AT_ONCE = 8
"""Rows that are decoded at a time; a shard is in memory as it will be stored."""


def convert_shard(
    reader: CacheReader, writer: ShardSink, space: RowSpace, k: int
) -> dict[str, np.ndarray]:
    """Every stored array of one shard of the new cache.

    Args:
        reader: of the old cache, with the same rows.
        writer: of the new one.
        space: the row space.
        k: number of the shard.

    Raises:
        CacheError: the old rows are damaged.
        ValueError: a value does not fit into the type.
    """
    rows = writer.rows_of_shard(space, k)
    arrays: dict[str, np.ndarray] = {}
    for array in writer.spec.arrays_of(space):
        if array.encoding != "scale_tile16":
            arrays |= _converted(reader, writer.spec, array, rows)
    return arrays


def _converted(
    reader: CacheReader, spec: CacheSpec, array: ArraySpec, rows: range
) -> dict[str, np.ndarray]:
    """Rows of one array, and their scales, as they are to be stored."""
    names = names_to_read(array)
    if reader.spec.array(array.name) == array:
        return {name: reader.read(name, rows) for name in names}
    made = {
        name: np.empty((len(rows), *spec.array(name).shape), spec.array(name).dtype)
        for name in names
    }
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        values = to_stored(read_stored(reader, array.name, part), "cpu", torch.float32)
        for name, stored in encode_maps(array, values).items():
            made[name][start : start + len(part)] = stored.numpy()
    return made
