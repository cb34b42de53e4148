"""Settings of precompute, and which of them determine what a cache holds."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cache.durable import canonical_json, sha256_of_bytes
from stages.cases import DataConfig
from stages.row_settings import PromptConfig, TrackConfig, ViewConfig

__all__ = [
    "STORED_DTYPES",
    "CacheConfig",
    "PrecomputeConfig",
    "StoredType",
    "data_digest",
    "settings_of_cache",
]

StoredType = Literal["uint8", "uint16", "float16", "float32"]

STORED_DTYPES: dict[str, StoredType] = {"fp16": "float16", "fp32": "float32"}


class CacheConfig(BaseModel):
    """Where and how the cache is stored.

    Attributes:
        path: its folder; by default ``<run.dir>/cache``.
        format: ``zarr``: one sharded Zarr v3 group.
        dtype: of features and logits: ``fp16`` or ``fp32``.
        rows_per_shard: rows in a file, the unit of resuming.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    format: Literal["zarr"] = "zarr"
    dtype: Literal["fp16", "fp32"] = "fp16"
    rows_per_shard: int = Field(default=64, ge=1)


class PrecomputeConfig(BaseModel):
    """What the teacher is asked.

    Attributes:
        views: geometric views of each slice.
        prompts: prompts on single slices.
        tracks: propagations through a case.
        batch_size: rows that the teacher gets at a time.
        precision: ``no`` is float32; ``bf16`` and ``fp16`` are autocast on a GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    views: ViewConfig = ViewConfig()
    prompts: PromptConfig = PromptConfig()
    tracks: TrackConfig = TrackConfig()
    batch_size: int = Field(default=16, ge=1)
    precision: Literal["no", "bf16", "fp16"] = "no"

    def row_settings(self) -> dict[str, Any]:
        """Settings that decide what the cache holds, by their full key."""
        values = self.model_dump(mode="json", exclude={"batch_size"})
        flat: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                flat |= {f"precompute.{key}.{inner}": each for inner, each in value.items()}
            else:
                flat[f"precompute.{key}"] = value
        return flat


def settings_of_cache(
    data: DataConfig, cache: CacheConfig, config: PrecomputeConfig
) -> dict[str, Any]:
    """All settings that determine a cache's content, by their full key."""
    return data.row_settings() | {"cache.dtype": cache.dtype} | config.row_settings()


def data_digest(dataset_digests: dict[str, tuple[str, dict[str, str]]]) -> str:
    """Digest over case id → (split, file digests)."""
    return sha256_of_bytes(canonical_json(dataset_digests))
