"""Starting a cache folder, or taking up the one that is there.

The header is written first, so that whatever a killed process leaves behind is known to be a
cache, and of which settings.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cache.address import place_of
from cache.conversions import CONVERTED_NAME
from cache.durable import TEMPORARY_SUFFIX, sha256_of_bytes
from cache.errors import CacheCorruptError, CacheMissingError, CacheStaleError
from cache.hdf5_store import Hdf5Store
from cache.index import CacheIndex
from cache.index_files import INDEX_FOLDER, encode_index, index_file_problem, write_index
from cache.layout import (
    ARRAYS_FOLDER,
    COMPLETE_NAME,
    HEADER_NAME,
    LEDGER_FOLDER,
    STATISTICS_NAME,
    CacheHeader,
    read_header,
    write_header,
)
from cache.ledger import LedgerEntry, ShardFile, entry_path, load_ledger
from cache.lock import LOCK_NAME, FolderLock
from cache.mending import precompute_command, repair_command
from cache.schema import CacheSpec, Difference, RowSpace
from cache.shard_index import ROW_ALIGNMENT
from cache.side_files import SIDE_FILES_NAME
from cache.sizes import check_room, required_bytes, space_errors
from cache.store import ArrayStore
from cache.worker_token import TOKEN_NAME, remove_shard_locks, revoke_token
from cache.zarr_store import ZarrStore

__all__ = [
    "discard_untrusted",
    "open_store",
    "prepare_folder",
    "refuse_other_folder",
    "shard_problem",
]


def open_store(path: Path, header: CacheHeader) -> ArrayStore:
    """Give the store that a header names."""
    if header.spec.format == "hdf5":
        return Hdf5Store(path, header.spec, header.counts)
    return ZarrStore(path, header.spec, header.counts, row_alignment=header.row_alignment)


def prepare_folder(
    path: Path, spec: CacheSpec, index: CacheIndex, *, replace: bool, most: int | None = None
) -> tuple[FolderLock, CacheHeader, ArrayStore]:
    """Lock a folder and make it hold the header, index and array metadata of a cache.

    Args:
        path: the folder.
        spec: identity of the cache.
        index: its rows.
        replace: throw away the cache that is there.
        most: bytes that lie there at any moment, where the cache is only passing through.

    Raises:
        CacheMissingError, CacheStaleError, CacheCorruptError, CacheLockedError, CacheSpaceError:
            see ``CacheWriter.create_or_resume``.
    """
    with space_errors(path, 0):
        path.mkdir(parents=True, exist_ok=True)
        refuse_other_folder(path, spec, index)
        lock = FolderLock(path)
        try:
            # First of all, so that no worker of an earlier writer publishes in between.
            revoke_token(path)
            remove_shard_locks(path)
            header = _prepare_locked(path, spec, index, replace=replace, most=most)
            store = open_store(path, header)
            store.prepare()
        except BaseException:
            lock.release()
            raise
    return lock, header, store


def refuse_other_folder(path: Path, spec: CacheSpec, index: CacheIndex) -> None:
    """Refuse a folder without a header that is neither empty nor of this cache.

    Raises:
        CacheStaleError: it has rows of other settings.
        CacheMissingError: it has other files.
    """
    if (path / HEADER_NAME).exists() or _ledger_is_of(path, spec, index):
        return
    others = sorted(item.name for item in path.iterdir() if not _is_header_leftover(item))
    if LEDGER_FOLDER in others:
        raise CacheStaleError(
            f"{place_of(path)} holds a cache that lost its {HEADER_NAME}, and its rows are of "
            "other settings. Nothing was touched. Put it back with the config that made the cache: "
            f"{repair_command(path)}; or use another folder: --set cache.path=FOLDER"
        )
    if others:
        raise CacheMissingError(
            f"{path} is not empty and holds no cache (it has {', '.join(others[:3])}). "
            f"Name another folder: {precompute_command('FOLDER')}"
        )


def _is_header_leftover(item: Path) -> bool:
    temporary = item.name.startswith(HEADER_NAME) and item.suffix == TEMPORARY_SUFFIX
    return temporary or item.name in (LOCK_NAME, TOKEN_NAME)


def _prepare_locked(
    path: Path, spec: CacheSpec, index: CacheIndex, *, replace: bool, most: int | None
) -> CacheHeader:
    for folder in (path, path / INDEX_FOLDER, path / LEDGER_FOLDER):
        for name in (item.name for item in _own_temporaries(folder)):
            (folder / name).unlink()
    if replace:
        _remove_content(path)
    there = (path / HEADER_NAME).exists()
    if not there and not replace and _ledger_is_of(path, spec, index):
        return _write_header_and_index(path, spec, index)
    if replace or not there:
        # Before the header: a refused cache must not stand in the way of a smaller one.
        needed = required_bytes(spec, index.counts())["total"]
        check_room(path, needed if most is None else min(needed, most))
        return _write_header_and_index(path, spec, index)
    try:
        header = read_header(path)
    except CacheCorruptError:
        if not _ledger_is_of(path, spec, index):
            raise
        return _write_header_and_index(path, spec, index)
    _refuse_other_cache(path, header, spec, index)
    (path / LEDGER_FOLDER).mkdir(exist_ok=True)
    folder = path / INDEX_FOLDER
    if any(index_file_problem(folder, name, file) for name, file in header.index_files.items()):
        return _write_header_and_index(path, header.spec, index, header.row_alignment)
    return header


def _ledger_is_of(path: Path, spec: CacheSpec, index: CacheIndex) -> bool:
    """Whether every entry that can be read, and one at least, is of this very cache."""
    header = CacheHeader(
        spec=spec, counts=index.counts(), index_sha256=index.content_sha256, index_files={}
    )
    ledger = load_ledger(path, header)
    foreign = any(isinstance(error, CacheStaleError) for error in ledger.problems.values())
    return bool(ledger.entries) and not foreign


def _own_temporaries(folder: Path) -> Iterator[Path]:
    # Only names that ``write_durably`` makes of ours: others may put files beside the cache's.
    yield from folder.glob(f"*.json.*{TEMPORARY_SUFFIX}")
    yield from folder.glob(f"*.parquet.*{TEMPORARY_SUFFIX}")


def _remove_content(path: Path) -> None:
    # The header stays until it is overwritten, so that a kill in between leaves a known cache.
    (path / COMPLETE_NAME).unlink(missing_ok=True)
    for name in (STATISTICS_NAME, SIDE_FILES_NAME, CONVERTED_NAME):
        (path / name).unlink(missing_ok=True)
    for folder in (LEDGER_FOLDER, ARRAYS_FOLDER, INDEX_FOLDER):
        if (path / folder).exists():
            shutil.rmtree(path / folder)


def _write_header_and_index(
    path: Path, spec: CacheSpec, index: CacheIndex, row_alignment: int = ROW_ALIGNMENT
) -> CacheHeader:
    files = encode_index(index)
    header = CacheHeader(
        spec=spec,
        counts=index.counts(),
        index_sha256=index.content_sha256,
        index_files={
            name: {"bytes": len(content), "sha256": sha256_of_bytes(content)}
            for name, content in files.items()
        },
        row_alignment=row_alignment,
    )
    write_header(path, header)
    write_index(path / INDEX_FOLDER, files)
    (path / LEDGER_FOLDER).mkdir(exist_ok=True)
    return header


def _refuse_other_cache(
    path: Path, header: CacheHeader, spec: CacheSpec, index: CacheIndex
) -> None:
    differences: tuple[Difference, ...] = header.spec.differences(spec)
    if not differences and header.index_sha256 != index.content_sha256:
        differences = (("index", header.index_sha256[:12], index.content_sha256[:12]),)
    if not differences:
        return
    key, theirs, mine = differences[0]
    more = f" (and {len(differences) - 1} more keys)" if len(differences) > 1 else ""
    raise CacheStaleError(
        f"{place_of(path)} holds a cache of other settings: {key} is {theirs!r} there, {mine!r} "
        f"now{more}. "
        "Use another folder (--set cache.path=FOLDER), or replace this cache: "
        f"{precompute_command(path)} --force precompute"
    )


def shard_problem(path: Path, file: ShardFile) -> str | None:
    """Say what a glance tells is wrong with a shard's file, or give ``None``."""
    try:
        size = (path / file.file).stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if size == file.bytes else f"has {size} bytes, not {file.bytes}"


def discard_untrusted(
    path: Path,
    header: CacheHeader,
    store: ArrayStore,
    *,
    glance: Callable[[ShardFile], str | None] | None = None,
) -> tuple[dict[tuple[RowSpace, int], LedgerEntry], tuple[str, ...]]:
    """Remove whatever a resumed cache cannot build on.

    Args:
        path: the cache folder.
        header: its header.
        store: its arrays.
        glance: says what is wrong with a shard's file, where shards do not lie in ``path``.

    Returns:
        The finished shards that remain, and one line for each thing removed.
    """
    ledger = load_ledger(path, header)
    look = glance or partial(shard_problem, path)
    lines = [str(error) for error in ledger.problems.values()]
    doubtful = list(ledger.problems)
    entries = {}
    for (space, shard), entry in ledger.entries.items():
        problems = [(file.file, look(file)) for file in entry.arrays.values()]
        found = [f"{name} {problem}" for name, problem in problems if problem]
        if found:
            lines.append(f"{space} shard {shard} is written again: {', '.join(found)}")
            doubtful.append(entry_path(path, space, shard))
        else:
            entries[space, shard] = entry
    for file in doubtful:
        file.unlink()
    for array in header.spec.arrays:
        for shard in store.stored_shards(array):
            if (array.rows, shard) in entries:
                names = store.remove_leftovers(array, shard)
                lines.extend(f"{name}: leftover of a stopped writer" for name in names)
            else:
                store.remove_shard(array, shard)
                lines.append(f"{store.shard_file(array, shard)}: not in the ledger")
    return entries, tuple(lines)
