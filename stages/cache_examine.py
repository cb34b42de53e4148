"""Is a cache what a run wants? Asked before every stage, without loading a network or an image.

A cache may lie on a machine that has neither the raw data nor the teacher's checkpoint: what
cannot be compared is named, and is no reason to distrust it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import CacheReader, CacheSpec
from cache.conversions import CONVERTED_NAME, read_origins, rounded_levels, unknown_origin
from cache.durable import sha256_of_file
from cache.layout import HEADER_NAME
from cache.side_files import glance_at_side_files
from efficient_medsam2.checkpoints import NETWORK_SIZES, checkpoint_sha256
from efficient_medsam2.errors import DataError, WeightsError
from efficient_medsam2.images import CaseSource, find_cases
from efficient_medsam2.synthetic.mni152 import template_digests
from stages.cache_settings import CacheConfig, PrecomputeConfig, settings_of_cache
from stages.cases import DataConfig, phantom_digests, source_is_present
from stages.side_files import FILES_NAME, SKIPPED_NAME
from stages.teacher_source import TeacherConfig

__all__ = ["examine", "settings_differences"]

Difference = tuple[str, Any, Any]

_SHOWN = 3


def examine(
    data: DataConfig,
    teacher: TeacherConfig,
    cache: CacheConfig,
    config: PrecomputeConfig,
    *,
    path: Path,
    trained_teacher: Path | None,
) -> tuple[str | None, list[Difference], str]:
    """Compare the cache at ``path`` with what the settings want.

    Args:
        data: the wanted data.
        teacher: the wanted teacher.
        cache: the wanted storage.
        config: what the teacher is to be asked.
        path: the cache folder.
        trained_teacher: artifact folder of the teacher stage, where this run trains its own.

    Returns:
        The cache's content identity (None while it is absent or unfinished), what differs as
        (key, value of the cache, wanted value), and a note: how much of an unfinished cache is
        there, which file beside the rows is missing or damaged, or what could not be compared.

    Raises:
        CacheError: the cache is damaged.
    """
    if not (path / HEADER_NAME).is_file():
        return None, [], ""
    reader = CacheReader(path)
    damaged = glance_at_side_files(path)
    if CONVERTED_NAME in damaged:
        raise unknown_origin(path, damaged[CONVERTED_NAME])
    notes: list[str] = []
    differing = settings_differences(reader.spec, data, cache, config)
    differing += _rounded(reader, cache, notes)
    differing += _teacher(reader, teacher, trained_teacher, notes)
    if not damaged:
        differing += _data(reader, data, path, notes)
    if not reader.complete:
        finished = sum(len(reader.finished_rows(space)) for space in reader.counts)
        return None, differing, f"{finished} of {sum(reader.counts.values())} rows are written"
    if damaged:
        return None, differing, "; ".join(f"{name} {problem}" for name, problem in damaged.items())
    return reader.digest(), differing, "; ".join(notes)


def settings_differences(
    spec: CacheSpec, data: DataConfig, cache: CacheConfig, config: PrecomputeConfig
) -> list[Difference]:
    """Settings in which a cache differs from what is wanted: (key, its value, wanted value)."""
    wanted = settings_of_cache(data, cache, config)
    wanted |= {"cache.format": cache.format, "cache.rows_per_shard": cache.rows_per_shard}
    there = dict(spec.precompute)
    there["cache.format"] = spec.format
    there["cache.rows_per_shard"] = spec.rows_per_shard
    plain = json.loads(json.dumps(wanted))
    return [
        (key, there.get(key), plain.get(key))
        for key in sorted(there.keys() | plain.keys())
        if there.get(key) != plain.get(key)
    ]


def _rounded(reader: CacheReader, cache: CacheConfig, notes: list[str]) -> list[Difference]:
    """Levels that a conversion made coarser once: the spec says what they are stored as now."""
    rounded = rounded_levels(reader.path, reader.spec)
    before = ", ".join(f"{level} from {word}" for level, word in rounded.items())
    if rounded and not cache.accept_rounded:
        there = f"converted back, numbers are rounded: {before}"
        wanted = "as the teacher gave them (or take these: --set cache.accept_rounded=true)"
        return [("cache.dtype", there, wanted)]
    if rounded:
        notes.append(f"numbers are rounded, as cache.accept_rounded allows: {before}")
    if any(not origin.levels for origin in read_origins(reader.path)):
        notes.append("converted by an earlier version, which kept no record of the types before")
    return []


def _teacher(
    reader: CacheReader, teacher: TeacherConfig, trained: Path | None, notes: list[str]
) -> list[Difference]:
    made_by = reader.spec.teacher
    if made_by.name != teacher.kind:
        return [("teacher.kind", made_by.name, teacher.kind)]
    differing = _network(made_by.config, teacher)
    checkpoint = trained / "model" if trained is not None else teacher.checkpoint
    try:
        digest = checkpoint_sha256(teacher.kind, checkpoint)
    except WeightsError:
        notes.append("the teacher's checkpoint is not here, so it was not compared")
        return differing
    if digest != made_by.weights_sha256:
        differing.append(("teacher.checkpoint", made_by.weights_sha256[:12], digest[:12]))
    return differing


def _network(made_by: Mapping[str, Any], teacher: TeacherConfig) -> list[Difference]:
    """Compare sizes; those that the config leaves to the checkpoint come with its digest."""
    wanted = {
        "size": teacher.size,
        "image_size": teacher.image_size or NETWORK_SIZES.get(teacher.kind),
    }
    return [
        (f"teacher.{name}", made_by.get(name), value)
        for name, value in wanted.items()
        if value is not None and made_by.get(name) != value
    ]


def _data(reader: CacheReader, data: DataConfig, path: Path, notes: list[str]) -> list[Difference]:
    if not source_is_present(data):
        notes.append("the raw data are not here, so they were not compared")
        return []
    cases = {case.case_id: dict(case.files) for case in reader.index.cases}
    if data.source in ("mni152", "phantom"):
        wanted = template_digests() if data.source == "mni152" else phantom_digests(data)
        other = [name for name, files in cases.items() if files != wanted]
        return [("data.source", f"case {other[0]}", data.source)] if other else []
    skipped = _read_json(path / SKIPPED_NAME)
    if skipped and data.on_error == "skip":
        notes.append(f"{len(skipped)} cases that cannot be read were left out: {SKIPPED_NAME}")
    differing = _folder(cases, skipped, data, _read_json(path / FILES_NAME))
    if len(differing) > _SHOWN:
        rest = len(differing) - _SHOWN
        differing = [*differing[:_SHOWN], ("data.source", "", f"and {rest} more cases or files")]
    return differing


def _read_json(path: Path) -> dict[str, Any]:
    """Content of a side file; empty where it is absent."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def _folder(
    cases: dict[str, dict[str, str]],
    skipped: dict[str, Any],
    data: DataConfig,
    memo: dict[str, Any],
) -> list[Difference]:
    """Compare what lies in the folder now with the cases that were read and those left out."""
    try:
        found = find_cases(
            data.source, on_error=data.on_error, patient_pattern=data.patient_pattern
        )
    except DataError as error:
        return [("data.source", "as it was when the cache was made", str(error))]
    there = {source.case_id: source for source in found}
    differing: list[Difference] = []
    for case_id in sorted(cases.keys() | there.keys()):
        if case_id not in there:
            differing.append((f"data.source, case {case_id}", "in the cache", "not found"))
        elif case_id in cases:
            differing += _changed(there[case_id], cases[case_id], memo.get(case_id, {}))
        elif case_id not in skipped:
            differing.append((f"data.source, case {case_id}", "not in the cache", "found"))
        elif data.on_error == "stop":
            differing.append((f"data.source, case {case_id}", "left out", "wanted"))
        else:
            differing += _changed(there[case_id], skipped[case_id]["files"], {})
    return differing


def _changed(
    source: CaseSource, digests: dict[str, str], memo: dict[str, list[int]]
) -> list[Difference]:
    """Files are hashed again only where size or time changed since the cache was made."""
    differing: list[Difference] = []
    for name, file in zip(source.names, source.files, strict=True):
        stat = file.stat()
        if memo.get(name) == [stat.st_size, stat.st_mtime_ns]:
            continue
        digest = sha256_of_file(file)
        if digests.get(name) != digest:
            old = digests.get(name, "absent")
            differing.append((f"data.source, file {name}", old[:12], digest[:12]))
    return differing
