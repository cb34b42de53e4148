"""One finished shard in the ledger: a small file that says what the shard's bytes must be.

A file has two lines, each JSON with its own SHA-256. The first is what readers need: files,
sizes, digests and every row's crc32c. The second has the channel sums, which are larger and of
which only finishing a cache has use. Files of one line, sums inside and no row checksums, are
from earlier versions and are read as well.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.address import place_of
from cache.durable import canonical_json, sha256_of_bytes, write_durably
from cache.errors import CacheCorruptError, CacheStaleError
from cache.layout import LEDGER_FOLDER, CacheHeader
from cache.mending import repair_command
from cache.schema import RowSpace
from cache.statistics import ChannelSums

__all__ = [
    "EntryReader",
    "LedgerEntry",
    "ShardFile",
    "damaged_entry",
    "encode_entry",
    "entry_path",
    "publish_entry",
    "without_sums",
]

_BEFORE = b'{"entry":'
_BETWEEN = b',"sha256":"'
_AFTER = b'"}'
_TAIL = len(_BETWEEN) + 64 + len(_AFTER)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShardFile:
    """One array's file of a shard.

    Attributes:
        file: path relative to the cache folder, with forward slashes.
        bytes: size.
        sha256: digest of the file's bytes.
        row_crc32c: uint32 (rows,): crc32c of each row's bytes; ``None`` in entries of versions
            that did not record it.
    """

    file: str
    bytes: int
    sha256: str
    row_crc32c: npt.NDArray[np.uint32] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
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


def without_sums(entry: LedgerEntry) -> LedgerEntry:
    """Give an entry without its channel sums, which are large."""
    return replace(entry, sums={}) if entry.sums else entry


def entry_path(cache: Path, space: RowSpace, shard: int) -> Path:
    """Give the ledger file of a shard of the cache at ``cache``."""
    return cache / LEDGER_FOLDER / f"{space}-{shard:06d}.json"


def encode_entry(entry: LedgerEntry) -> bytes:
    """Give the content of an entry's file."""
    record = {
        "space": entry.space,
        "shard": entry.shard,
        "start": entry.start,
        "stop": entry.stop,
        "fingerprint": entry.fingerprint,
        "arrays": {name: _file_record(file) for name, file in entry.arrays.items()},
    }
    sums = {
        "space": entry.space,
        "shard": entry.shard,
        "fingerprint": entry.fingerprint,
        "sums": {name: sums.to_json() for name, sums in entry.sums.items()},
    }
    return _line(record) + _line(sums)


def publish_entry(cache: Path, entry: LedgerEntry) -> None:
    """Declare a shard finished. Its array files must be on the disk already."""
    write_durably(entry_path(cache, entry.space, entry.shard), encode_entry(entry))


def _file_record(file: ShardFile) -> dict[str, Any]:
    record: dict[str, Any] = {"file": file.file, "bytes": file.bytes, "sha256": file.sha256}
    if file.row_crc32c is not None:
        record["row_crc32c"] = base64.b64encode(file.row_crc32c.astype("<u4").tobytes()).decode()
    return record


def _line(record: Mapping[str, Any]) -> bytes:
    content = canonical_json(record)
    digest = sha256_of_bytes(content).encode()
    return b"".join((_BEFORE, content, _BETWEEN, digest, _AFTER, b"\n"))


class EntryReader:
    """Reads entries of one cache and checks them against its header.

    Args:
        header: the cache's header.
    """

    def __init__(self, header: CacheHeader) -> None:
        self._header = header
        self._fingerprint = header.spec.fingerprint()
        self._names = {
            space: {array.name for array in header.spec.arrays_of(space)} for space in header.counts
        }

    def read(self, file: Path, *, sums: bool = True) -> LedgerEntry:
        """Read one ledger file.

        Args:
            file: its path.
            sums: read and check the channel sums too; else they are left alone, and empty.

        Raises:
            CacheCorruptError: the file is damaged or stands under another shard's name.
            CacheStaleError: it belongs to a cache of another fingerprint.
        """
        with file.open("rb") as opened:
            first = opened.readline()
            second = opened.read() if sums else b""
        return self._parse(file, first, second, sums=sums)

    def parse(self, file: Path, content: bytes) -> LedgerEntry:
        """Read the content of a ledger file, with its channel sums, that is to be written.

        Raises:
            CacheCorruptError, CacheStaleError: see ``read``.
        """
        first, _, second = content.partition(b"\n")
        return self._parse(file, first, second, sums=True)

    def _parse(self, file: Path, first: bytes, second: bytes, *, sums: bool) -> LedgerEntry:
        try:
            record = _checked(file, first)
            entry = LedgerEntry(
                space=record["space"],
                shard=record["shard"],
                start=record["start"],
                stop=record["stop"],
                fingerprint=record["fingerprint"],
                arrays={name: _shard_file(value) for name, value in record["arrays"].items()},
                sums=_sums(file, record, second) if sums else {},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise damaged_entry(file, f"it is not a ledger entry ({error})") from error
        if entry.fingerprint != self._fingerprint:
            raise CacheStaleError(
                f"{file}: belongs to another cache: fingerprint is {entry.fingerprint[:12]} "
                f"there, {self._fingerprint[:12]} in this cache. {_mend(file)}"
            )
        self._check_place(file, entry)
        return entry

    def _check_place(self, file: Path, entry: LedgerEntry) -> None:
        if file.name != entry_path(Path(), entry.space, entry.shard).name:
            raise damaged_entry(file, f"it is the entry of {entry.space} shard {entry.shard}")
        rows = self._header.spec.shard_rows(entry.shard, self._header.counts[entry.space])
        if (entry.start, entry.stop) != (rows.start, rows.stop) or not rows:
            raise damaged_entry(
                file,
                f"rows are {entry.start}:{entry.stop}, the index has {rows.start}:{rows.stop}",
            )
        names = self._names[entry.space]
        if entry.arrays.keys() != names:
            raise damaged_entry(
                file, f"arrays are {sorted(entry.arrays)}, the cache has {sorted(names)}"
            )
        for name, stored in entry.arrays.items():
            if stored.row_crc32c is not None and len(stored.row_crc32c) != len(rows):
                raise damaged_entry(
                    file, f"{name} has {len(stored.row_crc32c)} row checksums, not {len(rows)}"
                )


def _checked(file: Path, line: bytes) -> dict[str, Any]:
    line = line.rstrip(b"\n")
    content = json.loads(line)
    record: dict[str, Any] = content["entry"]
    # As we write it, the digest is over a piece of the line; only other spellings are made anew.
    ours = line.startswith(_BEFORE) and line[-_TAIL:].startswith(_BETWEEN)
    digested = line[len(_BEFORE) : -_TAIL] if ours else canonical_json(record)
    if sha256_of_bytes(digested) != content["sha256"]:
        raise damaged_entry(file, "its content does not fit its own SHA-256")
    return record


def _shard_file(record: Mapping[str, Any]) -> ShardFile:
    checksums = record.get("row_crc32c")
    return ShardFile(
        file=record["file"],
        bytes=record["bytes"],
        sha256=record["sha256"],
        row_crc32c=(
            None
            if checksums is None
            else np.frombuffer(base64.b64decode(checksums, validate=True), dtype="<u4")
        ),
    )


def _sums(file: Path, record: Mapping[str, Any], line: bytes) -> dict[str, ChannelSums]:
    if "sums" in record:
        found = record
    else:
        found = _checked(file, line)
        for key in ("space", "shard", "fingerprint"):
            if found[key] != record[key]:
                raise damaged_entry(file, f"its channel sums are of {key} {found[key]}")
    return {name: ChannelSums.from_json(value) for name, value in found["sums"].items()}


def damaged_entry(file: Path, reason: str) -> CacheCorruptError:
    """Make the error of a ledger file that cannot be trusted."""
    return CacheCorruptError(f"{place_of(file)} is damaged: {reason}. {_mend(file)}")


def _mend(file: Path) -> str:
    return f"Write its rows again: {repair_command(file.parent.parent)}"
