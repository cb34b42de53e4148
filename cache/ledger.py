"""The ledger: which shards are finished, and what their bytes must be.

One JSON file a shard (``ledger/slices-000007.json``), written after the shard's arrays are on
the disk and reread. A row counts only through its ledger entry; the mere existence of a file
means nothing, because a missing shard reads as zeros in Zarr.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from cache.durable import canonical_json, sha256_of_bytes, write_durably
from cache.errors import CacheCorruptError, CacheError, CacheStaleError
from cache.layout import LEDGER_FOLDER, CacheHeader
from cache.schema import ROW_SPACES, RowSpace
from cache.statistics import ChannelSums

__all__ = [
    "Ledger",
    "LedgerEntry",
    "ShardFile",
    "cache_digest",
    "entry_path",
    "load_ledger",
    "publish_entry",
    "read_entry",
]

_NAME = re.compile(rf"^({'|'.join(ROW_SPACES)})-(\d{{6,}})\.json$")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """One array's file of a shard.

    Attributes:
        file: path relative to the cache folder, with forward slashes.
        bytes: size.
        sha256: digest of the file's bytes.
    """

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """One finished shard.

    Attributes:
        space: the row space.
        shard: number of the shard.
        start, stop: its rows.
        fingerprint: fingerprint of the cache's spec.
        arrays: array name → its file.
        sums: array name → channel sums of feature maps (empty when loaded without them).
    """

    space: RowSpace
    shard: int
    start: int
    stop: int
    fingerprint: str
    arrays: Mapping[str, ShardFile]
    sums: Mapping[str, ChannelSums] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All finished shards.

    Attributes:
        entries: (space, shard) → entry, without channel sums.
        problems: entry files that cannot be trusted → the error that says why.
    """

    entries: Mapping[tuple[RowSpace, int], LedgerEntry]
    problems: Mapping[Path, CacheError]


def entry_path(cache: Path, space: RowSpace, shard: int) -> Path:
    """Give the ledger file of a shard of the cache at ``cache``."""
    return cache / LEDGER_FOLDER / f"{space}-{shard:06d}.json"


def publish_entry(cache: Path, entry: LedgerEntry) -> None:
    """Declare a shard finished. Its array files must be on the disk already."""
    record = {
        "space": entry.space,
        "shard": entry.shard,
        "start": entry.start,
        "stop": entry.stop,
        "fingerprint": entry.fingerprint,
        "arrays": {
            name: {"file": file.file, "bytes": file.bytes, "sha256": file.sha256}
            for name, file in entry.arrays.items()
        },
        "sums": {name: sums.to_json() for name, sums in entry.sums.items()},
    }
    content = {"sha256": sha256_of_bytes(canonical_json(record)), "entry": record}
    write_durably(entry_path(cache, entry.space, entry.shard), json.dumps(content).encode())


def read_entry(file: Path, header: CacheHeader) -> LedgerEntry:
    """Read one ledger file and check it against the cache's header.

    Raises:
        CacheCorruptError: the file is damaged or stands under another shard's name.
        CacheStaleError: it belongs to a cache of another fingerprint.
    """
    try:
        content = json.loads(file.read_bytes())
        record: dict[str, Any] = content["entry"]
        if sha256_of_bytes(canonical_json(record)) != content["sha256"]:
            raise _damaged(file, "its content does not fit its own SHA-256")
        entry = LedgerEntry(
            space=record["space"],
            shard=record["shard"],
            start=record["start"],
            stop=record["stop"],
            fingerprint=record["fingerprint"],
            arrays={name: ShardFile(**value) for name, value in record["arrays"].items()},
            sums={name: ChannelSums.from_json(value) for name, value in record["sums"].items()},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file, f"it is not a ledger entry ({error})") from error
    if entry.fingerprint != header.spec.fingerprint():
        raise CacheStaleError(
            f"{file}: belongs to another cache: fingerprint is {entry.fingerprint[:12]} there, "
            f"{header.spec.fingerprint()[:12]} in this cache. {_mend(file)}"
        )
    _check_place(file, entry, header)
    return entry


def _check_place(file: Path, entry: LedgerEntry, header: CacheHeader) -> None:
    if file.name != entry_path(Path(), entry.space, entry.shard).name:
        raise _damaged(file, f"it is the entry of {entry.space} shard {entry.shard}")
    rows = header.spec.shard_rows(entry.shard, header.counts[entry.space])
    if (entry.start, entry.stop) != (rows.start, rows.stop) or not rows:
        raise _damaged(
            file, f"rows are {entry.start}:{entry.stop}, the index has {rows.start}:{rows.stop}"
        )
    names = {array.name for array in header.spec.arrays_of(entry.space)}
    if set(entry.arrays) != names:
        raise _damaged(file, f"arrays are {sorted(entry.arrays)}, the cache has {sorted(names)}")


def load_ledger(cache: Path, header: CacheHeader) -> Ledger:
    """Read all ledger files; those that cannot be trusted are listed, not raised."""
    entries: dict[tuple[RowSpace, int], LedgerEntry] = {}
    problems: dict[Path, CacheError] = {}
    folder = cache / LEDGER_FOLDER
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        if not _NAME.match(file.name):
            problems[file] = _damaged(file, "its name is not <space>-<shard>.json")
            continue
        try:
            entry = read_entry(file, header)
        except CacheError as error:
            problems[file] = error
        else:
            # Channel sums are large and only finishing needs them.
            entries[entry.space, entry.shard] = replace(entry, sums={})
    return Ledger(entries=entries, problems=problems)


def cache_digest(header: CacheHeader, entries: Mapping[tuple[RowSpace, int], LedgerEntry]) -> str:
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


def _damaged(file: Path, reason: str) -> CacheCorruptError:
    return CacheCorruptError(f"{file} is damaged: {reason}. {_mend(file)}")


def _mend(file: Path) -> str:
    return (
        f"Write its rows again: efficient-medsam2 precompute --set cache.path={file.parent.parent}"
    )
