"""How real numbers are stored: as they are, as bfloat16, or as int8 tiles with scales.

``bf16``: the upper 16 bits of a float32, rounded to nearest even, in a ``uint16`` array, because
core Zarr v3 has no bfloat16. ``int8_tile16``: maps (..., h, w) are cut into tiles of 16 x 16, for
each of which a float32 scale, its largest magnitude / 127, stands in an array of its own
(``scale_tile16``); a value is its int8 times its tile's scale. A float16 scale would save 4 bytes
in 516 and lose tiles of small values: below 6e-8 it is zero.

This is numpy, for tools and writers; ``cache.stored`` does the same on the device that trains, to
the last bit.

Letters: h, w rows and columns of a map; t, u rows and columns of tiles.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from cache.schema import SCALE_SUFFIX, TILE_SIDE, ArraySpec, RowSpace, scale_shape

__all__ = [
    "ENCODING_ATTRIBUTES",
    "STORED_WORDS",
    "StoredWord",
    "all_finite",
    "array_specs",
    "bf16_bits",
    "decode",
    "decoded_rows",
    "dequantise_tiles",
    "encode",
    "from_bf16_bits",
    "quantise_tiles",
    "stored_word",
]

StoredWord = Literal["fp16", "bf16", "fp32", "int8"]
STORED_WORDS: tuple[StoredWord, ...] = ("fp16", "bf16", "fp32", "int8")
"""What a config can ask for."""

LEVELS_INT8 = 127

ENCODING_ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "bf16": {
        "encoding": "bf16",
        "meaning": "the upper 16 bits of a float32: value = float32 of (bits << 16)",
    },
    "int8_tile16": {
        "encoding": "int8_tile16",
        "meaning": (
            f"value = int8 * scale of its {TILE_SIDE} x {TILE_SIDE} tile of the last two axes, "
            f"which stands in the array of this name with {SCALE_SUFFIX} behind it"
        ),
    },
    "scale_tile16": {
        "encoding": "scale_tile16",
        "meaning": f"scales of the {TILE_SIDE} x {TILE_SIDE} tiles of the array without "
        f"{SCALE_SUFFIX} in its name",
    },
}
"""Encoding → what the array's own metadata say about it, for readers that are not ours."""

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


def array_specs(
    name: str, rows: RowSpace, shape: tuple[int, ...], word: StoredWord
) -> tuple[ArraySpec, ...]:
    """Give the stored arrays of real numbers: one, or values and their scales.

    Args:
        name: of the array.
        rows: its row space.
        shape: of one row.
        word: how it is stored.
    """
    if word in ("fp16", "fp32"):
        dtype = "float16" if word == "fp16" else "float32"
        return (ArraySpec(name=name, rows=rows, shape=shape, dtype=cast(Any, dtype)),)
    if word == "bf16":
        return (ArraySpec(name=name, rows=rows, shape=shape, dtype="uint16", encoding="bf16"),)
    return (
        ArraySpec(name=name, rows=rows, shape=shape, dtype="int8", encoding="int8_tile16"),
        ArraySpec(
            name=name + SCALE_SUFFIX,
            rows=rows,
            shape=scale_shape(shape),
            dtype="float32",
            encoding="scale_tile16",
        ),
    )


def stored_word(array: ArraySpec) -> str:
    """Name an array's encoding as a config does; plain integers by their type."""
    words = {"bf16": "bf16", "int8_tile16": "int8", "scale_tile16": "int8"}
    plain = {"float16": "fp16", "float32": "fp32"}
    return words.get(array.encoding) or plain.get(array.dtype, array.dtype)


def encode(array: ArraySpec, values: Array) -> dict[str, Array]:
    """Give the stored arrays of rows of one array, by name.

    Args:
        array: where they go; not an array of scales.
        values: (n, *shape of a row), real numbers.

    Raises:
        ValueError: a value is not finite, or too large for the stored type.
    """
    if not array.is_float:
        return {array.name: values.astype(array.dtype)}
    if not np.isfinite(values).all():
        raise ValueError(f"{array.name}: values that are not finite cannot be stored")
    if array.encoding == "int8_tile16":
        assert array.scale_name is not None
        tiles, scales = quantise_tiles(values.astype(np.float32))
        return {array.name: tiles, array.scale_name: scales}
    if array.encoding == "bf16":
        stored = bf16_bits(values.astype(np.float32))
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(array.dtype)
    if not all_finite(array, stored):
        raise ValueError(f"{array.name}: values are too large for {stored_word(array)}")
    return {array.name: stored}


def decode(array: ArraySpec, values: Array, scales: Float32 | None = None) -> Array:
    """Give what stored values mean: float32 where they are encoded, else as they are.

    Args:
        array: their array.
        values: (n, *shape of a row) as stored.
        scales: (n, *shape of a row of scales) where the array has them.
    """
    if array.encoding == "bf16":
        return from_bf16_bits(values)
    if array.encoding == "int8_tile16":
        assert scales is not None
        return dequantise_tiles(values, scales)
    return values


def decoded_rows(array: ArraySpec, arrays: Mapping[str, Array]) -> Iterator[Array]:
    """Give rows of an array one by one, decoded, to bound the memory.

    Args:
        array: the array.
        arrays: name → stored rows, that of its scales among them.
    """
    scales = None if array.scale_name is None else arrays[array.scale_name]
    for row, values in enumerate(arrays[array.name]):
        yield decode(array, values, None if scales is None else scales[row])


def all_finite(array: ArraySpec, values: Array) -> bool:
    """Whether stored values of a float array mean finite numbers (int8 always does)."""
    if array.encoding == "bf16":
        return bool(((values & 0x7F80) != 0x7F80).all())
    if array.dtype == "float16":  # by its exponent: NumPy looks at halves one by one
        return bool(((values.view(np.uint16) & 0x7C00) != 0x7C00).all())
    return bool(np.isfinite(values).all())


def bf16_bits(values: Float32) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16, nearest even; the bits. Too large a value becomes infinite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def from_bf16_bits(bits: npt.NDArray[np.uint16]) -> Float32:
    """Give the float32 of bfloat16 bits, exactly."""
    return (np.asarray(bits, dtype=np.uint32) << np.uint32(16)).view(np.float32)


def quantise_tiles(values: Float32) -> tuple[npt.NDArray[np.int8], Float32]:
    """Quantise maps symmetrically, tile by tile, rounding half to even.

    Args:
        values: finite float32 (..., h, w).

    Returns:
        int8 (..., h, w) in -127 to 127, and the scales float32 (..., t, u); 0 of a tile of zeros.
    """
    padded = _tiled(values)
    scales = np.abs(padded).max(axis=(-3, -1)) / np.float32(LEVELS_INT8)
    divisor = np.where(scales > 0, scales, np.float32(1))[..., :, None, :, None]
    tiles = np.clip(np.rint(padded / divisor), -LEVELS_INT8, LEVELS_INT8).astype(np.int8)
    height, width = values.shape[-2:]
    *leading, rows, _, columns, _ = tiles.shape
    whole = tiles.reshape(*leading, rows * TILE_SIDE, columns * TILE_SIDE)
    return np.ascontiguousarray(whole[..., :height, :width]), scales


def dequantise_tiles(tiles: npt.NDArray[np.int8], scales: Float32) -> Float32:
    """Give float32 (..., h, w) of int8 (..., h, w) and scales (..., t, u)."""
    height, width = tiles.shape[-2:]
    wide = np.repeat(np.repeat(scales, TILE_SIDE, axis=-2), TILE_SIDE, axis=-1)
    return tiles.astype(np.float32) * wide[..., :height, :width]


def _tiled(values: Float32) -> Float32:
    """Maps (..., h, w), filled up with zeros, as (..., t, 16, u, 16)."""
    *leading, height, width = values.shape
    rows, columns = scale_shape((height, width))
    margins = ((0, rows * TILE_SIDE - height), (0, columns * TILE_SIDE - width))
    if margins != ((0, 0), (0, 0)):
        values = np.pad(values, (*((0, 0) for _ in leading), *margins))
    return values.reshape(*leading, rows, TILE_SIDE, columns, TILE_SIDE)
