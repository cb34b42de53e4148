"""Run the teacher once and cache what it says.

Three passes over one cache, each shard by shard and resumable: the image encoder over every
view of every slice; the mask decoder over every prompt, fed from the cached features; and the
tracks, also fed from them, both directions from the prompted slice. Nothing is encoded twice, and
a run that was stopped goes on to the very same bytes. A teacher without a memory (MedSAM) makes no
tracks. Reading, computing and writing overlap. The passes run in this process, or on the workers
of a cluster.

Shape letters: B rows, C channels, S network input in pixels.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from cache import CacheReader, CacheWriter, required_bytes
from cache.address import place_of
from cache.durable import write_durably
from cache.errors import CacheStaleError
from stages.cache_arrays import cache_spec, identity_of
from stages.cache_meter import summary_of
from stages.cache_passes import CachePasses
from stages.cache_rows import CacheRows, decide_rows
from stages.cache_settings import CacheConfig, PrecomputeConfig, tracks_for
from stages.cases import DataConfig, open_dataset, seen_by_all
from stages.cluster_passes import ClusterPasses
from stages.context import Artifact, StageContext
from stages.estimate_size import cache_size, require_room
from stages.side_files import FILES_NAME, SKIPPED_NAME, SPLITS_NAME, TEACHER_FOLDER, record
from stages.teacher_source import TeacherConfig

__all__ = ["restore_teacher", "run"]


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
        ClusterError: the workers cannot be reached, are lost, or do not fit this process.
    """
    from efficient_medsam2.teachers.load import load_teacher

    checkpoint = trained_checkpoint(teacher_config, context) or teacher_config.checkpoint
    teacher = load_teacher(
        teacher_config.kind,
        checkpoint,
        size=teacher_config.size,
        image_size=teacher_config.image_size,
    )
    if context.cluster is not None:
        data = seen_by_all(data)
    dataset = open_dataset(data)
    for note in dataset.notes:
        context.progress.note(f"precompute: {note}")
    size = teacher.model.image_size
    tracks = tracks_for(teacher.model, config.tracks)
    if tracks != config.tracks:
        context.progress.note(
            f"precompute: a {teacher.name} teacher has no memory: no tracks; its students learn "
            "the encoder stage from this cache, not the memory stage"
        )

    def decide(wanted: DataConfig, step: Callable[[], None]) -> CacheRows:
        return decide_rows(
            dataset,
            data=wanted,
            views=config.views,
            prompts=config.prompts,
            tracks=tracks,
            size=size,
            step=step,
            note=lambda text: context.progress.note(f"precompute: {text}"),
        )

    with context.progress.bar(
        total=len(dataset.handles), description="reading cases", unit="case"
    ) as bar:
        rows = decide(data, lambda: bar.update(1))
    spec = cache_spec(teacher, rows, data, cache_config, config)
    if context.mirror is None:  # an object store tells no end
        require_room(
            cache_size(spec, rows, teacher.model, context.cache),
            spec,
            rows,
            data=data,
            cache=cache_config,
            config=config,
            decide=lambda wanted: decide(wanted, lambda: None),
        )
    dataset = dataset.without(rows.skipped.keys())
    needed = required_bytes(spec, rows.index.counts())["total"]
    counts = ", ".join(f"{count} {space}" for space, count in rows.index.counts().items())
    context.progress.note(f"precompute: {counts}; {needed / 1e6:.1f} MB")
    with CacheWriter.create_or_resume(
        context.cache, spec, rows.index, replace=not context.resume, mirror=context.mirror
    ) as writer:
        for line in writer.discarded:
            context.progress.note(f"precompute: {line}")
        teacher.model.save(context.cache / TEACHER_FOLDER, origin={"name": teacher.name})
        write_durably(context.cache / FILES_NAME, json.dumps(rows.files).encode())
        write_durably(context.cache / SKIPPED_NAME, _skipped_json(rows))
        dataset.splits.write(context.cache / SPLITS_NAME)
        passes: CachePasses | ClusterPasses
        if context.cluster is None:
            passes = CachePasses(
                writer=writer,
                teacher=teacher.model,
                handles={handle.case_id: handle for handle in dataset.handles},
                rows=rows,
                data=data,
                config=config,
                context=context,
                open_reader=lambda: CacheReader(context.cache, mirror=context.mirror),
            )
        else:
            passes = ClusterPasses(
                writer=writer,
                cluster=context.cluster,
                dataset=dataset,
                rows=rows,
                data=data,
                teacher=teacher_config.model_copy(update={"checkpoint": checkpoint}),
                weights_sha256=teacher.weights_sha256,
                config=config,
                context=context,
            )
        context.progress.note(f"precompute: batches of {passes.batch_size}")
        record(context.cache)
        writer.publish_files()
        reports = passes.run()
        digest = writer.finish()
    summary = {"bytes": needed, "digest": digest} | dict(rows.index.counts())
    summary |= {"batch_size": passes.batch_size, "skipped_cases": len(rows.skipped)}
    return Artifact(files=(), summary=summary | summary_of(reports))


def restore_teacher(config: TeacherConfig, context: StageContext) -> None:
    """Put the teacher's folder back into a cache whose rows are all there; takes no raw data.

    Raises:
        CacheStaleError: it is not the teacher that made the cache.
        WeightsError: the teacher's checkpoint is missing or wrong.
        CacheError: rows are missing, or the cache is being written.
    """
    from efficient_medsam2.teachers.load import load_teacher

    teacher = load_teacher(
        config.kind,
        trained_checkpoint(config, context) or config.checkpoint,
        size=config.size,
        image_size=config.image_size,
    )
    reader = CacheReader(context.cache, mirror=context.mirror)
    spec = reader.spec
    if identity_of(teacher) != spec.teacher:
        raise CacheStaleError(
            f"{place_of(context.cache)} was made by another teacher: {spec.teacher.name} of "
            f"weights {spec.teacher.weights_sha256[:12]}. Name that one: --set "
            "teacher.checkpoint=FILE"
        )
    with CacheWriter.create_or_resume(
        context.cache, spec, reader.index, mirror=context.mirror
    ) as writer:
        teacher.model.save(context.cache / TEACHER_FOLDER, origin={"name": teacher.name})
        record(context.cache)
        writer.finish()


def _skipped_json(rows: CacheRows) -> bytes:
    skipped = {case_id: asdict(case) for case_id, case in rows.skipped.items()}
    return json.dumps(skipped, indent=1).encode() + b"\n"


def trained_checkpoint(config: TeacherConfig, context: StageContext) -> Path | None:
    """The model of the teacher stage, where this run trains its own."""
    return context.inputs["teacher"] / "model" if config.train else None
