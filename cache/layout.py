"""Names in a cache folder, and its two marker files.

``cache.json`` (the header) is written first: it says what the cache is going to be.
``complete.json`` is written last: it says that every shard is there, and their common digest.
All paths inside a cache are relative, so the folder can be moved and renamed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cache.address import place_of
from cache.durable import canonical_json, sha256_of_bytes, write_durably
from cache.errors import CacheCorruptError, CacheMissingError, CacheStaleError
from cache.mending import precompute_command, repair_command
from cache.schema import ROW_SPACES, SCHEMA_VERSION, CacheSpec, RowSpace
from cache.shard_index import CLOSE_TOGETHER, ROW_ALIGNMENT

__all__ = [
    "ARRAYS_FOLDER",
    "COMPLETE_NAME",
    "HEADER_NAME",
    "LEDGER_FOLDER",
    "STATISTICS_NAME",
    "CacheHeader",
    "CompleteMark",
    "encode_checked",
    "encode_header",
    "read_checked",
    "read_complete_mark",
    "read_header",
    "write_complete_mark",
    "write_header",
]

HEADER_NAME = "cache.json"
COMPLETE_NAME = "complete.json"
STATISTICS_NAME = "statistics.json"
ARRAYS_FOLDER = "arrays"
LEDGER_FOLDER = "ledger"


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """What ``cache.json`` says.

    Attributes:
        spec: identity of the cache.
        counts: rows of each row space.
        index_sha256: digest of the index's values.
        index_files: index file name → ``{"bytes", "sha256"}``.
        row_alignment: bytes at a multiple of which long rows start in Zarr shards; not part of the
            identity, but kept, so that a shard that is made again has the bytes it had.
    """

    spec: CacheSpec
    counts: Mapping[RowSpace, int]
    index_sha256: str
    index_files: Mapping[str, Mapping[str, Any]]
    row_alignment: int = ROW_ALIGNMENT


@dataclass(frozen=True, kw_only=True)
class CompleteMark:
    """What ``complete.json`` says.

    Attributes:
        cache_digest: content identity of the finished cache.
        statistics_sha256: digest of ``statistics.json``.
        seal_sha256: digest of ``ledger/sealed.parquet``; ``None`` in caches of versions that had
            none.
        side_files_sha256: digest of ``side_files.json``; ``None`` where nothing was recorded.
    """

    cache_digest: str
    statistics_sha256: str
    seal_sha256: str | None = None
    side_files_sha256: str | None = None


def encode_header(header: CacheHeader) -> bytes:
    """Give the content of ``cache.json``."""
    record = {
        "schema_version": header.spec.schema_version,
        "fingerprint": header.spec.fingerprint(),
        "spec": header.spec.model_dump(mode="json"),
        "counts": dict(header.counts),
        "index_sha256": header.index_sha256,
        "index_files": {name: dict(value) for name, value in header.index_files.items()},
        "row_alignment": header.row_alignment,
    }
    return encode_checked(record)


def write_header(path: Path, header: CacheHeader) -> None:
    """Write ``cache.json`` of the cache at ``path``."""
    write_durably(path / HEADER_NAME, encode_header(header))


def read_header(path: Path) -> CacheHeader:
    """Read and check ``cache.json``.

    Raises:
        CacheMissingError: there is no cache at ``path``.
        CacheStaleError: it was written by a newer version of this package.
        CacheCorruptError: the file is damaged, or alone is gone.
    """
    file = path / HEADER_NAME
    if not file.is_file():
        if next((path / LEDGER_FOLDER).glob("*-*.json"), None) is not None:
            raise CacheCorruptError(
                f"{place_of(path)}: {HEADER_NAME} is missing, the rows are there. Write it again, "
                f"keeping all rows: {repair_command(path)}"
            )
        raise CacheMissingError(
            f"{place_of(path)}: no cache here ({HEADER_NAME} is missing). "
            f"Make one: {precompute_command(path)}"
        )
    record = _read_json(file)
    version = record.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CacheStaleError(
            f"{place_of(path)}: schema_version is {version}, this installation reads up to "
            f"{SCHEMA_VERSION}. Update it: pip install --upgrade efficient-medsam2"
        )
    _check_digest(file, record)
    try:
        header = CacheHeader(
            spec=CacheSpec.model_validate(record["spec"]),
            counts={space: int(record["counts"][space]) for space in ROW_SPACES},
            index_sha256=record["index_sha256"],
            index_files=record["index_files"],
            row_alignment=int(record.get("row_alignment", CLOSE_TOGETHER)),
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise _damaged(file, str(error)) from error
    if header.spec.fingerprint() != record["fingerprint"]:
        raise _damaged(file, "its fingerprint is not that of its spec")
    return header


def write_complete_mark(path: Path, mark: CompleteMark) -> None:
    """Write ``complete.json`` of the cache at ``path``."""
    record = {"cache_digest": mark.cache_digest, "statistics_sha256": mark.statistics_sha256}
    if mark.seal_sha256 is not None:
        record["seal_sha256"] = mark.seal_sha256
    if mark.side_files_sha256 is not None:
        record["side_files_sha256"] = mark.side_files_sha256
    write_durably(path / COMPLETE_NAME, encode_checked(record))


def read_complete_mark(path: Path) -> CompleteMark | None:
    """Read ``complete.json``, or give ``None`` where there is none.

    Raises:
        CacheCorruptError: the file is damaged.
    """
    file = path / COMPLETE_NAME
    if not file.is_file():
        return None
    record = read_checked(file)
    return CompleteMark(
        cache_digest=record["cache_digest"],
        statistics_sha256=record["statistics_sha256"],
        seal_sha256=record.get("seal_sha256"),
        side_files_sha256=record.get("side_files_sha256"),
    )


def encode_checked(record: Mapping[str, Any]) -> bytes:
    """Give the content of a JSON file that carries the digest of itself."""
    digest = sha256_of_bytes(canonical_json(record))
    return json.dumps({**record, "sha256": digest}, indent=2).encode() + b"\n"


def read_checked(file: Path) -> dict[str, Any]:
    """Read a JSON file that ``encode_checked`` wrote, digest and all.

    Raises:
        CacheCorruptError: the file is damaged.
    """
    record = _read_json(file)
    _check_digest(file, record)
    return record


def _check_digest(file: Path, record: dict[str, Any]) -> None:
    rest = {key: value for key, value in record.items() if key != "sha256"}
    if sha256_of_bytes(canonical_json(rest)) != record.get("sha256"):
        raise _damaged(file, "its content does not fit its own SHA-256")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
    except ValueError as error:
        raise _damaged(file, f"it is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise _damaged(file, "it is not a JSON object")
    return record


def _damaged(file: Path, reason: str) -> CacheCorruptError:
    mend = f"Write it again, keeping all rows: {repair_command(file.parent)}"
    return CacheCorruptError(f"{place_of(file)} is damaged: {reason}. {mend}")
