"""Identity and arrays of a cache to be: what follows from teacher, rows and settings.

Shape letters: S network input in pixels.
"""

from typing import Any

from cache import ArraySpec, CacheSpec, TeacherIdentity
from cache.schema import RowSpace
from efficient_medsam2.networks.runner import SliceRunner
from stages.cache_rows import CacheRows
from stages.cache_settings import (
    STORED_DTYPES,
    CacheConfig,
    PrecomputeConfig,
    StoredType,
    data_digest,
    settings_of_cache,
)
from stages.cases import DataConfig

__all__ = ["cache_spec"]


def cache_spec(
    teacher: Any,  # noqa: ANN401 - Teacher; importing it here would load a teacher module
    rows: CacheRows,
    data: DataConfig,
    cache: CacheConfig,
    config: PrecomputeConfig,
) -> CacheSpec:
    """Identity and arrays of the cache to be."""
    runner: SliceRunner = teacher.runner
    size, grid = runner.image_size, runner.grid
    width = int(runner.config.memory_attention_hidden_size)
    memory = int(runner.config.memory_encoder_output_channels)
    low = (size // 4, size // 4)
    kind = STORED_DTYPES[cache.dtype]
    arrays: list[tuple[str, RowSpace, tuple[int, ...], StoredType]] = [
        ("image", "slices", (rows.channels, size, size), "uint8"),
        ("label", "slices", (size, size), "uint16"),
        ("features_s4", "slices", (width // 8, size // 4, size // 4), kind),
        ("features_s8", "slices", (width // 4, size // 8, size // 8), kind),
        ("features_s16", "slices", (width, *grid), kind),
        ("mask_logits", "prompts", low, kind),
        ("mask_iou", "prompts", (1,), "float32"),
        ("object_score", "prompts", (1,), "float32"),
        ("track_conditioned_s16", "tracks", (width, *grid), kind),
        ("track_memory_s16", "tracks", (memory, *grid), kind),
        ("track_object_pointer", "tracks", (width,), "float32"),
        ("track_object_score", "tracks", (1,), "float32"),
        ("track_mask_logits", "tracks", low, kind),
        ("track_mask_iou", "tracks", (1,), "float32"),
    ]
    cases = rows.index.cases
    digests = {row.case_id: (row.split, dict(row.files)) for row in cases}
    return CacheSpec(
        teacher=TeacherIdentity(
            name=teacher.name, weights_sha256=teacher.weights_sha256, config=teacher.settings
        ),
        preprocessing={"image_size": size, "channels": rows.channels, "resize": "squash bicubic"},
        precompute=settings_of_cache(data, cache, config),
        data_sha256=data_digest(digests),
        arrays=tuple(
            ArraySpec(name=name, rows=space, shape=shape, dtype=dtype)
            for name, space, shape, dtype in arrays
        ),
        format=cache.format,
        rows_per_shard=cache.rows_per_shard,
        created_by="efficient-medsam2 precompute",
    )
