"""A ring of batch buffers that are filled again and again.

Fresh memory for every batch costs more than reading into it: the kernel has to clear each page.

Letters: K slots of the ring, B rows of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.schema import ArraySpec

__all__ = ["BatchSlot", "make_ring"]


@dataclass(kw_only=True, eq=False)
class BatchSlot:
    """Memory of one batch.

    Attributes:
        tensors: array name → (B, *shape of a row) in the stored type.
        views: the same memory as numpy arrays, for the reader.
        copied: recorded on the stream that copies the batch to a GPU; the slot may be filled
            again when it has passed.
    """

    tensors: Mapping[str, Tensor]
    views: Mapping[str, npt.NDArray[Any]]
    copied: Any = None

    def wait(self) -> None:
        """Wait until copies of the slot to a GPU have ended."""
        if self.copied is not None:
            self.copied.synchronize()
            self.copied = None


def make_ring(arrays: Sequence[ArraySpec], *, slots: int, batch_size: int) -> list[BatchSlot]:
    """Allocate K slots, in page-locked memory where CUDA is present.

    Args:
        arrays: what a batch holds.
        slots: K.
        batch_size: B.
    """
    pin = torch.cuda.is_available()
    ring = []
    for _ in range(slots):
        tensors: dict[str, Tensor] = {}
        views: dict[str, npt.NDArray[Any]] = {}
        for array in arrays:
            shape = (batch_size, *array.shape)
            kind = torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
            tensor = torch.empty(shape, dtype=kind, pin_memory=pin)
            tensor.zero_()  # pages are made here, not under the first batches
            tensors[array.name], views[array.name] = tensor, tensor.numpy()
        ring.append(BatchSlot(tensors=tensors, views=views))
    return ring
