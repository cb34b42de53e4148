"""What a cache holds and what it was made from.

Two caches with the same fingerprint are interchangeable: same teacher, same preprocessing, same
data, same arrays. Everything that would change a stored number belongs in the spec.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cache.durable import canonical_json, sha256_of_bytes
from cache.shard_index import zarr_row_stride

__all__ = [
    "HDF5_HEADER_BYTES",
    "ROW_SPACES",
    "SCALE_SUFFIX",
    "SCHEMA_VERSION",
    "TILE_SIDE",
    "ArraySpec",
    "CacheSpec",
    "Difference",
    "Encoding",
    "RowSpace",
    "TeacherIdentity",
    "scale_shape",
]

SCHEMA_VERSION = 2
"""The newest layout of a folder; raised whenever an older reader would misread a newer one.

A cache has the lowest version that describes it, so that older readers take what they can read:
2 where an array is encoded, else 1.
"""

Encoding = Literal["plain", "bf16", "int8_tile16", "scale_tile16"]
"""How real numbers became the stored ones; ``cache.encoding`` describes each."""

TILE_SIDE = 16
"""Rows and columns of a tile that shares one scale."""

SCALE_SUFFIX = "_scale"
"""Name of the array of scales: that of the array they belong to, and this."""

HDF5_HEADER_BYTES = 2048
"""Bytes before the first row of an HDF5 shard; the store refuses a library that needs more."""

RowSpace = Literal["slices", "prompts", "tracks"]
ROW_SPACES: tuple[RowSpace, ...] = ("slices", "prompts", "tracks")

Difference = tuple[str, Any, Any]
"""A key path such as ``teacher.name`` and the two values that differ there."""


def _as_json(value: object) -> object:
    # Tuples become lists and keys become text at once, so that a spec equals its reread self.
    return json.loads(json.dumps(value, allow_nan=False))


JsonObject = Annotated[dict[str, Any], BeforeValidator(_as_json)]


_TYPE_OF_ENCODING = {"bf16": "uint16", "int8_tile16": "int8", "scale_tile16": "float32"}


class ArraySpec(BaseModel):
    """One stored array: ``rows`` says which index table numbers its first axis.

    Attributes:
        name: folder of the array inside ``arrays/``.
        rows: the row space.
        shape: shape of one row, without the row axis, e.g. ``(256, 32, 32)`` for (C, h, w).
        dtype: numpy name of the stored type, little endian.
        encoding: what the stored values mean; left out of the identity where they are ``plain``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    rows: RowSpace
    shape: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    dtype: Literal["uint8", "uint16", "int8", "int32", "float16", "float32"]
    encoding: Encoding = Field(default="plain", exclude_if=lambda value: value == "plain")

    @model_validator(mode="after")
    def _check_encoding(self) -> Self:
        wanted = _TYPE_OF_ENCODING.get(self.encoding, self.dtype)
        if self.dtype != wanted:
            raise ValueError(
                f"{self.name}: {self.encoding} is stored as {wanted}, not {self.dtype}"
            )
        if self.encoding == "plain" and self.dtype == "int8":
            raise ValueError(f"{self.name}: int8 alone says nothing: it needs an encoding")
        if self.encoding == "int8_tile16" and len(self.shape) < 2:
            raise ValueError(f"{self.name}: tiles need rows and columns, the shape is {self.shape}")
        return self

    @property
    def row_bytes(self) -> int:
        """Bytes of one row without checksums."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def is_float(self) -> bool:
        """Whether it holds real numbers, in whatever encoding; no writer takes non-finite ones."""
        return self.dtype.startswith("float") or self.encoding != "plain"

    @property
    def scale_name(self) -> str | None:
        """Name of the array of its scales, where it has one."""
        return self.name + SCALE_SUFFIX if self.encoding == "int8_tile16" else None

    @property
    def has_channel_statistics(self) -> bool:
        """Whether rows are feature maps (C, h, w), of which mean and deviation are kept."""
        return self.is_float and len(self.shape) == 3 and self.encoding != "scale_tile16"


class TeacherIdentity(BaseModel):
    """Which network made the rows.

    Attributes:
        name: such as ``medsam2``.
        weights_sha256: digest of the loaded checkpoint's bytes.
        config: the network's settings (JSON values).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    weights_sha256: str
    config: JsonObject


class CacheSpec(BaseModel):
    """Identity of a cache.

    Attributes:
        schema_version: layout of the folder; follows from the arrays where it is not given.
        teacher: who made the rows.
        preprocessing: how images came to the teacher's input (size, window, normalisation).
        precompute: settings that chose or shaped the rows (views, prompts, dtype policy).
        data_sha256: digest over the digests of the raw files of all cases.
        arrays: what is stored; kept in order of name.
        format: the store's kind: ``zarr``, one sharded Zarr v3 group, or ``hdf5``, one HDF5 file
            a shard and array.
        rows_per_shard: rows in one shard file, the unit of writing and of resuming.
        created_by: the command and versions; for people, not part of the identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    teacher: TeacherIdentity
    preprocessing: JsonObject
    precompute: JsonObject
    data_sha256: str
    arrays: Annotated[tuple[ArraySpec, ...], Field(min_length=1)]
    format: Literal["zarr", "hdf5"] = "zarr"
    rows_per_shard: Annotated[int, Field(gt=0)] = 64
    created_by: str

    @model_validator(mode="before")
    @classmethod
    def _sort_arrays(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic's raw input
        if isinstance(data, Mapping) and isinstance(data.get("arrays"), list | tuple):
            arrays = sorted(data["arrays"], key=_name_of)
            version = 1 if all(_encoding_of(array) == "plain" for array in arrays) else 2
            return {"schema_version": version, **data, "arrays": arrays}
        return data

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [array.name for array in self.arrays]
        if len(set(names)) != len(names):
            raise ValueError(f"two arrays have the same name: {names}")
        scales = {array.name for array in self.arrays if array.encoding == "scale_tile16"}
        for array in self.arrays:
            if array.scale_name is None:
                continue
            if array.scale_name not in scales:
                raise ValueError(f"{array.name} is stored in tiles and has no {array.scale_name}")
            scales.remove(array.scale_name)
            scale = self.array(array.scale_name)
            if (scale.rows, scale.shape) != (array.rows, scale_shape(array.shape)):
                raise ValueError(f"{scale.name} has not one scale for each tile of {array.name}")
        if scales:
            raise ValueError(f"scales that belong to no array: {sorted(scales)}")
        return self

    def fingerprint(self) -> str:
        """Give the SHA-256 of everything but ``created_by``, as hexadecimal text."""
        return sha256_of_bytes(canonical_json(self._identity()))

    def differences(self, other: "CacheSpec") -> tuple[Difference, ...]:
        """List ``(key path, mine, theirs)`` where two specs differ; a missing key is ``None``."""
        mine = dict(_flatten("", self._identity()))
        theirs = dict(_flatten("", other._identity()))
        keys = sorted(mine.keys() | theirs.keys())
        return tuple(
            (key, mine.get(key), theirs.get(key))
            for key in keys
            if mine.get(key) != theirs.get(key)
        )

    def array(self, name: str) -> ArraySpec:
        """Find an array by name.

        Raises:
            KeyError: this cache has no such array; names those that it has.
        """
        for array in self.arrays:
            if array.name == name:
                return array
        raise KeyError(f"no array {name!r} in this cache; it has {[a.name for a in self.arrays]}")

    def arrays_of(self, space: RowSpace) -> tuple[ArraySpec, ...]:
        """Give the arrays whose first axis is numbered by ``space``."""
        return tuple(array for array in self.arrays if array.rows == space)

    def shard_count(self, rows: int) -> int:
        """Give how many shards hold ``rows`` rows."""
        return -(-rows // self.rows_per_shard)

    def shard_rows(self, shard: int, rows: int) -> range:
        """Give the rows of shard number ``shard`` in a space of ``rows`` rows."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, rows))

    def shard_file_bytes(self, array: ArraySpec, rows: int) -> int:
        """Give the size of a shard file that holds ``rows`` rows, exact in a new cache.

        Each row carries a 4-byte checksum, and in a Zarr shard some room up to the next. A Zarr
        shard ends with an index of 16 bytes a row slot and its own checksum (Zarr v3
        ``sharding_indexed``); an HDF5 shard starts with a header and ends with two checksums.
        """
        if self.format == "hdf5":
            return HDF5_HEADER_BYTES + rows * (array.row_bytes + 4) + 8
        return rows * zarr_row_stride(array.row_bytes) + 16 * self.rows_per_shard + 4

    def _identity(self) -> dict[str, Any]:
        dumped = self.model_dump(mode="json", exclude={"created_by"})
        dumped["arrays"] = {array.pop("name"): array for array in dumped["arrays"]}
        return dumped


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the shape of the scales of maps (..., h, w); tiles at the far borders may be smaller."""
    *leading, height, width = shape
    return (*leading, -(-height // TILE_SIDE), -(-width // TILE_SIDE))


def _name_of(array: object) -> str:
    name = array.get("name") if isinstance(array, Mapping) else getattr(array, "name", "")
    return str(name)


def _encoding_of(array: object) -> str:
    given = array.get("encoding") if isinstance(array, Mapping) else array.encoding  # type: ignore[attr-defined]
    return str(given or "plain")


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, value
