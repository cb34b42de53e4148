"""Identity and arrays of a cache to be: what follows from teacher, rows and settings.

Shape letters: S network input in pixels.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cache import ArraySpec, CacheSpec, TeacherIdentity
from cache.encoding import StoredWord, array_specs
from cache.levels import level_of
from cache.schema import RowSpace
from stages.cache_rows import CacheRows
from stages.cache_settings import (
    CacheConfig,
    LevelTypes,
    PrecomputeConfig,
    data_digest,
    settings_of_cache,
)
from stages.cases import DataConfig

if TYPE_CHECKING:
    from efficient_medsam2.teachers.load import Teacher
    from efficient_medsam2.teachers.protocol import SliceTeacher

__all__ = ["cache_spec", "identity_of", "stored_otherwise"]

LEVELS = ("s4", "s8", "s16")


def cache_spec(
    teacher: "Teacher",
    rows: CacheRows,
    data: DataConfig,
    cache: CacheConfig,
    config: PrecomputeConfig,
) -> CacheSpec:
    """Identity and arrays of the cache to be.

    A level that the teacher does not give has no array, and a teacher without memory has no
    arrays of tracks. The image is the cached network input in 8 bits; how the teacher normalises
    it is part of the teacher.

    Args:
        teacher: who makes the rows.
        rows: that the cache will have.
        data: where they come from.
        cache: how they are stored.
        config: what the teacher is asked.
    """
    model: SliceTeacher = teacher.model
    size = model.image_size
    low = (model.logits_side, model.logits_side)
    levels = [(level, model.level_shapes[level]) for level in LEVELS if level in model.level_shapes]
    arrays: list[tuple[str, RowSpace, tuple[int, ...]]] = [
        *((f"features_{level}", "slices", shape) for level, shape in levels),
        ("mask_logits", "prompts", low),
        ("mask_iou", "prompts", (1,)),
        ("object_score", "prompts", (1,)),
    ]
    if model.tracker is not None:
        config_of = model.tracker.config
        grid = model.tracker.grid
        width = int(config_of.memory_attention_hidden_size)
        memory = int(config_of.memory_encoder_output_channels)
        arrays += [
            ("track_conditioned_s16", "tracks", (width, *grid)),
            ("track_memory_s16", "tracks", (memory, *grid)),
            ("track_object_pointer", "tracks", (width,)),
            ("track_object_score", "tracks", (1,)),
            ("track_mask_logits", "tracks", low),
            ("track_mask_iou", "tracks", (1,)),
        ]
    cases = rows.index.cases
    digests = {row.case_id: (row.split, dict(row.files)) for row in cases}
    return CacheSpec(
        teacher=identity_of(teacher),
        preprocessing={"image_size": size, "channels": rows.channels, "resize": "squash bicubic"},
        precompute=settings_of_cache(data, cache, config),
        data_sha256=data_digest(digests),
        arrays=(
            ArraySpec(
                name="image", rows="slices", shape=(rows.channels, size, size), dtype="uint8"
            ),
            ArraySpec(name="label", rows="slices", shape=(size, size), dtype="uint16"),
            *(
                array
                for name, space, shape in arrays
                for array in array_specs(name, space, shape, _word(name, cache.dtype))
            ),
        ),
        format=cache.format,
        rows_per_shard=cache.rows_per_shard,
        created_by="efficient-medsam2 precompute",
    )


def identity_of(teacher: "Teacher") -> TeacherIdentity:
    """Who makes the rows, for the spec."""
    return TeacherIdentity(
        name=teacher.name, weights_sha256=teacher.weights_sha256, config=teacher.settings
    )


def stored_otherwise(arrays: Iterable[ArraySpec], dtype: LevelTypes) -> tuple[ArraySpec, ...]:
    """The same arrays with the levels stored as ``dtype`` says.

    Args:
        arrays: of a cache.
        dtype: how each level is to be stored.
    """
    changed: list[ArraySpec] = []
    for array in arrays:
        if array.encoding == "scale_tile16":
            continue
        if level_of(array.name) is None:
            changed.append(array)
        else:
            word = _word(array.name, dtype)
            changed += array_specs(array.name, array.rows, array.shape, word)
    return tuple(changed)


def _word(name: str, dtype: LevelTypes) -> StoredWord:
    """How an array of real numbers is stored; the few that belong to no level are exact."""
    level = level_of(name)
    return "fp32" if level is None else dtype.of(level)
