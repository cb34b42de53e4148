"""Everything of a remote cache that is not a shard: pulled when it changed there, pushed when here.

What is where follows from the store's own list, so one request tells about a thousand files. The
state file remembers, for each file, the ETag that it had and the size and time of the local copy.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from cache.address import keep_address
from cache.creation import open_store
from cache.durable import TEMPORARY_SUFFIX, flush_folder, write_durably
from cache.errors import CacheError, CacheLockedError
from cache.layout import (
    ARRAYS_FOLDER,
    COMPLETE_NAME,
    HEADER_NAME,
    LEDGER_FOLDER,
    read_header,
)
from cache.ledger_seal import SEAL_NAME
from cache.lock import LOCK_NAME, in_turn, is_held
from cache.remote import RemoteFolder
from cache.remote_lock import LOCK_OBJECT, WORKERS_FOLDER, is_of_writers

__all__ = ["MirrorFiles", "is_shard"]

_STATE_NAME = "files.json"
_SEAL = f"{LEDGER_FOLDER}/{SEAL_NAME}"


def is_shard(name: str) -> bool:
    """Whether a file of a cache, by its relative name, holds rows."""
    return name.startswith(f"{ARRAYS_FOLDER}/") and not name.endswith("zarr.json")


class MirrorFiles:
    """The files of a mirrored cache without its shards.

    Args:
        path: the local folder that looks like the cache.
        state: the mirror's own folder.
        remote: the cache's objects.
        drop: called with the name of a shard file that must not be used any more.
    """

    def __init__(
        self, path: Path, state: Path, remote: RemoteFolder, *, drop: Callable[[str], None]
    ) -> None:
        self._path = path
        self._state = state
        self._remote = remote
        self._drop = drop
        self._known: dict[str, list[Any]] = _read_state(state / _STATE_NAME)

    def pull(self, pool: Executor, *, thorough: bool = False, ours: bool = True) -> None:
        """Make the local files those of the store.

        Args:
            pool: asks the store.
            thorough: compare the bytes of files that look as they were left, too.
            ours: whether this process holds the mirror's lock. Under one that does, a writer or
                who trains, nothing is touched: what is there is what that one sees.

        Raises:
            CacheLockedError: another process holds the lock, and no cache is there yet.
            CacheUnreachableError: the store does not answer.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        self._state.mkdir(parents=True, exist_ok=True)
        if ours:
            self._pull(pool, thorough)
            return
        with in_turn(self._state):
            if not is_held(self._state):
                self._known = _read_state(self._state / _STATE_NAME)  # another may have been here
                self._pull(pool, thorough)
            elif not (self._path / HEADER_NAME).is_file():
                raise CacheLockedError(
                    f"{self._state.parent}: another process has just begun to use this mirror of "
                    f"{self._remote.url}, and no cache is there yet. Type the command again in a "
                    "moment"
                )

    def _pull(self, pool: Executor, thorough: bool) -> None:
        keep_address(self._state.parent, self._remote.url)
        if thorough:
            self._forget_damaged(pool)
        there = self._listed()
        if HEADER_NAME not in there and not any(map(_is_entry, there)):
            self._clear()  # else the header alone is gone, and the rows are whoever's they were
            return
        wanted = {name for name in there if not self._same(name, there[name])}
        if HEADER_NAME in wanted:
            self._clear()  # another cache: none of its shards may be taken for one of this
            wanted = set(there)
        gone = [name for name in self._local() if name not in there and name not in wanted]
        for name in sorted(wanted | set(gone)):
            self._drop_shards_of(name)
        for name in gone:
            if not name.startswith(f"{ARRAYS_FOLDER}/"):
                (self._path / name).unlink(missing_ok=True)
                self._known.pop(name, None)
        # The seal speaks only for entries that are older than itself, and the mark for the seal.
        last = (_SEAL, COMPLETE_NAME)
        self._download(pool, [HEADER_NAME] if HEADER_NAME in wanted else [])
        self._pull_metadata(pool)
        self._download(pool, sorted(wanted - {HEADER_NAME, *last}))
        for name in last:
            self._download(pool, [name] if name in wanted else [])
        self._save()

    def push(self, pool: Executor) -> None:
        """Make the store's files the local ones; the header and the completion mark come last.

        Raises:
            CacheUnreachableError: the store does not answer.
        """
        local = set(self._local())
        gone = [name for name in self._known if name not in local]
        self._remote.delete(*(name for name in gone if name == COMPLETE_NAME))
        self._remote.delete(*(name for name in gone if name != COMPLETE_NAME))
        for name in gone:
            del self._known[name]
        changed = {name for name in local if not self._unchanged(name)}
        if COMPLETE_NAME in changed and self._mark_differs():
            self._remote.delete(COMPLETE_NAME)  # what it stands for changes before it does
        last = (HEADER_NAME, _SEAL, COMPLETE_NAME)
        self._upload(pool, sorted(changed - set(last)))
        for name in last:
            self._upload(pool, [name] if name in changed else [])
        self._save()

    def remember(self, name: str, e_tag: str) -> None:
        """Say that the local file is the object of this ETag."""
        status = (self._path / name).stat()
        self._known[name] = [e_tag, status.st_size, status.st_mtime_ns]

    def remove_all(self) -> None:
        """Remove the cache from the store and here: first what declares it finished."""
        objects = set(self._remote.list()) - {LOCK_OBJECT}
        declared = {name for name in objects if name.startswith(f"{LEDGER_FOLDER}/")}
        self._remote.delete(*objects & {COMPLETE_NAME})
        self._remote.delete(*declared)
        self._remote.delete(*objects - declared - {COMPLETE_NAME, HEADER_NAME})
        self._remote.delete(*objects & {HEADER_NAME})
        self._clear()

    def _listed(self) -> dict[str, str]:
        """ETags of all objects but shards, array metadata and what writers tell each other."""
        objects, folders = self._remote.list_here()
        for folder in folders:
            if folder not in (ARRAYS_FOLDER, WORKERS_FOLDER):
                objects |= self._remote.list(folder)
        return {name: found.e_tag for name, found in objects.items() if not is_of_writers(name)}

    def _local(self) -> Iterable[str]:
        """Names of all local files but shards, locks and leftovers."""
        for folder, _, files in os.walk(self._path):
            for file in files:
                name = (Path(folder) / file).relative_to(self._path).as_posix()
                if file != LOCK_NAME and not is_shard(name) and not file.endswith(TEMPORARY_SUFFIX):
                    yield name

    def _same(self, name: str, e_tag: str) -> bool:
        return self._unchanged(name) and self._known[name][0] == e_tag

    def _unchanged(self, name: str) -> bool:
        known = self._known.get(name)
        try:
            status = (self._path / name).stat()
        except FileNotFoundError:
            return False
        return known is not None and known[1:] == [status.st_size, status.st_mtime_ns]

    def _mark_differs(self) -> bool:
        known = self._known.get(COMPLETE_NAME)
        content = (self._path / COMPLETE_NAME).read_bytes()
        return known is not None and not self._remote.holds(COMPLETE_NAME, content, known[0])

    def _forget_damaged(self, pool: Executor) -> None:
        """Forget files of other bytes than when they were fetched, though nothing else tells."""

        def whole(name: str) -> bool:
            return self._remote.holds(name, self._path / name, self._known[name][0])

        names = [name for name in self._known if self._unchanged(name)]
        for name, sound in zip(names, pool.map(whole, names), strict=True):
            if not sound:
                del self._known[name]

    def _drop_shards_of(self, name: str) -> None:
        """Drop the shard files of a ledger entry that changes or goes."""
        file = self._path / name
        if not (_is_entry(name) and file.is_file()):
            return
        try:
            with file.open("rb") as opened:
                arrays = json.loads(opened.readline())["entry"]["arrays"]
            names = [record["file"] for record in arrays.values()]
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # a damaged entry: none of its shards was ever given
        for shard in names:
            self._drop(shard)

    def _pull_metadata(self, pool: Executor) -> None:
        try:
            header = read_header(self._path)
        except CacheError:
            return  # whoever reads it meets the same error; a repair must come further
        for array in header.spec.arrays:
            (self._path / ARRAYS_FOLDER / array.name).mkdir(parents=True, exist_ok=True)
        names = [f"{ARRAYS_FOLDER}/{key}" for key in open_store(self._path, header).metadata()]
        self._download(pool, [name for name in names if not self._unchanged(name)])

    def _download(self, pool: Executor, names: list[str]) -> None:
        def get(name: str) -> None:
            file = self._path / name
            found = self._remote.read(name)
            if found is None:  # removed since it was listed, or damage that verify names
                file.unlink(missing_ok=True)
                self._known.pop(name, None)
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            write_durably(file, found[0])
            self.remember(name, found[1].e_tag)

        list(pool.map(get, names))

    def _upload(self, pool: Executor, names: list[str]) -> None:
        def put(name: str) -> None:
            self.remember(name, self._remote.put(name, (self._path / name).read_bytes()))

        list(pool.map(put, names))

    def _save(self) -> None:
        write_durably(self._state / _STATE_NAME, json.dumps(self._known).encode())

    def _clear(self) -> None:
        self._known.clear()
        self._save()
        for name in [
            file.relative_to(self._path).as_posix()
            for file in (self._path / ARRAYS_FOLDER).rglob("*")
            if file.is_file()
        ]:
            if is_shard(name):
                self._drop(name)
        for item in self._path.iterdir():
            if item.name == LOCK_NAME:
                continue
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink()
        flush_folder(self._path)


def _is_entry(name: str) -> bool:
    return name.startswith(f"{LEDGER_FOLDER}/") and name != _SEAL


def _read_state(file: Path) -> dict[str, list[Any]]:
    try:
        record = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}  # everything is fetched again
    return record if isinstance(record, dict) else {}
