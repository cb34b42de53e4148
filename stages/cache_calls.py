"""Calls of the teacher: numpy in, numpy of the stored type out, precision and device in between.

Shape letters: B rows, C channels, S network input in pixels.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from cache import ArraySpec
from cache.stored import Stored, encode_maps
from efficient_medsam2.networks.records import Prompts, SliceRecord
from stages.errors import StageConfigError, StageMemoryError

if TYPE_CHECKING:
    from efficient_medsam2.teachers.protocol import SliceTeacher

__all__ = ["Made", "Precision", "TeacherCalls", "memory_errors"]

Precision = Literal["no", "bf16", "fp16"]

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Made:
    """Arrays that are on their way from the device.

    Args:
        host: name → tensor on the CPU that is filled or being filled.
        ready: passed by the device once it has filled them; None where they are.
        beside: further arrays, which are here already.
    """

    def __init__(
        self,
        host: Mapping[str, Tensor],
        ready: torch.cuda.Event | None,
        beside: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._host = host
        self._ready = ready
        self._beside = dict(beside or {})

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays; waits for the device."""
        if self._ready is not None:
            self._ready.synchronize()
        return {name: tensor.numpy() for name, tensor in self._host.items()} | self._beside

    def beside(self, arrays: Mapping[str, np.ndarray]) -> "Made":
        """Together with arrays that are here already."""
        return Made(self._host, self._ready, self._beside | dict(arrays))


class TeacherCalls:
    """A teacher on its device, in one precision, with the encoding of each array.

    What comes back is encoded on the device, so that no more bytes than are stored cross the bus,
    and copied while the device goes on with the next batch.

    Args:
        teacher: on ``device``, in ``eval`` mode.
        device: where it is.
        precision: of its computation; ``no`` is float32.
        stored: the arrays of a cache; those of real numbers are made here.

    Raises:
        StageConfigError: this device has no such autocast.
    """

    def __init__(
        self,
        teacher: "SliceTeacher",
        *,
        device: torch.device,
        precision: Precision,
        stored: Iterable[ArraySpec],
    ) -> None:
        self.teacher = teacher
        self.device = device
        self._precision: Precision = precision
        self._stored = {array.name: array for array in stored}
        if device.type == "cuda" and precision == "no":
            # Convolutions would keep 10 bits of a float32's 23 otherwise.
            torch.backends.cudnn.allow_tf32 = False
        try:
            with self.autocast():
                pass
        except RuntimeError as error:
            raise StageConfigError(
                f"precompute.precision={precision} does not work on {device}: {error}. "
                "Compute in float32: --set precompute.precision=no"
            ) from error

    @property
    def pinned(self) -> bool:
        """Whether what goes to the device should lie in pinned memory."""
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the computation."""
        dtype = _AUTOCAST_TYPES.get(self._precision)
        return torch.autocast(
            self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
        )

    def host(self, values: np.ndarray) -> Tensor:
        """An array as a tensor that can be sent to the device while it works."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.pin_memory() if self.pinned else tensor

    def host_stored(self, values: Stored) -> Stored:
        """Stored maps in memory that can be sent to the device while it works."""
        return values.pin_memory() if self.pinned else values

    def send(self, values: Stored, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor, or stored maps decoded, on the device."""
        there = values.to(self.device, non_blocking=self.pinned)
        return there if dtype is None else there.to(dtype)

    @torch.no_grad()
    def encode(self, image_BCSS: Tensor) -> Made:
        """``features_<level>`` of uint8 images (B, C, S, S) on the CPU."""
        with self.autocast():
            pixels = self.teacher.network_input(self.send(image_BCSS))
            levels = self.teacher.encode(pixels)
        return self.back((f"features_{level}", values) for level, values in levels.items())

    @torch.no_grad()
    def answer(self, features: Mapping[str, Tensor], prompts: Prompts) -> SliceRecord:
        """The teacher's answer on features that are on the device."""
        with self.autocast():
            return self.teacher.answer(features, prompts.to(self.device))

    def back(self, values: Iterable[tuple[str, Tensor]]) -> Made:
        """Tensors by array name, encoded as they are stored and sent to the CPU."""
        host: dict[str, Tensor] = {}
        for name, tensor in values:
            for part, stored in encode_maps(self._stored[name], tensor).items():
                if self.pinned:
                    pinned = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True)
                    host[part] = pinned.copy_(stored, non_blocking=True)
                else:
                    host[part] = stored
        if not self.pinned:
            return Made(host, None)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
        return Made(host, ready)


@contextmanager
def memory_errors(batch_size: int, device: torch.device) -> Iterator[None]:
    """Turn a device's or the machine's "out of memory" into what the user can do about it.

    Raises:
        StageMemoryError: a batch does not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and (
            "can't allocate memory" not in str(error)
        ):
            raise
        raise StageMemoryError(
            f"{device}: not enough memory for batches of {batch_size}: {error}. Finished shards "
            "are kept; go on with smaller batches: efficient-medsam2 precompute --set "
            f"precompute.batch_size={max(batch_size // 2, 1)}"
        ) from error
