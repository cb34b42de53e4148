"""Stored maps as torch tensors that become real numbers on the device that trains.

Bytes cross the bus and wait in buffers as they are stored; int8 is multiplied by its scales where
they are used. On a CPU that would cost more than reading them.

Letters: h, w rows and columns of a map; t, u rows and columns of tiles of 16 x 16.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.encoding import LEVELS_INT8
from cache.reader import CacheReader
from cache.schema import TILE_SIDE, ArraySpec, scale_shape

__all__ = [
    "Stored",
    "TileMaps",
    "as_stored",
    "dequantise",
    "encode_maps",
    "names_to_read",
    "quantise",
    "read_stored",
    "to_stored",
]

_PLAIN = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True, eq=False)
class TileMaps:
    """Maps in int8 with their scales, used like a tensor until they are sent to a device.

    Attributes:
        tiles: int8 (..., h, w).
        scales: float32 (..., t, u).
    """

    tiles: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the maps."""
        return self.tiles.shape

    def to(
        self,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> Tensor:
        """Send both parts to a device and give the maps there, float32 unless said otherwise."""
        tiles = self.tiles.to(device, non_blocking=non_blocking)
        scales = self.scales.to(device, non_blocking=non_blocking)
        return dequantise(tiles, scales).to(dtype or torch.float32)

    def pin_memory(self) -> "TileMaps":
        """Copy to page-locked memory."""
        return TileMaps(tiles=self.tiles.pin_memory(), scales=self.scales.pin_memory())

    def reshape_rows(self, shape: Sequence[int]) -> "TileMaps":
        """Replace the first axis by several."""
        return TileMaps(
            tiles=self.tiles.reshape(*shape, *self.tiles.shape[1:]),
            scales=self.scales.reshape(*shape, *self.scales.shape[1:]),
        )

    def __getitem__(self, rows: Any) -> "TileMaps":  # noqa: ANN401 - whatever indexes a first axis
        return TileMaps(tiles=self.tiles[rows], scales=self.scales[rows])


Stored = Tensor | TileMaps
"""Maps as they are stored; both kinds have ``shape``, ``[rows]`` and ``to(device, dtype)``."""


def names_to_read(array: ArraySpec) -> tuple[str, ...]:
    """Give the stored arrays that make up one: itself, and its scales where it has them."""
    return (array.name,) if array.scale_name is None else (array.name, array.scale_name)


def as_stored(array: ArraySpec, arrays: Mapping[str, npt.NDArray[Any] | Tensor]) -> Stored:
    """Wrap stored rows without a copy; bfloat16 becomes a tensor of that type.

    Args:
        array: the array.
        arrays: name → stored rows, contiguous, that of its scales among them.
    """
    values = _tensor(arrays[array.name])
    if array.scale_name is not None:
        return TileMaps(tiles=values, scales=_tensor(arrays[array.scale_name]))
    return values.view(torch.bfloat16) if array.encoding == "bf16" else values


def read_stored(reader: CacheReader, name: str, rows: npt.ArrayLike) -> Stored:
    """Read rows of one array with all that belongs to it.

    Raises:
        KeyError, ValueError, CacheError: see ``CacheReader.read``.
    """
    array = reader.spec.array(name)
    return as_stored(array, {part: reader.read(part, rows) for part in names_to_read(array)})


def to_stored(
    values: Stored, device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Give real numbers on a device; the bytes cross over as they are stored.

    To a GPU they cross in the background where they lie in page-locked memory.

    Args:
        values: as stored.
        device: where they are wanted.
        dtype: of the result; a plain tensor keeps its own where None.
    """
    # Only towards a GPU: what comes from one is read at once.
    background = torch.device(device).type == "cuda"
    if isinstance(values, TileMaps):
        return values.to(device, dtype, non_blocking=background)
    there = values.to(device, non_blocking=background)
    return there if dtype is None else there.to(dtype)


def encode_maps(array: ArraySpec, values: Tensor) -> dict[str, Tensor]:
    """Give the stored arrays of rows, by name, on the device of ``values``.

    Values that are not finite or too large for the type come out as such, in the values or the
    scales: the writer refuses them by row.

    Args:
        array: where they go; not an array of scales.
        values: (n, *shape of a row).
    """
    if array.scale_name is not None:
        tiles, scales = quantise(values)
        return {array.name: tiles, array.scale_name: scales}
    if array.encoding == "bf16":
        bits = values.float().to(torch.bfloat16).contiguous().view(torch.uint16)
        return {array.name: bits}
    return {array.name: values.to(_PLAIN[array.dtype]).contiguous()}


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise maps (..., h, w) as ``cache.encoding.quantise_tiles`` does, to the same bits."""
    height, width = values.shape[-2:]
    rows, columns = scale_shape((height, width))
    margins = (0, columns * TILE_SIDE - width, 0, rows * TILE_SIDE - height)
    padded = F.pad(values.float(), margins) if any(margins) else values.float()
    tiled = padded.reshape(*values.shape[:-2], rows, TILE_SIDE, columns, TILE_SIDE)
    peaks = tiled.abs().amax(dim=(-3, -1))
    # Division, not a product with the inverse, which CUDA makes of a division by a number: so both
    # libraries round it the same way.
    scales = peaks / torch.full_like(peaks, LEVELS_INT8)
    divisor = torch.where(scales > 0, scales, 1.0)[..., :, None, :, None]
    tiles = (tiled / divisor).round().clamp(-LEVELS_INT8, LEVELS_INT8).to(torch.int8)
    whole = tiles.reshape(padded.shape)[..., :height, :width]
    return whole.contiguous(), scales


def dequantise(tiles: Tensor, scales: Tensor) -> Tensor:
    """Give float32 (..., h, w) of int8 (..., h, w) and scales (..., t, u)."""
    height, width = tiles.shape[-2:]
    if height % TILE_SIDE == 0 and width % TILE_SIDE == 0:
        *leading, rows, columns = scales.shape
        tiled = tiles.reshape(*leading, rows, TILE_SIDE, columns, TILE_SIDE)
        return (tiled * scales[..., :, None, :, None]).reshape(tiles.shape)
    wide = scales.repeat_interleave(TILE_SIDE, dim=-2).repeat_interleave(TILE_SIDE, dim=-1)
    return tiles * wide[..., :height, :width]


def _tensor(values: npt.NDArray[Any] | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values
    return torch.from_numpy(np.ascontiguousarray(values))
