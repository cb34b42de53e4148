"""Write a cache anew with other stored types or in the other format, shard by shard.

The teacher is not asked again: prompts and tracks stay what it said on the features of the source.
The new cache has the settings of the source but for ``cache.dtype`` and ``cache.format``, so it is
fresh for a configuration that names these; unless a level was coarser before than it is now, which
is kept in ``converted.json``.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cache import CacheReader, CacheSpec, CacheWriter, required_bytes
from cache.conversions import (
    CONVERTED_NAME,
    Origin,
    encode_origins,
    read_origins,
    rounded_levels,
    words_of,
)
from cache.durable import TEMPORARY_SUFFIX, flush_file, flush_folder, write_durably
from cache.encoding import StoredWord, stored_word
from cache.errors import CacheMissingError, CacheStaleError
from cache.layout import HEADER_NAME
from cache.levels import STORED_LEVELS, StoredLevel, level_of
from cache.mending import precompute_command
from cache.schema import ROW_SPACES
from cache.side_files import checked_file, read_side_files, record_side_files
from stages.cache_arrays import stored_otherwise
from stages.cache_conversion import convert_shard
from stages.cache_settings import LevelTypes
from stages.cluster import Cluster
from stages.cluster_convert import convert_on_workers
from stages.context import Progress
from stages.errors import StageConfigError
from stages.side_files import copied_names, side_file_names

__all__ = ["Conversion", "convert", "types_of"]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was made.

    Attributes:
        types: how each level is stored now.
        format: of the new cache.
        source_bytes: of the source's shards.
        target_bytes: of the new cache's shards.
        written_rows: rows written by this call; the others were there.
        digest: content identity of the new cache.
        rounded: levels that were coarser once than they are now → the coarsest type.
    """

    types: LevelTypes
    format: str
    source_bytes: int
    target_bytes: int
    written_rows: int
    digest: str
    rounded: Mapping[str, str]


def types_of(spec: CacheSpec) -> LevelTypes:
    """How each level of a cache is stored; a level that it lacks as its settings say."""
    setting = spec.precompute.get("cache.dtype", {})
    words: dict[str, Any] = LevelTypes.model_validate(setting).by_level()
    for array in spec.arrays:
        level = level_of(array.name)
        if level is not None:
            words[level] = stored_word(array)
    return LevelTypes.model_validate(words)


def convert(
    source: Path,
    target: Path,
    *,
    dtype: StoredWord | None = None,
    levels: Sequence[StoredLevel] = STORED_LEVELS,
    format: Literal["zarr", "hdf5"] | None = None,
    progress: Progress,
    cluster: Cluster | None = None,
) -> Conversion:
    """Write ``source`` anew at ``target``; a conversion that was stopped goes on.

    Args:
        source: a complete cache.
        target: nothing, an empty folder, or what an earlier call with the same arguments left.
        dtype: how ``levels`` are to be stored; as they are where None.
        levels: the levels that ``dtype`` is for.
        format: of the new cache; that of the source where None.
        progress: where to tell how far it is.
        cluster: workers that convert; None: this process does.

    Raises:
        StageConfigError: source and target are one folder, or lie in each other.
        CacheMissingError: there is no complete cache at ``source``; or ``target`` has other files.
        CacheStaleError: ``target`` is another cache, or a conversion of another one.
        CacheDataError: a value does not fit into the type.
        CacheError: a shard is damaged, the target is being written, or the disk is full.
    """
    _refuse_overlap(source, target)
    reader = CacheReader(source)
    if not reader.complete:
        raise CacheMissingError(
            f"{source}: the cache is not complete, so it cannot be converted. Finish it: "
            f"{precompute_command(source)}"
        )
    types = types_of(reader.spec)
    if dtype is not None:
        changes = dict.fromkeys(levels, dtype)
        types = LevelTypes.model_validate(types.by_level() | changes)
    spec = _spec(reader, types, format or reader.spec.format)
    _refuse_other_cache(reader, spec, target)
    with CacheWriter.create_or_resume(target, spec, reader.index) as writer:
        for line in writer.discarded:
            progress.note(f"convert: {line}")
        write_durably(target / CONVERTED_NAME, encode_origins(_origins(reader)))
        _copy_side_files(source, target)
        record_side_files(target, side_file_names(target))
        written = _write_missing(reader, writer, progress, cluster)
        digest = writer.finish()
    counts = reader.counts
    return Conversion(
        types=types,
        format=spec.format,
        source_bytes=required_bytes(reader.spec, counts)["total"],
        target_bytes=required_bytes(spec, counts)["total"],
        written_rows=written,
        digest=digest,
        rounded=rounded_levels(target, spec),
    )


def _refuse_overlap(source: Path, target: Path) -> None:
    old, new = source.resolve(), target.resolve()
    if old == new or old in new.parents or new in old.parents:
        raise StageConfigError(
            f"{source} and {target} lie in each other: name another folder for the new cache"
        )


def _origins(reader: CacheReader) -> tuple[Origin, ...]:
    """What the source comes from, and the source itself."""
    spec = reader.spec
    own = Origin(digest=reader.digest(), levels=words_of(spec), format=spec.format)
    return (*read_origins(reader.path), own)


def _refuse_other_cache(reader: CacheReader, spec: CacheSpec, target: Path) -> None:
    if not (target / HEADER_NAME).is_file():
        return
    there = CacheReader(target)
    found = read_origins(target)
    # A conversion that was stopped at once has no record yet, and no rows either.
    begun = any(len(there.finished_rows(space)) for space in ROW_SPACES)
    same = bool(found) and found[-1].digest == reader.digest()
    if not same and (found or begun):
        raise CacheStaleError(
            f"{target} holds another cache, which is no conversion of {reader.path} as it is now. "
            "Name another folder, or remove that one"
        )
    if there.spec.fingerprint() != spec.fingerprint():
        raise CacheStaleError(
            f"{target} holds {reader.path} converted otherwise: to {there.spec.format} with "
            f"cache.dtype={types_of(there.spec).identity()}. Name another folder, or remove it"
        )


def _spec(reader: CacheReader, types: LevelTypes, format_name: str) -> CacheSpec:
    old = reader.spec
    return CacheSpec.model_validate(
        {
            "teacher": old.teacher,
            "preprocessing": old.preprocessing,
            "precompute": {**old.precompute, "cache.dtype": types.identity()},
            "data_sha256": old.data_sha256,
            "arrays": stored_otherwise(old.arrays, types),
            "format": format_name,
            "rows_per_shard": old.rows_per_shard,
            "created_by": f"efficient-medsam2 cache convert of {reader.digest()[:12]}",
        }
    )


def _write_missing(
    reader: CacheReader, writer: CacheWriter, progress: Progress, cluster: Cluster | None
) -> int:
    total = sum(reader.counts.values())
    missing = [(space, k) for space in ROW_SPACES for k in writer.missing_shards(space)]
    todo = sum(len(writer.rows_of_shard(space, k)) for space, k in missing)
    with progress.bar(
        total=total, description="converting", unit="row", initial=total - todo
    ) as bar:
        if cluster is not None:
            convert_on_workers(cluster, reader.path, writer, bar.update)
            return todo
        for space, k in missing:
            writer.write_shard(space, k, convert_shard(reader, writer, space, k))
            bar.update(len(writer.rows_of_shard(space, k)))
    return todo


def _copy_side_files(source: Path, target: Path) -> None:
    """The teacher and what tells where the rows come from."""
    recorded = {*(read_side_files(source) or ())} - {CONVERTED_NAME}
    for name in sorted(recorded.union(copied_names(source))):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        temporary = target / f"{name}.{os.getpid()}{TEMPORARY_SUFFIX}"
        shutil.copyfile(checked_file(source, name), temporary)
        flush_file(temporary)
        temporary.replace(target / name)
        flush_folder((target / name).parent)
