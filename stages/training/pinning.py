"""Batches in page-locked memory, out of which a GPU fetches while the step before still runs.

The thread that reads ahead pays for the copy. PyTorch keeps such memory for the next batch, and
does not hand it out again before the GPU has what it fetched.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from torch import Tensor

from cache.stored import Stored, TileMaps

__all__ = ["changed_tensors", "pinned"]

T = TypeVar("T")


def pinned(batch: T) -> T:
    """Give a batch whose tensors lie in page-locked memory, or on a device already.

    Needs a CUDA device.
    """

    def lock(stored: Stored) -> Stored:
        tensor = stored.tiles if isinstance(stored, TileMaps) else stored
        return stored.pin_memory() if tensor.device.type == "cpu" else stored

    return changed_tensors(batch, lock)


def changed_tensors(batch: T, change: Callable[[Stored], Stored]) -> T:
    """Give a copy of a record, records inside it included, with every tensor changed.

    Args:
        batch: a dataclass instance; what is neither such nor a tensor stays as it is.
        change: makes of a tensor, or of maps in int8 with their scales, what takes its place.
    """
    value: Any = batch
    if isinstance(value, Tensor | TileMaps):
        return cast(T, change(value))
    if not is_dataclass(value) or isinstance(value, type):
        return batch
    parts = {
        part.name: changed_tensors(getattr(value, part.name), change) for part in fields(value)
    }
    return cast(T, replace(value, **parts))
