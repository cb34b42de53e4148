"""Mending a cache as far as it can be mended from itself.

What stands in a cache twice is written again: array metadata, statistics, the sealed ledger and
the completion mark. Bad shards are taken out of the ledger. The index, the rows themselves and the
files beside them come from the data and the teacher alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.contradiction import contradicting_shards
from cache.errors import CacheCorruptError
from cache.index_files import INDEX_FOLDER, read_index
from cache.layout import COMPLETE_NAME, read_complete_mark, read_header
from cache.ledger import entry_path, load_ledger
from cache.lock import FolderLock
from cache.mirror import Mirror
from cache.remote_publish import take_over_made
from cache.schema import ROW_SPACES, RowSpace
from cache.verify import VerifyReport
from cache.writer import CacheWriter

__all__ = ["Mended", "cover", "discard_bad", "mend"]


@dataclass(frozen=True, kw_only=True)
class Mended:
    """What mending came to.

    Attributes:
        lines: one for each thing that was taken out or written again.
        missing: row space → shards that are to be computed.
        index: whether the index is to be written again from the data.
        complete: whether the cache is complete now.
        side_files: names of files beside the rows that are to be made again.
    """

    lines: tuple[str, ...]
    missing: dict[RowSpace, tuple[int, ...]]
    index: bool
    complete: bool
    side_files: tuple[str, ...] = ()


def mend(path: Path, report: VerifyReport, *, mirror: Mirror | None = None) -> Mended:
    """Take out what is bad, and finish the cache where nothing has to be computed.

    Args:
        path: the cache folder.
        report: what ``verify`` found in it.
        mirror: of a cache on an object store, whose ``path`` this is.

    Raises:
        CacheCorruptError: ledger and completion mark contradict each other; nothing is touched.
        CacheLockedError: a writer is at work.
        CacheSpaceError: the disk is full.
    """
    taken_out = discard_bad(path, report, mirror=mirror)
    header = read_header(path)
    if any(part.space == "index" for part in report.bad):
        bad = {(part.space, part.shard) for part in report.bad if part.shard is not None}
        shards: dict[RowSpace, tuple[int, ...]] = {
            space: tuple(sorted(k for of, k in bad if of == space)) for space in ROW_SPACES
        }
        return Mended(lines=taken_out, missing=shards, index=True, complete=False)
    index = read_index(path / INDEX_FOLDER, header.index_files)
    with CacheWriter.create_or_resume(path, header.spec, index, mirror=mirror) as writer:
        missing = {space: writer.missing_shards(space) for space in ROW_SPACES}
        beside = tuple(part.array for part in report.bad if part.space == "files")
        complete = not any(missing.values()) and not beside
        lines = (*taken_out, *writer.discarded)
        if complete:
            writer.finish()
            lines += ("metadata, statistics, sealed ledger and completion mark are written again",)
    return Mended(lines=lines, missing=missing, index=False, complete=complete, side_files=beside)


def cover(path: Path, record: Callable[[Path], None], *, mirror: Mirror | None = None) -> None:
    """Record the files beside the rows of a sound cache that was finished without digests of them.

    Args:
        path: the cache folder.
        record: records what is there, as it is.
        mirror: of a cache on an object store, whose ``path`` this is.

    Raises:
        CacheLockedError: a writer is at work.
        CacheSpaceError: the disk is full.
    """
    header = read_header(path)
    index = read_index(path / INDEX_FOLDER, header.index_files)
    with CacheWriter.create_or_resume(path, header.spec, index, mirror=mirror) as writer:
        record(path)
        writer.finish()


def discard_bad(
    path: Path, report: VerifyReport, *, mirror: Mirror | None = None
) -> tuple[str, ...]:
    """Take bad shards out of the ledger, so that the next ``precompute`` writes them again.

    Index files, array metadata, statistics and ledger entries need nothing: the next writer
    mends them by itself.

    Args:
        path: the cache folder.
        report: what ``verify`` found in it.
        mirror: of a cache on an object store, whose ``path`` this is.

    Returns:
        One line for each shard that was taken out.

    Raises:
        CacheCorruptError: ledger and completion mark contradict each other; nothing is touched.
        CacheLockedError: a writer is at work.
    """
    if report.ok:
        return ()
    if mirror is not None:
        remote_lock = mirror.lock_for_writing()
        try:
            # Before anything is taken out: of a shard that is, the next writer takes nothing over.
            take_over_made(mirror, read_header(path))
            discarded = discard_bad(path, report)
            mirror.files.push(mirror.pool)
        finally:
            remote_lock.release()
        return discarded
    lock = FolderLock(path)
    try:
        _refuse_unclear(path)
        (path / COMPLETE_NAME).unlink(missing_ok=True)
        lines = []
        for space in ROW_SPACES:
            shards = {part.shard for part in report.bad if part.space == space}
            for shard in sorted(shard for shard in shards if shard is not None):
                entry_path(path, space, shard).unlink(missing_ok=True)
                lines.append(f"{space} shard {shard} will be written again")
    finally:
        lock.release()
    return tuple(lines)


def _refuse_unclear(path: Path) -> None:
    """Refuse where it cannot be told which shards contradict the completion mark."""
    header = read_header(path)
    try:
        mark = read_complete_mark(path)
    except CacheCorruptError:
        return
    if mark is not None:
        contradicting_shards(path, header, mark, load_ledger(path, header).entries)
