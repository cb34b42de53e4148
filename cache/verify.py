"""Checking a whole cache against its ledger.

Reading checks sizes and row checksums on the way. This checks every byte's SHA-256, which also
finds shards that were swapped or copied from another cache.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache.contradiction import contradicting_shards
from cache.creation import open_store, shard_problem
from cache.durable import sha256_of_file
from cache.errors import CacheCorruptError
from cache.findings import BadPart, VerifyReport
from cache.index_files import INDEX_FOLDER, index_file_problem, read_index
from cache.info import CacheInfo, describe
from cache.layout import (
    COMPLETE_NAME,
    LEDGER_FOLDER,
    STATISTICS_NAME,
    CacheHeader,
    CompleteMark,
    read_complete_mark,
    read_header,
)
from cache.ledger import Ledger, LedgerEntry, ShardFile, load_ledger
from cache.ledger_seal import SEAL_NAME, seal_problem
from cache.mirror import Mirror
from cache.schema import ROW_SPACES
from cache.side_files import side_files_problems

__all__ = [
    "BadPart",
    "CacheInfo",
    "DigestFiles",
    "VerifyReport",
    "describe",
    "verify",
]


_OTHER = "its ledger entry is not the one that the cache was finished with"

DigestFiles = Callable[[Sequence[tuple[ShardFile, ...]]], Iterable[tuple[int, tuple[str, ...]]]]
"""Shards' files → (number of the shard in the sequence, SHA-256 of each file), in any order; empty
for a file that cannot be read."""


def verify(
    path: Path,
    *,
    sample: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    mirror: Mirror | None = None,
    digest_files: DigestFiles | None = None,
) -> VerifyReport:
    """Check a cache; changes nothing.

    Header, index, ledger, array metadata, statistics, the files beside the rows and the presence
    and size of every shard file are always checked; file contents of all shards, or of a sample.

    Args:
        path: the cache folder.
        sample: share of the shards, 0 to 1, whose bytes are compared; all where ``None``.
        progress: called with (files checked, files to check).
        mirror: of a cache on an object store, whose ``path`` this is; shards are looked at there.
        digest_files: reads the files of shards elsewhere: in other processes.

    Raises:
        CacheMissingError: there is no cache.
        CacheStaleError: it was written by a newer version.
        CacheCorruptError: ``cache.json`` itself is damaged.
        CacheUnreachableError: the object store does not answer.
        ValueError: ``sample`` is not a share.
    """
    if sample is not None and not 0 < sample <= 1:
        raise ValueError(f"sample is a share above 0 and up to 1, not {sample}")
    beside = _beside_shards(path) if mirror is None else _beside_remote_shards(path, mirror)
    header, ledger = beside.header, beside.ledger
    shards = {space: header.spec.shard_count(header.counts[space]) for space in ROW_SPACES}
    missing = {
        space: shards[space] - sum(of == space for of, _ in ledger.entries) for space in ROW_SPACES
    }
    bad = list(beside.bad)
    entries = [ledger.entries[key] for key in sorted(ledger.entries)]
    hashed = _sample(entries, sample)
    hashed_keys = {(entry.space, entry.shard) for entry in hashed}
    to_check = sum(len(entry.arrays) for entry in hashed)
    glance = partial(shard_problem, path) if mirror is None else mirror.glance()
    sha256 = partial(_shard_sha256, path) if mirror is None else mirror.shard_sha256
    reasons: dict[ShardFile, str] = {}
    to_read: list[tuple[ShardFile, ...]] = []
    checked = 0
    for entry in entries:
        reasons |= {file: why for file in entry.arrays.values() if (why := glance(file))}
        if (entry.space, entry.shard) in hashed_keys:
            to_read.append(tuple(file for file in entry.arrays.values() if file not in reasons))
            checked += len(entry.arrays) - len(to_read[-1])
    digested = digest_files(to_read) if digest_files else _digests_here(to_read, sha256)
    for number, digests in digested:
        for file, digest in zip(to_read[number], digests, strict=True):
            if not digest:
                reasons[file] = "cannot be read: the disk gives an error, or refuses it"
            elif digest != file.sha256:
                reasons[file] = "has other bytes than were written (SHA-256 differs)"
            checked += 1
            if progress:
                progress(checked, to_check)
    bad += [
        BadPart(space=entry.space, shard=entry.shard, array=array, reason=reasons[file])
        for entry in entries
        for array, file in entry.arrays.items()
        if file in reasons
    ]
    return VerifyReport(
        checked=checked,
        total=sum(len(entry.arrays) for entry in entries),
        missing=missing,
        bad=tuple(bad),
        shards=shards,
        finished=beside.finished,
        side_files=beside.side_files,
    )


@dataclass(frozen=True, kw_only=True)
class _BesideShards:
    """A cache's files but for its shards, and what is wrong with them."""

    header: CacheHeader
    ledger: Ledger
    finished: bool
    side_files: int | None
    bad: tuple[BadPart, ...]


def _beside_shards(path: Path) -> _BesideShards:
    header = read_header(path)
    # Before the ledger: a writer at work may finish in between.
    mark = _completion_mark(path)
    ledger = load_ledger(path, header)
    side_files, side_problems = side_files_problems(path)
    bad = (
        *_bad_index(path, header),
        *_bad_metadata(path, header),
        *(
            BadPart(space="ledger", shard=None, array=file.name, reason=str(error))
            for file, error in ledger.problems.items()
        ),
        *_bad_completion(path, header, ledger, mark),
        *(
            BadPart(space="files", shard=None, array=name, reason=reason)
            for name, reason in side_problems.items()
        ),
    )
    return _BesideShards(
        header=header, ledger=ledger, finished=mark is not None, side_files=side_files, bad=bad
    )


def _beside_remote_shards(path: Path, mirror: Mirror) -> _BesideShards:
    """Look at a mirror's copies; at new ones, where some may be damaged on this disk alone."""
    with suppress(CacheCorruptError):
        found = _beside_shards(path)
        if not found.bad:
            return found
    mirror.sync(thorough=True)
    return _beside_shards(path)


def _digests_here(
    shards: Sequence[tuple[ShardFile, ...]], sha256: Callable[[ShardFile], str]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    for number, files in enumerate(shards):
        yield number, tuple(sha256(file) for file in files)


def _shard_sha256(path: Path, file: ShardFile) -> str:
    return _sha256(path / file.file)


def _sha256(file: Path) -> str:
    """Give a file's SHA-256; nothing where the disk does not give its bytes."""
    try:
        return sha256_of_file(file)
    except OSError:
        return ""


def _sample(entries: list[LedgerEntry], share: float | None) -> list[LedgerEntry]:
    if share is None or not entries:
        return entries
    # Another sample each time, so that repeated checks come to see everything.
    return random.SystemRandom().sample(entries, math.ceil(share * len(entries)))


def _bad_index(path: Path, header: CacheHeader) -> list[BadPart]:
    folder = path / INDEX_FOLDER
    problems = {
        name: index_file_problem(folder, name, record)
        for name, record in header.index_files.items()
    }
    bad = [
        BadPart(space="index", shard=None, array=name, reason=problem)
        for name, problem in problems.items()
        if problem
    ]
    if not bad:
        index = read_index(folder, header.index_files)
        if index.content_sha256 != header.index_sha256 or index.counts() != header.counts:
            reason = "rows differ from those that cache.json announces"
            bad.append(BadPart(space="index", shard=None, array="all", reason=reason))
    return bad


def _bad_metadata(path: Path, header: CacheHeader) -> list[BadPart]:
    store = open_store(path, header)
    problems = {"all": store.group_problem()}
    problems |= {array.name: store.problem(array) for array in header.spec.arrays}
    return [
        BadPart(space="arrays", shard=None, array=name, reason=problem)
        for name, problem in problems.items()
        if problem
    ]


def _completion_mark(path: Path) -> CompleteMark | CacheCorruptError | None:
    try:
        return read_complete_mark(path)
    except CacheCorruptError as error:
        return error


def _bad_completion(
    path: Path,
    header: CacheHeader,
    ledger: Ledger,
    mark: CompleteMark | CacheCorruptError | None,
) -> list[BadPart]:
    def part(name: str, reason: str) -> list[BadPart]:
        return [BadPart(space="cache", shard=None, array=name, reason=reason)]

    if mark is None:
        return []
    if isinstance(mark, CacheCorruptError):
        return part(COMPLETE_NAME, str(mark))
    bad = []
    for space in ROW_SPACES:
        shards = range(header.spec.shard_count(header.counts[space]))
        absent = [k for k in shards if (space, k) not in ledger.entries]
        bad += [
            BadPart(space=space, shard=k, array="all", reason="has no usable ledger entry")
            for k in absent
        ]
    try:
        bad += [
            BadPart(space=space, shard=k, array="all", reason=_OTHER)
            for space, k in contradicting_shards(path, header, mark, ledger.entries)
        ]
    except CacheCorruptError as error:
        bad += part(COMPLETE_NAME, str(error))
    problem = seal_problem(path, mark)
    if problem:
        bad += part(f"{LEDGER_FOLDER}/{SEAL_NAME}", problem)
    file = path / STATISTICS_NAME
    if not file.is_file() or _sha256(file) != mark.statistics_sha256:
        bad += part(STATISTICS_NAME, "is missing or has other bytes than were written")
    return bad
