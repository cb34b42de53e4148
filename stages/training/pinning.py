"""Batches in page-locked memory, out of which a GPU fetches while the step before still runs.

The thread that reads ahead pays for the copy. PyTorch keeps such memory for the next batch, and
does not hand it out again before the GPU has what it fetched.
"""

from typing import TypeVar

from cache.stored import Stored, TileMaps
from stages.training.tensors import changed_tensors

__all__ = ["pinned"]

T = TypeVar("T")


def pinned(batch: T) -> T:
    """Give a batch whose tensors lie in page-locked memory, or on a device already.

    Needs a CUDA device.
    """

    def lock(stored: Stored) -> Stored:
        tensor = stored.tiles if isinstance(stored, TileMaps) else stored
        return stored.pin_memory() if tensor.device.type == "cpu" else stored

    return changed_tensors(batch, lock)
