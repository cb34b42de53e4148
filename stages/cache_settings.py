"""Settings of precompute, and which of them determine what a cache holds."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

from cache.address import ADDRESS, is_address
from cache.durable import canonical_json, sha256_of_bytes
from cache.encoding import STORED_WORDS, StoredWord
from cache.levels import STORED_LEVELS, StoredLevel
from stages.cases import DataConfig
from stages.row_settings import PromptConfig, TrackConfig, ViewConfig

if TYPE_CHECKING:
    from efficient_medsam2.teachers.protocol import SliceTeacher

__all__ = [
    "CacheConfig",
    "LevelTypes",
    "MirrorConfig",
    "PrecomputeConfig",
    "data_digest",
    "settings_of_cache",
    "tracks_for",
]


_SECRET = re.compile(r"secret|token|password|access_key|account_key|credential|sas|service_account")

RemoteAddress = Annotated[str, Field(pattern=ADDRESS.pattern)]


class LevelTypes(BaseModel):
    """How the real numbers of each level are stored; one word stands for all levels.

    Attributes:
        s4: features at stride 4: ``fp16``, ``bf16``, ``fp32``, or ``int8`` with a scale for each
            channel and tile of 16 x 16.
        s8: features at stride 8.
        s16: features at stride 16.
        logits: of the masks of prompts and tracks.
        tracks: features after memory attention, and memories, along tracks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    s4: StoredWord = "fp16"
    s8: StoredWord = "fp16"
    s16: StoredWord = "fp16"
    logits: StoredWord = "fp16"
    tracks: StoredWord = "fp16"

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, given: Any) -> Any:  # noqa: ANN401 - pydantic's raw input
        if not isinstance(given, str):
            return given
        if given not in STORED_WORDS:
            words = ", ".join(STORED_WORDS)
            raise ValueError(
                f"expected one of {words}, or a mapping of {', '.join(STORED_LEVELS)} to these"
            )
        return dict.fromkeys(STORED_LEVELS, given)

    @model_serializer
    def identity(self) -> str | dict[str, str]:
        """Give the one word where all levels have it, else every level's."""
        words = self.by_level()
        alike = set(words.values())
        return alike.pop() if len(alike) == 1 else words

    def by_level(self) -> dict[str, str]:
        """Give level → word."""
        return {level: self.of(level) for level in STORED_LEVELS}

    def of(self, level: StoredLevel) -> StoredWord:
        """Give the word of a level."""
        word: StoredWord = getattr(self, level)
        return word


class MirrorConfig(BaseModel):
    """Where the shards of a cache on an object store lie while they are read or written.

    Attributes:
        path: the mirror's folder; by default one in the user's folder for what can be fetched
            again.
        max_gb: gigabytes of shards that lie there at most. Training is fast where all shards
            that a stage reads fit.
        patience_seconds: how long a store that does not answer is asked again; by default a
            minute, and ten where it has answered before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    max_gb: float = Field(default=50.0, gt=0)
    patience_seconds: float | None = Field(default=None, ge=0)


class CacheConfig(BaseModel):
    """Where and how the cache is stored.

    Attributes:
        path: its folder; by default ``<run.dir>/cache``. Or the address of an object store:
            ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://account/container/prefix``.
        mirror: the local side of a cache on an object store.
        store_options: of the object store, by obstore's names (``endpoint``, ``region``, ...);
            credentials come from the environment alone, so that no file keeps them.
        format: ``zarr``, one sharded Zarr v3 group, or ``hdf5``, one HDF5 file a shard and array.
        dtype: of features, logits and memories: ``fp16``, ``bf16``, ``fp32`` or ``int8``, or a
            mapping of levels to these.
        rows_per_shard: rows in a file, the unit of resuming.
        accept_rounded: take a cache that was converted from a coarser type than it is stored in
            now. No part of a cache's identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: RemoteAddress | Path | None = None
    mirror: MirrorConfig = MirrorConfig()
    store_options: dict[str, str | bool | int] = {}
    format: Literal["zarr", "hdf5"] = "zarr"
    dtype: LevelTypes = LevelTypes()
    rows_per_shard: int = Field(default=64, ge=1)
    accept_rounded: bool = False

    @field_validator("path", mode="before")
    @classmethod
    def _known_scheme(cls, given: Any) -> Any:  # noqa: ANN401 - pydantic's raw input
        if isinstance(given, str) and is_address(given) and not ADDRESS.match(given):
            raise ValueError(
                f"expected a folder, or an address such as s3://bucket/prefix: {given}"
            )
        return given

    @field_validator("store_options")
    @classmethod
    def _no_credentials(cls, given: dict[str, str | bool | int]) -> dict[str, str | bool | int]:
        for key in given:
            if _SECRET.search(key.lower()):
                raise ValueError(
                    f"{key} does not belong into a config, which is kept with the results. Put it "
                    "into the environment: export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..."
                )
        return given

    @property
    def remote_url(self) -> str | None:
        """The address of the object store, where the cache lies on one."""
        return self.path if isinstance(self.path, str) else None


class PrecomputeConfig(BaseModel):
    """What the teacher is asked.

    Attributes:
        views: geometric views of each slice.
        prompts: prompts on single slices.
        tracks: propagations through a case.
        batch_size: rows that the teacher gets at a time; ``auto``: as many as are useful and fit
            into the memory. No part of a cache's identity.
        precision: of the teacher's computation: ``no`` is float32; ``bf16`` and ``fp16`` are
            autocast. What is stored has the type ``cache.dtype`` in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    views: ViewConfig = ViewConfig()
    prompts: PromptConfig = PromptConfig()
    tracks: TrackConfig = TrackConfig()
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"

    def row_settings(self) -> dict[str, Any]:
        """Settings that decide what the cache holds, by their full key."""
        parts = {
            "views": self.views.row_settings(),
            "prompts": self.prompts.row_settings(),
            "tracks": self.tracks.row_settings(),
        }
        flat: dict[str, Any] = {
            f"precompute.{part}.{key}": value
            for part, values in parts.items()
            for key, value in values.items()
        }
        return flat | {"precompute.precision": self.precision}


def settings_of_cache(
    data: DataConfig, cache: CacheConfig, config: PrecomputeConfig
) -> dict[str, Any]:
    """All settings that determine a cache's content, by their full key."""
    return data.row_settings() | {"cache.dtype": cache.dtype.identity()} | config.row_settings()


def tracks_for(teacher: "SliceTeacher", tracks: TrackConfig) -> TrackConfig:
    """The tracks that a teacher can be asked for: none where it has no memory."""
    return tracks if teacher.tracker is not None else tracks.model_copy(update={"per_object": 0})


def data_digest(dataset_digests: dict[str, tuple[str, dict[str, str]]]) -> str:
    """Digest over case id → (split, file digests)."""
    return sha256_of_bytes(canonical_json(dataset_digests))
