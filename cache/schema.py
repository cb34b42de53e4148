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

__all__ = [
    "ROW_SPACES",
    "SCHEMA_VERSION",
    "ArraySpec",
    "CacheSpec",
    "Difference",
    "RowSpace",
    "TeacherIdentity",
]

SCHEMA_VERSION = 1
"""Raised whenever an older reader would misread a newer folder."""

RowSpace = Literal["slices", "prompts", "tracks"]
ROW_SPACES: tuple[RowSpace, ...] = ("slices", "prompts", "tracks")

Difference = tuple[str, Any, Any]
"""A key path such as ``teacher.name`` and the two values that differ there."""


def _as_json(value: object) -> object:
    # Tuples become lists and keys become text at once, so that a spec equals its reread self.
    return json.loads(json.dumps(value, allow_nan=False))


JsonObject = Annotated[dict[str, Any], BeforeValidator(_as_json)]


class ArraySpec(BaseModel):
    """One stored array: ``rows`` says which index table numbers its first axis.

    Attributes:
        name: folder of the array inside ``arrays/``.
        rows: the row space.
        shape: shape of one row, without the row axis, e.g. ``(256, 32, 32)`` for (C, h, w).
        dtype: numpy name of the stored type, little endian.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    rows: RowSpace
    shape: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    dtype: Literal["uint8", "uint16", "int32", "float16", "float32"]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row without checksums."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def is_float(self) -> bool:
        """Whether values may be non-finite, which the writer then refuses."""
        return self.dtype.startswith("float")

    @property
    def has_channel_statistics(self) -> bool:
        """Whether rows are feature maps (C, h, w), of which mean and deviation are kept."""
        return self.is_float and len(self.shape) == 3


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
        schema_version: layout of the folder.
        teacher: who made the rows.
        preprocessing: how images came to the teacher's input (size, window, normalisation).
        precompute: settings that chose or shaped the rows (views, prompts, dtype policy).
        data_sha256: digest over the digests of the raw files of all cases.
        arrays: what is stored; kept in order of name.
        format: the store's kind.
        rows_per_shard: rows in one shard file, the unit of writing and of resuming.
        created_by: the command and versions; for people, not part of the identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    teacher: TeacherIdentity
    preprocessing: JsonObject
    precompute: JsonObject
    data_sha256: str
    arrays: Annotated[tuple[ArraySpec, ...], Field(min_length=1)]
    format: Literal["zarr"] = "zarr"
    rows_per_shard: Annotated[int, Field(gt=0)] = 64
    created_by: str

    @model_validator(mode="before")
    @classmethod
    def _sort_arrays(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic's raw input
        if isinstance(data, Mapping) and isinstance(data.get("arrays"), list | tuple):
            return {**data, "arrays": sorted(data["arrays"], key=_name_of)}
        return data

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [array.name for array in self.arrays]
        if len(set(names)) != len(names):
            raise ValueError(f"two arrays have the same name: {names}")
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
        """Give the exact size of a shard file that holds ``rows`` rows.

        Each row carries a 4-byte checksum; the file ends with an index of 16 bytes a row slot and
        its own checksum (Zarr v3 ``sharding_indexed``).
        """
        return rows * (array.row_bytes + 4) + 16 * self.rows_per_shard + 4

    def _identity(self) -> dict[str, Any]:
        dumped = self.model_dump(mode="json", exclude={"created_by"})
        dumped["arrays"] = {array.pop("name"): array for array in dumped["arrays"]}
        return dumped


def _name_of(array: object) -> str:
    name = array.get("name") if isinstance(array, Mapping) else getattr(array, "name", "")
    return str(name)


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, value
