"""Settings of precompute, and which of them determine what a cache holds."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cache.durable import canonical_json, sha256_of_bytes
from stages.cases import DataConfig

__all__ = [
    "STORED_DTYPES",
    "CacheConfig",
    "PrecomputeConfig",
    "PromptConfig",
    "StoredType",
    "TeacherConfig",
    "TrackConfig",
    "data_digest",
    "settings_of_cache",
]

StoredType = Literal["uint8", "uint16", "float16", "float32"]

STORED_DTYPES: dict[str, StoredType] = {"fp16": "float16", "fp32": "float32"}


class TeacherConfig(BaseModel):
    """The teacher.

    Attributes:
        kind: ``scratch``: a small network made by ``train teacher``; ``medsam2``: the official one.
        checkpoint: model folder (scratch; default: the shipped one) or MedSAM2_latest.pt.
        train: train a scratch teacher first and use that one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["scratch", "medsam2"] = "scratch"
    checkpoint: Path | None = None
    train: bool = False


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


class PromptConfig(BaseModel):
    """Prompts that the teacher answers on every (object, slice).

    Attributes:
        per_object: prompts of each object on each slice.
        box_share: probability of a box; else a foreground point.
        jitter: box noise as a fraction of its side.
        seed: of all sampling; each (case, slice, object) has its own stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_object: int = Field(default=2, ge=0)
    box_share: float = Field(default=0.75, ge=0, le=1)
    jitter: float = Field(default=0.1, ge=0)
    seed: int = 0


class TrackConfig(BaseModel):
    """The teacher's propagations.

    Attributes:
        per_object: prompted slices of each object, the one with its largest area first.
        length: slices of a track in one direction, the prompted one included.
        margin: slices beyond the object's end that a track still visits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_object: int = Field(default=2, ge=0)
    length: int = Field(default=6, ge=2)
    margin: int = Field(default=1, ge=0)


class PrecomputeConfig(BaseModel):
    """What the teacher is asked.

    Attributes:
        prompts: prompts on single slices.
        tracks: propagations through a case.
        batch_size: rows that the teacher gets at a time.
        precision: ``no`` is float32; ``bf16`` and ``fp16`` are autocast on a GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
