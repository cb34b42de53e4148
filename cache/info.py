"""Telling what a cache holds, from its header, index and ledger alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.index_files import INDEX_FOLDER, read_index
from cache.layout import read_complete_mark, read_header
from cache.ledger import cache_digest, load_ledger
from cache.schema import ROW_SPACES, RowSpace, TeacherIdentity
from cache.sizes import required_bytes

__all__ = ["CacheInfo", "describe"]


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
        cases: split → cases.
        created_by: the command and versions.
    """

    state: str
    schema_version: int
    fingerprint: str
    teacher: TeacherIdentity
    rows: Mapping[RowSpace, int]
    finished_rows: Mapping[RowSpace, int]
    row_bytes: Mapping[str, int]
    array_bytes: Mapping[str, int]
    cases: Mapping[str, int]
    created_by: str


def describe(path: Path) -> CacheInfo:
    """Tell what a cache holds.

    Raises:
        CacheMissingError: there is no cache.
        CacheStaleError: it was written by a newer version.
        CacheCorruptError: its header, index or completion mark is damaged.
    """
    header = read_header(path)
    ledger = load_ledger(path, header)
    index = read_index(path / INDEX_FOLDER, header.index_files)
    mark = read_complete_mark(path)
    complete = mark is not None and mark.cache_digest == cache_digest(header, ledger.entries)
    finished = dict.fromkeys(ROW_SPACES, 0)
    for (space, _), entry in ledger.entries.items():
        finished[space] += entry.stop - entry.start
    return CacheInfo(
        state="complete" if complete else "unfinished",
        schema_version=header.spec.schema_version,
        fingerprint=header.spec.fingerprint(),
        teacher=header.spec.teacher,
        rows=header.counts,
        finished_rows=finished,
        row_bytes={array.name: array.row_bytes for array in header.spec.arrays},
        array_bytes=required_bytes(header.spec, header.counts),
        cases={split: len(index.cases.codes_of(split=split)) for split in index.cases.splits},
        created_by=header.spec.created_by,
    )
