"""The ledger: which shards are finished, and what their bytes must be.

One file a shard (``ledger/slices-000007.json``), written after the shard's arrays are on the disk
and reread. A row counts only through its ledger entry; the mere existence of a file means
nothing, because a missing shard reads as zeros in Zarr.

A finished cache also has ``ledger/sealed.parquet``: all entries in one table, so that a cache of
many shards opens at once. ``complete.json`` holds its digest. It never speaks for an entry file
that is gone, has another size or is as new as the table.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cache.durable import canonical_json, sha256_of_bytes
from cache.errors import CacheError
from cache.layout import LEDGER_FOLDER, CacheHeader, CompleteMark
from cache.ledger_entry import (
    EntryReader,
    LedgerEntry,
    ShardFile,
    damaged_entry,
    encode_entry,
    entry_path,
    publish_entry,
    without_sums,
)
from cache.ledger_seal import SealedEntries, read_seal, seal_path
from cache.schema import ROW_SPACES, RowSpace

__all__ = [
    "Ledger",
    "LedgerEntry",
    "ShardFile",
    "cache_digest",
    "encode_entry",
    "entry_path",
    "load_ledger",
    "open_ledger",
    "publish_entry",
    "read_entry",
]

_NAME = re.compile(rf"^({'|'.join(ROW_SPACES)})-(\d{{6,}})\.json$")

ShardKey = tuple[RowSpace, int]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All finished shards.

    Attributes:
        entries: (space, shard) → entry, without channel sums.
        problems: entry files that cannot be trusted → the error that says why.
        sealed: whether every entry came from the sealed table of a complete cache.
    """

    entries: Mapping[ShardKey, LedgerEntry]
    problems: Mapping[Path, CacheError]
    sealed: bool = False

    def shard_file(self, space: RowSpace, shard: int, array: str) -> ShardFile | None:
        """Give an array's file of a shard, or ``None`` where the shard is not finished."""
        if isinstance(self.entries, SealedEntries):
            return self.entries.shard_file(space, shard, array)
        entry = self.entries.get((space, shard))
        return None if entry is None else entry.arrays[array]

    def shards(self, space: RowSpace) -> npt.NDArray[np.int64]:
        """Give the finished shards of a space, ascending, int64 (n,)."""
        if isinstance(self.entries, SealedEntries):
            return self.entries.shards(space)
        return np.array(sorted(k for of, k in self.entries if of == space), dtype=np.int64)

    def shards_without_row_checksums(self) -> int:
        """Count shards of earlier versions, in which exchanged files are found by verify alone."""
        if isinstance(self.entries, SealedEntries):
            return self.entries.without_row_checksums()
        return sum(
            any(file.row_crc32c is None for file in entry.arrays.values())
            for entry in self.entries.values()
        )


def load_ledger(cache: Path, header: CacheHeader) -> Ledger:
    """Read and check every ledger file; those that cannot be trusted are listed, not raised."""
    entries: dict[ShardKey, LedgerEntry] = {}
    problems: dict[Path, CacheError] = {}
    reader = EntryReader(header)
    for file, _ in sorted(_entry_files(cache / LEDGER_FOLDER), key=itemgetter(0)):
        _read_into(entries, problems, reader, file, thorough=True)
    return Ledger(entries=entries, problems=problems)


def open_ledger(cache: Path, header: CacheHeader, mark: CompleteMark | None) -> Ledger:
    """Read the ledger for reading rows: from the sealed table as far as it holds.

    Args:
        cache: the cache folder.
        header: its header.
        mark: its completion mark, or ``None`` where it has none.
    """
    sealed = read_seal(cache, header, mark)
    since = seal_path(cache).stat().st_mtime_ns if sealed else 0
    known = sealed.entry_bytes() if sealed else {}
    entries: dict[ShardKey, LedgerEntry] = {}
    problems: dict[Path, CacheError] = {}
    held: list[ShardKey] = []
    reader = EntryReader(header)
    for file, status in _entry_files(cache / LEDGER_FOLDER):
        match = _NAME.match(file.name)
        key: ShardKey | None = None
        if match:
            key = next(s for s in ROW_SPACES if s == match[1]), int(match[2])
        if key and status.st_mtime_ns < since and known.get(key) == status.st_size:
            held.append(key)
        else:
            _read_into(entries, problems, reader, file, thorough=False)
    if sealed and not entries and not problems and len(held) == len(sealed):
        return Ledger(entries=sealed, problems={}, sealed=True)
    entries.update((key, sealed[key]) for key in held if sealed)
    return Ledger(entries=dict(sorted(entries.items(), key=itemgetter(0))), problems=problems)


def _entry_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    if folder.is_dir():
        with os.scandir(folder) as items:
            for item in items:
                if item.name.endswith(".json"):
                    yield folder / item.name, item.stat()


def _read_into(
    entries: dict[ShardKey, LedgerEntry],
    problems: dict[Path, CacheError],
    reader: EntryReader,
    file: Path,
    *,
    thorough: bool,
) -> None:
    if not _NAME.match(file.name):
        problems[file] = damaged_entry(file, "its name is not <space>-<shard>.json")
        return
    try:
        entry = reader.read(file, sums=thorough)
    except CacheError as error:
        problems[file] = error
    else:
        # Channel sums are large and only finishing needs them.
        entries[entry.space, entry.shard] = without_sums(entry)


def read_entry(file: Path, header: CacheHeader) -> LedgerEntry:
    """Read one ledger file with its channel sums.

    Raises:
        CacheCorruptError, CacheStaleError: see ``EntryReader.read``.
    """
    return EntryReader(header).read(file)


def cache_digest(header: CacheHeader, entries: Mapping[ShardKey, LedgerEntry]) -> str:
    """Give the content identity of a cache: spec, index values and every shard's bytes.

    It does not depend on where the folder lies, nor on how often writing was interrupted.
    """
    shards = [
        [space, shard, {name: file.sha256 for name, file in entry.arrays.items()}]
        for (space, shard), entry in sorted(entries.items(), key=itemgetter(0))
    ]
    identity = {
        "fingerprint": header.spec.fingerprint(),
        "index": header.index_sha256,
        "shards": shards,
    }
    return sha256_of_bytes(canonical_json(identity))
