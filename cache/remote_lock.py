"""One writer per cache on an object store: an object that only one process can make.

It is made with ``If-None-Match: *`` and renewed with ``If-Match``, so the store itself decides who
has it. A killed writer leaves it behind; on the machine of that writer the next one takes it
over, elsewhere it must be removed by a person, because a writer that is merely cut off goes on.
"""

import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from cache.errors import CacheError, CacheLockedError
from cache.mending import precompute_command
from cache.remote import RemoteFolder
from cache.remote_object import ObjectState, RemoteObject

__all__ = ["LOCK_OBJECT", "WORKERS_FOLDER", "RemoteLock", "is_of_writers", "lock_token", "unlock"]

LOCK_OBJECT = "writer.lock"
WORKERS_FOLDER = "workers"
"""What the workers of a writer have to tell it: ``cache.remote_claims``."""

_BEAT_SECONDS = 30.0
_SILENT_SECONDS = 180.0


class RemoteLock:
    """The lock of one cache, held until ``release``.

    Args:
        remote: the cache's objects.
        beat_seconds: how often the lock is renewed.

    Raises:
        CacheLockedError: another process holds it.
        CacheUnreachableError: the store does not answer.
    """

    def __init__(self, remote: RemoteFolder, *, beat_seconds: float = _BEAT_SECONDS) -> None:
        self._remote = remote
        self._token = secrets.token_hex(8)
        self._problem: CacheError | None = None
        self._stop = threading.Event()
        self._state = self._take()
        self._thread = threading.Thread(
            target=self._beat, args=(beat_seconds,), name="cache-remote-lock", daemon=True
        )
        self._thread.start()

    @property
    def token(self) -> str:
        """What tells this writer from all others, to be seen in the lock by its workers."""
        return self._token

    def check(self) -> None:
        """Make sure that the lock is still ours.

        Raises:
            CacheLockedError: somebody removed it or took it over.
        """
        if self._problem is not None:
            raise self._problem

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            if self._problem is None:
                self._remote.delete(LOCK_OBJECT)

    def _content(self) -> bytes:
        record = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "token": self._token,
            "renewed": time.time(),
        }
        return json.dumps(record).encode()

    def _take(self) -> ObjectState:
        state = self._remote.put_if_absent(LOCK_OBJECT, self._content())
        if state is not None:
            return state
        found = self._remote.read(LOCK_OBJECT)
        if found is None:  # given back this very moment
            return self._take()
        holder, meta = _holder(found[0]), found[1]
        if holder.get("token") == self._token:  # the answer to our own request was lost
            return meta.state
        if _is_gone(holder):
            state = self._remote.put_if_same(LOCK_OBJECT, self._content(), meta.state)
            if state is not None:
                return state
        raise CacheLockedError(_held_by(self._remote.url, holder, meta))

    def _beat(self, seconds: float) -> None:
        while not self._stop.wait(seconds) and self._problem is None:
            self._renew()

    def _renew(self) -> None:
        try:
            state = self._remote.put_if_same(LOCK_OBJECT, self._content(), self._state)
            if state is None:
                found = self._remote.read(LOCK_OBJECT)
                if found is not None and _holder(found[0]).get("token") == self._token:
                    state = found[1].state
        except CacheError as error:
            self._problem = error
            return
        if state is None:
            self._problem = CacheLockedError(
                f"{self._remote.url}: another process removed or took over this writer's "
                f"lock ({LOCK_OBJECT}), so this one stops. Go on when the other has ended: "
                f"{precompute_command(self._remote.url)}"
            )
            return
        self._state = state


def lock_token(remote: RemoteFolder) -> str | None:
    """Give the token of the writer that holds a cache's lock, or ``None`` where none does."""
    found = remote.read(LOCK_OBJECT)
    token = None if found is None else _holder(found[0]).get("token")
    return token if isinstance(token, str) else None


def is_of_writers(name: str) -> bool:
    """Whether an object beside a cache's own, by its relative name, is there for its writers."""
    return name == LOCK_OBJECT or name.startswith(f"{WORKERS_FOLDER}/")


def unlock(remote: RemoteFolder, *, force: bool = False) -> str:
    """Remove the lock that a killed writer left.

    Args:
        remote: the cache's objects.
        force: remove it although its holder showed a sign of life a moment ago.

    Returns:
        One line that says what was done.

    Raises:
        CacheLockedError: the holder seems to be at work.
    """
    found = remote.read(LOCK_OBJECT)
    if found is None:
        return f"{remote.url} is not locked"
    holder, meta = _holder(found[0]), found[1]
    if not force and not _is_gone(holder) and _silence(meta) < _SILENT_SECONDS:
        raise CacheLockedError(_held_by(remote.url, holder, meta) + " --force")
    remote.delete(LOCK_OBJECT)
    return f"{remote.url}: removed the lock of {_name(holder)}"


def _holder(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process', 'unknown')} on {holder.get('host', 'unknown')}"


def _silence(meta: RemoteObject) -> float:
    return max(0.0, time.time() - meta.modified)


def _held_by(url: str, holder: dict[str, Any], meta: RemoteObject) -> str:
    return (
        f"{url}: {_name(holder)} is writing this cache (last sign of life {_silence(meta):.0f} s "
        "ago). Wait until it ends. If it is dead, remove its lock: efficient-medsam2 cache unlock "
        f"{url}"
    )


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
