"""Bytes of a cache to be, and what would make one fit that does not.

Counted from the rows alone: nothing is written, and no image is read again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache import CacheSpec, required_bytes
from cache.errors import CacheSpaceError
from cache.index import CacheIndex
from cache.layout import HEADER_NAME
from cache.levels import STORED_LEVELS
from cache.overhead import ledger_bytes, overhead_bytes
from cache.schema import RowSpace
from cache.sizes import fits, free_bytes
from efficient_medsam2.teachers.protocol import SliceTeacher
from stages.cache_arrays import stored_otherwise
from stages.cache_rows import CacheRows
from stages.cache_settings import CacheConfig, LevelTypes, PrecomputeConfig
from stages.cases import DataConfig
from stages.estimate_records import Alternative, ArraySize, CacheSize, readable

__all__ = ["cache_size", "refusal", "require_room", "smaller_caches"]

Rows = npt.NDArray[np.bool_]
LabelledRows = Callable[[DataConfig], CacheRows]
"""Decides the rows again, under other data settings."""

_RUNNER_JSON_BYTES = 400
_SPLIT_BYTES = 30
"""Of ``splits.json`` a case, besides its name."""


def cache_size(
    spec: CacheSpec,
    rows: CacheRows,
    teacher: SliceTeacher,
    folder: Path,
    *,
    free: int | None = None,
) -> CacheSize:
    """Bytes of everything in the cache folder, once it is finished.

    Args:
        spec: the cache to be.
        rows: its rows.
        teacher: whose weights lie in the cache too.
        folder: where it is to lie.
        free: free bytes there; asked of the disk where None.
    """
    counts = rows.index.counts()
    sizes = required_bytes(spec, counts)
    arrays = sorted(
        (
            ArraySize(
                name=array.name,
                rows=counts[array.rows],
                row_bytes=array.row_bytes,
                bytes=sizes[array.name],
            )
            for array in spec.arrays
        ),
        key=lambda array: -array.bytes,
    )
    overhead = overhead_bytes(spec, rows.index)
    overhead["metadata"] += _notes_bytes(rows)
    overhead["teacher"] = _teacher_bytes(teacher)
    return CacheSize(
        folder=folder,
        counts={str(space): count for space, count in counts.items()},
        arrays=tuple(arrays),
        overhead=overhead,
        total_bytes=sizes["total"] + sum(overhead.values()),
        present_bytes=_bytes_in(folder),
        free_bytes=free_bytes(folder) if free is None else free,
    )


def require_room(
    size: CacheSize,
    spec: CacheSpec,
    rows: CacheRows,
    *,
    data: DataConfig,
    cache: CacheConfig,
    config: PrecomputeConfig,
    decide: LabelledRows,
) -> None:
    """Refuse a cache that does not fit on its disk; for the arguments see ``smaller_caches``.

    Raises:
        CacheSpaceError: names the settings that would fit.
    """
    if not size.fits:
        raise refusal(
            size,
            smaller_caches(size, spec, rows, data=data, cache=cache, config=config, decide=decide),
        )


def refusal(size: CacheSize, alternatives: tuple[Alternative, ...]) -> CacheSpaceError:
    """The error that says what is missing and what would fit."""
    if alternatives:
        ways = "What fits: " + "; or ".join(each.text() for each in alternatives)
    else:
        ways = "No setting of precompute makes it fit: make room, or --set cache.path=FOLDER"
    return CacheSpaceError(
        f"{size.folder}: the cache needs {readable(size.needed_bytes)}, "
        f"{readable(size.free_bytes)} are free. {ways}"
    )


@dataclass(frozen=True, kw_only=True)
class _Change:
    """One setting that leaves rows out, or stores them in fewer bytes."""

    setting: str
    keep: dict[RowSpace, Rows]
    dtype: str | None = None


def smaller_caches(
    size: CacheSize,
    spec: CacheSpec,
    rows: CacheRows,
    *,
    data: DataConfig,
    cache: CacheConfig,
    config: PrecomputeConfig,
    decide: LabelledRows,
) -> tuple[Alternative, ...]:
    """Find settings that would fit, by counting the rows that each leaves out.

    Args:
        size: of the cache as it is wanted.
        spec: of the cache as it is wanted.
        rows: of the cache as it is wanted.
        data: which slices are kept.
        cache: how they are stored.
        config: what the teacher is asked.
        decide: decides rows again; called once, and only where ``data.slices`` is ``all``.

    Returns:
        Every single setting that is enough; where none is, the shortest list of settings, mildest
        first, that is; nothing where not even all of them are.
    """
    index = rows.index
    fixed = size.overhead["teacher"] + size.overhead["metadata"]

    def tried(changes: list[_Change], index: CacheIndex, settings: tuple[str, ...]) -> Alternative:
        total = fixed + _bytes_with(changes, spec, index, size)
        names = (*settings, *(change.setting for change in changes))
        return Alternative(settings=names, total_bytes=total)

    def enough(alternative: Alternative) -> bool:
        return fits(alternative.total_bytes - size.present_bytes, size.free_bytes)

    changes = _changes(index, cache, config)
    found = [tried([change], index, ()) for change in changes]
    begun: tuple[str, ...] = ()
    if data.slices == "all":
        index = decide(data.model_copy(update={"slices": "labelled"})).index
        begun = ("data.slices=labelled",)
        found.append(tried([], index, begun))
        changes = _changes(index, cache, config)
    single = tuple(alternative for alternative in found if enough(alternative))
    if single:
        return single
    by_setting: dict[str, _Change] = {}
    for change in changes:
        by_setting[change.setting.partition("=")[0]] = change
        together = tried(list(by_setting.values()), index, begun)
        if enough(together):
            return (together,)
    return ()


def _changes(index: CacheIndex, cache: CacheConfig, config: PrecomputeConfig) -> list[_Change]:
    """Settings that can be lowered, mildest first."""
    slices, prompts, tracks = index.slices, index.prompts, index.tracks
    changes: list[_Change] = []
    stored = {cache.dtype.of(level) for level in STORED_LEVELS}
    if "fp32" in stored:
        changes.append(_Change(setting="cache.dtype=fp16", keep={}, dtype="fp16"))
    if stored != {"int8"}:
        changes.append(_Change(setting="cache.dtype=int8", keep={}, dtype="int8"))
    if config.prompts.per_object > 1:
        first = _first_of(np.stack([prompts.slice_row, prompts.object_id]))
        changes.append(_Change(setting="precompute.prompts.per_object=1", keep={"prompts": first}))
    if config.tracks.per_object > 1:
        starts = tracks.first_rows[tracks.track]
        name = np.stack([tracks.case_code, tracks.object_id])
        slice_of = tracks.prompted_slice
        # The first prompted slice of an object, in both directions.
        _, first_row, group = np.unique(name, axis=1, return_index=True, return_inverse=True)
        keep = slice_of[starts] == slice_of[first_row[group.reshape(-1)]]
        changes.append(_Change(setting="precompute.tracks.per_object=1", keep={"tracks": keep}))
    if config.views.count > 1:
        keep_views: dict[RowSpace, Rows] = {
            "slices": slices.view == 0,
            "prompts": slices.view[prompts.slice_row] == 0,
        }
        changes.append(_Change(setting="precompute.views.count=1", keep=keep_views))
    if config.tracks.per_object:
        none = np.zeros(len(tracks), dtype=bool)
        changes.append(_Change(setting="precompute.tracks.per_object=0", keep={"tracks": none}))
    if config.prompts.per_object:
        none = np.zeros(len(prompts), dtype=bool)
        changes.append(_Change(setting="precompute.prompts.per_object=0", keep={"prompts": none}))
    return changes


def _first_of(names: npt.NDArray[np.generic]) -> Rows:
    """Of columns with the same content, the first."""
    keep = np.zeros(names.shape[1], dtype=bool)
    keep[np.unique(names, axis=1, return_index=True)[1]] = True
    return keep


def _bytes_with(changes: list[_Change], spec: CacheSpec, index: CacheIndex, size: CacheSize) -> int:
    """Bytes of shards, index and ledger with these changes."""
    counts: dict[RowSpace, int] = {}
    for space, rows in index.counts().items():
        keep = np.ones(rows, dtype=bool)
        for change in changes:
            keep &= change.keep.get(space, True)
        counts[space] = int(keep.sum())
    for change in changes:
        if change.dtype is not None:
            spec = _stored_as(spec, change.dtype)
    before = max(sum(size.counts.values()), 1)
    tables = size.overhead["index"] * sum(counts.values()) // before
    return required_bytes(spec, counts)["total"] + tables + ledger_bytes(spec, counts)


def _stored_as(spec: CacheSpec, dtype: str) -> CacheSpec:
    """The same cache with its levels in another type."""
    arrays = stored_otherwise(spec.arrays, LevelTypes.model_validate(dtype))
    return spec.model_copy(update={"arrays": arrays})


def _notes_bytes(rows: CacheRows) -> int:
    """Of the files that precompute lays beside the cache's own."""
    skipped = sum(len(name) + len(case.reason) + 150 for name, case in rows.skipped.items())
    splits = sum(len(case.case_id) + len(case.split) + _SPLIT_BYTES for case in rows.index.cases)
    return len(json.dumps(rows.files)) + skipped + splits


def _teacher_bytes(teacher: SliceTeacher) -> int:
    """Of the teacher's model folder: float32 weights, their names, its configuration."""
    names: dict[str, Any] = {}
    total = 0
    for name, value in teacher.module.state_dict().items():
        size = value.numel() * (4 if value.is_floating_point() else value.element_size())
        names[name] = {
            "dtype": "F32",
            "shape": list(value.shape),
            "data_offsets": [total, total + size],
        }
        total += size
    config = getattr(teacher.module, "config", None)
    if config is not None:
        total += len(json.dumps(config.to_dict(), indent=2, default=str))
    return total + len(json.dumps(names, separators=(",", ":"))) + _RUNNER_JSON_BYTES


def _bytes_in(folder: Path) -> int:
    """Of a cache that lies there; 0 where none does."""
    if not (folder / HEADER_NAME).is_file():
        return 0
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
