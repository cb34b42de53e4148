"""Telling what a cache holds, from its header, index and ledger alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache.conversions import read_origins, rounded_levels
from cache.encoding import stored_word
from cache.index_files import INDEX_FOLDER, read_index
from cache.layout import read_complete_mark, read_header
from cache.ledger import cache_digest, open_ledger
from cache.levels import STORED_LEVELS, part_of
from cache.schema import ROW_SPACES, CacheSpec, RowSpace, TeacherIdentity
from cache.sizes import required_bytes

__all__ = ["CacheInfo", "LevelSize", "describe"]

_WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class LevelSize:
    """What one level takes.

    Attributes:
        encoding: how its numbers are stored, such as ``int8``; several with commas between.
        bytes: of its arrays, finished, scales and checksums included.
        bytes_per_slice: the same by slice rows.
    """

    encoding: str
    bytes: int
    bytes_per_slice: float


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """What a cache holds.

    Attributes:
        state: ``complete`` or ``unfinished``.
        schema_version: layout of the folder.
        fingerprint: identity of its settings.
        teacher: who made it.
        rows: row space → rows.
        finished_rows: row space → rows that are written.
        row_bytes: array → bytes of one row, as stored.
        array_bytes: array → bytes of the finished array, and ``total``.
        levels: the same by level (``s4``, ``s8``, ``s16``, ``logits``, ``tracks``), ``image``,
            ``label``, ``answers`` (the few numbers beside every mask) and ``whole``.
        cases: split → cases.
        created_by: the command and versions.
        format: how arrays are stored.
        shards_without_row_checksums: shards of earlier versions; that files of such shards were
            exchanged with each other is found by ``verify``, not by reading.
        converted_from: the caches that it was converted from, the first one first; a line each.
        rounded: levels that were coarser once than they are stored now → the coarsest type.
    """

    state: str
    schema_version: int
    fingerprint: str
    teacher: TeacherIdentity
    rows: Mapping[RowSpace, int]
    finished_rows: Mapping[RowSpace, int]
    row_bytes: Mapping[str, int]
    array_bytes: Mapping[str, int]
    levels: Mapping[str, LevelSize]
    cases: Mapping[str, int]
    created_by: str
    format: str
    shards_without_row_checksums: int
    converted_from: tuple[str, ...] = ()
    rounded: Mapping[str, str] = field(default_factory=dict)


def describe(path: Path) -> CacheInfo:
    """Tell what a cache holds.

    Raises:
        CacheMissingError: there is no cache.
        CacheStaleError: it was written by a newer version.
        CacheCorruptError: its header, index, completion mark or origin is damaged.
    """
    header = read_header(path)
    mark = read_complete_mark(path)
    ledger = open_ledger(path, header, mark)
    index = read_index(path / INDEX_FOLDER, header.index_files)
    complete = mark is not None and (
        ledger.sealed or mark.cache_digest == cache_digest(header, ledger.entries)
    )
    finished = {
        space: sum(
            len(header.spec.shard_rows(shard, header.counts[space]))
            for shard in ledger.shards(space).tolist()
        )
        for space in ROW_SPACES
    }
    return CacheInfo(
        state="complete" if complete else "unfinished",
        schema_version=header.spec.schema_version,
        fingerprint=header.spec.fingerprint(),
        teacher=header.spec.teacher,
        rows=header.counts,
        finished_rows=finished,
        row_bytes={array.name: array.row_bytes for array in header.spec.arrays},
        array_bytes=required_bytes(header.spec, header.counts),
        levels=_levels(header.spec, header.counts),
        cases={split: len(index.cases.codes_of(split=split)) for split in index.cases.splits},
        created_by=header.spec.created_by,
        format=header.spec.format,
        shards_without_row_checksums=ledger.shards_without_row_checksums(),
        converted_from=tuple(map(str, read_origins(path))),
        rounded=rounded_levels(path, header.spec),
    )


def _levels(spec: CacheSpec, counts: Mapping[RowSpace, int]) -> dict[str, LevelSize]:
    sizes = required_bytes(spec, counts)
    base_of = {array.scale_name: array.name for array in spec.arrays if array.scale_name}
    found: dict[str, tuple[set[str], int]] = {}
    for array in spec.arrays:
        part = part_of(array, base_of.get(array.name, array.name))
        words, total = found.get(part, (set(), 0))
        found[part] = (words | {stored_word(array)}, total + sizes[array.name])
    words = {word for part, _ in found.values() for word in part}
    found[_WHOLE] = (words, sizes["total"])
    slices = max(counts["slices"], 1)
    return {
        part: LevelSize(
            encoding=", ".join(sorted(words)), bytes=total, bytes_per_slice=total / slices
        )
        for part, (words, total) in sorted(found.items(), key=lambda item: _order(item[0]))
    }


def _order(part: str) -> int:
    return ("image", "label", *STORED_LEVELS, "answers").index(part) if part != _WHOLE else 99
