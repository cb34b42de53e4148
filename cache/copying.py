"""Copying a cache between a folder and an object store, so that any moment of it can be resumed.

Both directions keep the order of writing: a shard's files before its ledger entry, everything
before the completion mark. What is finished at the destination is not copied again.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cache.durable import flush_folder, sha256_of_file, write_durably
from cache.errors import CacheCorruptError, CacheMissingError, CacheStaleError
from cache.layout import (
    COMPLETE_NAME,
    HEADER_NAME,
    LEDGER_FOLDER,
    CacheHeader,
    read_header,
)
from cache.ledger import LedgerEntry, load_ledger
from cache.ledger_entry import EntryReader, entry_path
from cache.ledger_seal import SEAL_NAME
from cache.lock import LOCK_NAME, FolderLock
from cache.mending import repair_command
from cache.mirror_sync import is_shard
from cache.remote import RemoteFolder
from cache.remote_lock import RemoteLock, is_of_writers
from cache.remote_object import RemoteObject
from cache.side_files import side_files_problems
from cache.sizes import check_room

__all__ = ["download_cache", "upload_cache"]

_THREADS = 8
_LAST = (f"{LEDGER_FOLDER}/{SEAL_NAME}", COMPLETE_NAME)

Advance = Callable[[int, int], None]


def upload_cache(path: Path, remote: RemoteFolder, *, progress: Advance | None = None) -> int:
    """Copy the finished shards of a local cache, and everything else of it, to a store.

    Args:
        path: the cache folder.
        remote: where it goes: nothing, or the same cache.
        progress: called with (shards done, shards to do).

    Returns:
        Shards that were copied.

    Raises:
        CacheMissingError: there is no cache at ``path``.
        CacheStaleError: there is another cache at the destination.
        CacheCorruptError: a local file is not what the ledger says; or a ledger entry is damaged.
        CacheLockedError: the cache is being written, here or there.
        CacheUnreachableError: the store does not answer.
    """
    header = read_header(path)
    lock = FolderLock(path)
    try:
        ledger = load_ledger(path, header)
        for error in ledger.problems.values():
            raise error
        _check_side_files(path)
        remote_lock = RemoteLock(remote)
        try:
            there = remote.read(HEADER_NAME)
            content = (path / HEADER_NAME).read_bytes()
            if there is not None and there[0] != content:
                raise _other(remote.url)
            known = remote.list(LEDGER_FOLDER)
            mark = remote.head(COMPLETE_NAME)
            known |= {} if mark is None else {COMPLETE_NAME: mark}
            with _threads(remote) as pool:
                if there is None:
                    _refuse_other_rows(remote, known, EntryReader(header), path)
                    remote.put(HEADER_NAME, content)
                wanted = {_name(path, entry_path(path, *key)): key for key in ledger.entries}
                alike = _alike(path, remote, known, [COMPLETE_NAME, *wanted], pool)
                remote.delete(*{COMPLETE_NAME} & known.keys() - alike)
                remote.delete(*wanted.keys() & known.keys() - alike)
                entries = [
                    ledger.entries[key] for name, key in sorted(wanted.items()) if name not in alike
                ]
                for done, entry in enumerate(entries):
                    remote_lock.check()
                    _upload_shard(path, remote, entry, pool)
                    if progress:
                        progress(done + 1, len(entries))
                names = sorted(
                    name
                    for name in (_name(path, file) for file in path.rglob("*") if file.is_file())
                    if not is_shard(name)
                    and not _is_entry(name)
                    and name not in (LOCK_NAME, HEADER_NAME, *_LAST)
                )
                list(pool.map(remote.put, names, [path / name for name in names]))
                for name in _LAST:
                    if (path / name).is_file():
                        remote.put(name, path / name)
        finally:
            remote_lock.release()
    finally:
        lock.release()
    return len(entries)


def _alike(
    path: Path,
    remote: RemoteFolder,
    there: Mapping[str, RemoteObject],
    names: Iterable[str],
    pool: ThreadPoolExecutor,
) -> set[str]:
    """Give the names of what is the same in the folder and in the store.

    Entries of one shard may differ: its rows were made again, on another machine.
    """
    both = [name for name in names if name in there and _has(path, name)]
    same = pool.map(lambda name: remote.holds(name, path / name, there[name].e_tag), both)
    return {name for name, alike in zip(both, same, strict=True) if alike}


def _refuse_other_rows(
    remote: RemoteFolder, known: Iterable[str], reader: EntryReader, path: Path
) -> None:
    """Refuse a store that lost its header, and whose rows are of another cache."""
    for name in sorted(name for name in known if _is_entry(name)):
        content = remote.read(name)
        try:
            if content is not None:
                reader.parse(path / name, content[0])
                return
        except CacheStaleError as error:
            raise _other(remote.url) from error
        except CacheCorruptError:
            continue  # the next one tells


def _upload_shard(
    path: Path, remote: RemoteFolder, entry: LedgerEntry, pool: ThreadPoolExecutor
) -> None:
    for file in entry.arrays.values():
        if sha256_of_file(path / file.file) != file.sha256:
            raise CacheCorruptError(
                f"{path / file.file} has other bytes than were written. Mend it: "
                f"{repair_command(path)}"
            )
    names = [file.file for file in entry.arrays.values()]
    list(pool.map(remote.put, names, [path / name for name in names]))
    place = entry_path(path, entry.space, entry.shard)
    remote.put(_name(path, place), place)


def download_cache(remote: RemoteFolder, path: Path, *, progress: Advance | None = None) -> int:
    """Copy a remote cache into a folder.

    Args:
        remote: the cache's objects.
        path: nothing, an empty folder, or an earlier copy of the same cache.
        progress: called with (shards done, shards to do).

    Returns:
        Shards that were copied.

    Raises:
        CacheMissingError: there is no cache in the store.
        CacheStaleError: there is another cache at ``path``.
        CacheCorruptError: an object is not what the ledger says.
        CacheSpaceError: the disk has no room for it.
        CacheUnreachableError: the store does not answer.
    """
    objects = {name: meta for name, meta in remote.list().items() if not is_of_writers(name)}
    found = remote.read(HEADER_NAME)
    if found is None:
        raise CacheMissingError(
            f"{remote.url}: no cache here ({HEADER_NAME} is missing). Look at the address"
        )
    path.mkdir(parents=True, exist_ok=True)
    if (path / HEADER_NAME).is_file():
        if (path / HEADER_NAME).read_bytes() != found[0]:
            raise _other(str(path))
    elif any(item.name != LOCK_NAME for item in path.iterdir()):
        raise CacheMissingError(f"{path} is not empty and holds no cache. Name another folder")
    check_room(path, sum(meta.bytes for name, meta in objects.items() if not _has(path, name)))
    lock = FolderLock(path)
    try:
        write_durably(path / HEADER_NAME, found[0])
        header = read_header(path)
        entries = [name for name in objects if _is_entry(name)]
        plain = [
            name
            for name in objects
            if not is_shard(name) and name not in (HEADER_NAME, *_LAST) and not _is_entry(name)
        ]
        with _threads(remote) as pool:
            alike = _alike(path, remote, objects, [COMPLETE_NAME, *entries], pool)
            missing = [name for name in entries if name not in alike]
            for name in (COMPLETE_NAME, *missing):
                if name not in alike:
                    (path / name).unlink(missing_ok=True)
            list(pool.map(lambda name: _download(remote, path, name), plain))
            for done, name in enumerate(sorted(missing)):
                _download_shard(remote, path, header, name, pool)
                if progress:
                    progress(done + 1, len(missing))
        _check_side_files(path)
        for name in _LAST:
            if name in objects:
                _download(remote, path, name)
    finally:
        lock.release()
    return len(missing)


def _download_shard(
    remote: RemoteFolder, path: Path, header: CacheHeader, name: str, pool: ThreadPoolExecutor
) -> None:
    content = remote.read(name)
    if content is None:
        raise CacheCorruptError(f"{remote.url}/{name} was removed in the meantime. Copy it again")
    place = path / name
    place.parent.mkdir(exist_ok=True)
    # Under its own name in a folder of its own until its files are there.
    arriving = path / LEDGER_FOLDER / "arriving"
    arriving.mkdir(exist_ok=True)
    write_durably(arriving / place.name, content[0])
    entry = EntryReader(header).read(arriving / place.name, sums=False)

    def get(file: str, sha256: str) -> None:
        target = path / file
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.partial")
        digest, _ = remote.download(file, temporary)
        if digest != sha256:
            temporary.unlink()
            raise CacheCorruptError(
                f"{remote.url}/{file} has other bytes than were written. Mend it: "
                f"{repair_command(remote.url)}"
            )
        temporary.replace(target)
        flush_folder(target.parent)

    files = [*entry.arrays.values()]
    list(pool.map(get, [file.file for file in files], [file.sha256 for file in files]))
    (arriving / place.name).replace(place)
    arriving.rmdir()


@contextmanager
def _threads(remote: RemoteFolder) -> Generator[ThreadPoolExecutor, None, None]:
    """Threads that do not wait for the store any longer once copying is given up."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield pool
        except BaseException:
            remote.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _download(remote: RemoteFolder, path: Path, name: str) -> None:
    found = remote.read(name)
    if found is not None:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_durably(path / name, found[0])


def _check_side_files(path: Path) -> None:
    for name, problem in side_files_problems(path)[1].items():
        raise CacheCorruptError(
            f"{path / name} {problem}. Mend the cache that was copied: {repair_command(path)}"
        )


def _is_entry(name: str) -> bool:
    return name.startswith(f"{LEDGER_FOLDER}/") and name.endswith(".json")


def _has(path: Path, name: str) -> bool:
    return (path / name).is_file()


def _name(path: Path, file: Path) -> str:
    return file.relative_to(path).as_posix()


def _other(place: str) -> CacheStaleError:
    return CacheStaleError(f"{place} holds another cache. Name another destination")
