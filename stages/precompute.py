"""Run the teacher once and cache what it says.

Three passes over one cache, each shard by shard and resumable: the image encoder over every
slice; the mask decoder over every prompt, fed from the cached features; and the tracks, also fed
from them. Nothing is encoded twice, and a rerun writes the very same bytes.

Shape letters: B rows, C channels, S network input in pixels.
"""

import json
from dataclasses import asdict
from pathlib import Path

from cache import CacheWriter, required_bytes
from cache.durable import write_durably
from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.networks.model_folder import save_model
from stages.cache_arrays import cache_spec
from stages.cache_examine import FILES_NAME, SKIPPED_NAME
from stages.cache_passes import CachePasses
from stages.cache_rows import CacheRows, decide_rows
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.cases import DataConfig, open_dataset
from stages.context import Artifact, StageContext
from stages.teacher_source import TeacherConfig

__all__ = ["TEACHER_FOLDER", "run"]

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
