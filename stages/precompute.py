"""Run the teacher once and cache what it says.

Three passes over one cache, each shard by shard and resumable: the image encoder over every
slice; the mask decoder over every prompt, fed from the cached features; and the tracks, also fed
from them. Nothing is encoded twice, and a rerun writes the very same bytes.

Shape letters: B rows, C channels, S network input in pixels.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cache import ArraySpec, CacheSpec, CacheWriter, TeacherIdentity, required_bytes
from cache.durable import write_durably
from cache.schema import RowSpace
from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.networks.model_folder import save_model
from efficient_medsam2.networks.runner import SliceRunner
from stages.cache_examine import FILES_NAME, SKIPPED_NAME
from stages.cache_passes import CachePasses
from stages.cache_rows import CacheRows, decide_rows
from stages.cache_settings import (
    STORED_DTYPES,
    CacheConfig,
    PrecomputeConfig,
    StoredType,
    TeacherConfig,
    data_digest,
    settings_of_cache,
)
from stages.cases import DataConfig, open_dataset
from stages.context import Artifact, StageContext

__all__ = ["TEACHER_FOLDER", "estimate", "run"]

TEACHER_FOLDER = "teacher"
"""Inside a cache: the teacher as a model folder, so students can copy its decoder from there."""

SPLITS_NAME = "splits.json"


def run(
    data: DataConfig,
    teacher_config: TeacherConfig,
    cache_config: CacheConfig,
    config: PrecomputeConfig,
    context: StageContext,
) -> Artifact:
    """Fill the cache, or finish it where an earlier run was stopped.

    Raises:
        DataError: the data cannot be used.
        WeightsError: the teacher's checkpoint is missing or wrong.
        CacheError: the folder holds another cache, is being written, or the disk is full.
    """
    from efficient_medsam2.teachers.load import load_teacher

    checkpoint = trained_checkpoint(teacher_config, context) or teacher_config.checkpoint
    teacher = load_teacher(teacher_config.kind, checkpoint)
    dataset = open_dataset(data)
    for note in dataset.notes:
        context.progress.note(f"precompute: {note}")
    teacher.runner.model.to(pick_device(context.device))
    size = teacher.runner.image_size
    with context.progress.bar(
        total=len(dataset.handles), description="reading cases", unit="case"
    ) as bar:
        rows = decide_rows(
            dataset,
            data=data,
            prompts=config.prompts,
            tracks=config.tracks,
            size=size,
            step=lambda: bar.update(1),
            note=lambda text: context.progress.note(f"precompute: {text}"),
        )
    dataset = dataset.without(rows.skipped.keys())
    spec = cache_spec(teacher, rows, data, cache_config, config)
    needed = required_bytes(spec, rows.index.counts())["total"]
    counts = ", ".join(f"{count} {space}" for space, count in rows.index.counts().items())
    context.progress.note(f"precompute: {counts}; {needed / 1e6:.1f} MB")
    with CacheWriter.create_or_resume(
        context.cache, spec, rows.index, replace=not context.resume
    ) as writer:
        for line in writer.discarded:
            context.progress.note(f"precompute: {line}")
        save_model(teacher.runner, context.cache / TEACHER_FOLDER, origin={"name": teacher.name})
        write_durably(context.cache / FILES_NAME, json.dumps(rows.files).encode())
        write_durably(context.cache / SKIPPED_NAME, _skipped_json(rows))
        dataset.splits.write(context.cache / SPLITS_NAME)
        passes = CachePasses(
            writer=writer,
            runner=teacher.runner,
            dataset=dataset,
            rows=rows,
            data=data,
            cache=cache_config,
            config=config,
            context=context,
        )
        passes.slices()
        passes.prompts()
        passes.tracks()
        digest = writer.finish()
    summary = {"bytes": needed, "digest": digest} | dict(rows.index.counts())
    return Artifact(files=(), summary=summary | {"skipped_cases": len(rows.skipped)})


def _skipped_json(rows: CacheRows) -> bytes:
    skipped = {case_id: asdict(case) for case_id, case in rows.skipped.items()}
    return json.dumps(skipped, indent=1).encode() + b"\n"


def trained_checkpoint(config: TeacherConfig, context: StageContext) -> Path | None:
    """The model of the teacher stage, where this run trains its own."""
    return context.inputs["teacher"] / "model" if config.train else None


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


def estimate(
    data: DataConfig,
    teacher_config: TeacherConfig,
    cache_config: CacheConfig,
    config: PrecomputeConfig,
) -> tuple[str, ...]:
    """What a cache would hold and take, in lines to print; reads the labels, writes nothing.

    The size follows from the teacher's network, so a teacher that is yet to be trained gives one
    line that says so.

    Raises:
        DataError: the data cannot be used.
        WeightsError: the teacher's checkpoint is missing or wrong.
    """
    from efficient_medsam2.teachers.load import load_teacher

    if teacher_config.train:
        return ("size of the cache: told by precompute, once the teacher is trained",)
    teacher = load_teacher(teacher_config.kind, teacher_config.checkpoint)
    notes: list[str] = []
    rows = decide_rows(
        open_dataset(data),
        data=data,
        prompts=config.prompts,
        tracks=config.tracks,
        size=teacher.runner.image_size,
        step=lambda: None,
        note=notes.append,
    )
    spec = cache_spec(teacher, rows, data, cache_config, config)
    counts = rows.index.counts()
    sizes = required_bytes(spec, counts)
    lines = [*notes, *(f"{count} {space}" for space, count in counts.items())]
    lines += [f"{name}: {size / 1e6:.1f} MB" for name, size in sizes.items() if name != "total"]
    return (*lines, f"total: {sizes['total'] / 1e6:.1f} MB")
