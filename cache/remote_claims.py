"""Which worker makes which shard of a cache on an object store, and what has come of it.

The writer that holds the cache's lock (``cache.remote_lock``) publishes every ledger entry itself;
its workers upload shards. For each shard a worker puts an object into ``workers/TOKEN/``: first
its claim, and when all files of the shard have arrived, the ledger entry in the claim's place.
The writer takes it from there.

A store knows no locks, but it decides conditional requests. A shard that is given to a second
worker, because the first one is lost, has its claim replaced by the second one's, so that the first
one, should it wake up, cannot put its entry there any more. An object of the shard that is there
already is replaced only if it is still the one that was looked at before lock and claim were. So
whatever a worker does that has lost its writer or its claim, it does to objects that the rightful
one looks at later, and replaces.
"""

import json
import os
import secrets
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import CacheCorruptError, CacheLockedError
from cache.ledger_entry import LedgerEntry, encode_entry
from cache.mending import precompute_command
from cache.remote import RemoteFolder
from cache.remote_lock import WORKERS_FOLDER, lock_token
from cache.remote_object import ObjectState
from cache.schema import RowSpace

if TYPE_CHECKING:
    from cache.mirror import Mirror

__all__ = ["RemotePermission", "made_entry", "remove_claims"]

_CLAIM = b'{"claim":'


def made_entry(remote: RemoteFolder, token: str, space: RowSpace, k: int) -> bytes | None:
    """Give the ledger entry of a shard that a worker has uploaded, or ``None``.

    Args:
        remote: the cache's objects.
        token: of the workers' writer.
        space: the row space.
        k: number of the shard.
    """
    found = remote.read(_name(token, space, k))
    return None if found is None or found[0].startswith(_CLAIM) else found[0]


def remove_claims(remote: RemoteFolder, token: str | None = None) -> None:
    """Remove what workers left behind.

    Args:
        remote: the cache's objects.
        token: of their writer, which has given its lock back; ``None``: those of all writers, by
            the one that holds the lock.
    """
    folder = WORKERS_FOLDER if token is None else f"{WORKERS_FOLDER}/{token}"
    remote.delete(*remote.list(folder))


class RemotePermission:
    """A worker's permission to upload shards, as long as its writer holds the cache's lock.

    Args:
        mirror: the worker's own, of that cache.
        token: the writer's.
    """

    def __init__(self, mirror: "Mirror", token: str) -> None:
        self._mirror = mirror
        self._token = token

    def check(self) -> None:
        """Make sure that the writer is at work.

        Raises:
            CacheLockedError: another one holds the lock, or none.
        """
        remote = self._mirror.remote
        if lock_token(remote) != self._token:
            raise CacheLockedError(
                f"{remote.url}: this worker's permission to write is over: the precompute that "
                "gave it has ended, or another one has begun; or this worker has another store at "
                "that address. Nothing was published. Look at cache.store_options and AWS_* in "
                f"the worker's environment, then go on: {precompute_command(remote.url)}"
            )

    def is_made(self, space: RowSpace, k: int) -> bool:
        """Whether a worker of this writer has uploaded a shard."""
        return made_entry(self._mirror.remote, self._token, space, k) is not None

    @contextmanager
    def shard(
        self, space: RowSpace, k: int
    ) -> Generator[Callable[[LedgerEntry], None] | None, None, None]:
        """Claim a shard.

        Yields:
            What uploads its files and hands in its entry; ``None`` where another worker has.

        Raises:
            CacheLockedError: the writer is gone.
        """
        self.check()
        claim = _Claim(self._mirror.remote, _name(self._token, space, k), self.check)
        if not claim.take():
            yield None
            return

        def hand_in(entry: LedgerEntry) -> None:
            names = [file.file for file in entry.arrays.values()]
            places = [self._mirror.path / name for name in names]
            list(self._mirror.pool.map(claim.upload, names, places))
            claim.hand_in(encode_entry(entry))

        yield hand_in


class _Claim:
    """One worker's claim of one shard.

    Args:
        remote: the cache's objects.
        name: of the claim.
        check: raises where the writer is gone.
    """

    def __init__(self, remote: RemoteFolder, name: str, check: Callable[[], None]) -> None:
        self._remote = remote
        self._name = name
        self._check_writer = check
        self._state: ObjectState | None = None
        holder = {"host": socket.gethostname(), "process": os.getpid()}
        # The number makes the ETag differ from that of every other claim.
        self._content = json.dumps({"claim": secrets.token_hex(8), **holder}).encode()

    def take(self) -> bool:
        """Take the claim from whoever has it; give ``False`` where the shard is made."""
        state = self._remote.put_if_absent(self._name, self._content)
        while state is None:
            found = self._remote.read(self._name)
            if found is None:
                self._check_writer()  # only a writer removes claims
                state = self._remote.put_if_absent(self._name, self._content)
            elif found[0] == self._content:  # the answer to our own request was lost
                state = found[1].state
            elif not found[0].startswith(_CLAIM):
                return False
            else:
                state = self._remote.put_if_same(self._name, self._content, found[1].state)
        self._state = state
        return True

    def upload(self, name: str, file: Path) -> None:
        """Make an object of the shard that of a file."""
        content = file.read_bytes()
        state = self._remote.put_if_absent(name, content)
        while state is None:
            found = self._remote.head(name)
            if found is None:
                state = self._remote.put_if_absent(name, content)
            elif self._remote.holds(name, content, found.e_tag):
                return
            else:  # the order matters: looked at, then allowed, then replaced if still the same
                self._check()
                state = self._remote.put_if_same(name, content, found.state)
        if not self._remote.holds(name, content, state.e_tag):
            self._check()
            raise CacheCorruptError(
                f"{self._remote.url}/{name} holds other bytes than were sent. The network, the "
                "store or the memory is failing: check them, then run the command again"
            )

    def hand_in(self, entry: bytes) -> None:
        """Put the shard's ledger entry in the claim's place."""
        assert self._state is not None, "it was taken"
        if self._remote.put_if_same(self._name, entry, self._state) is None:
            found = self._remote.read(self._name)
            if found is None or found[0] != entry:  # else the answer to our request was lost
                raise self._lost()

    def _check(self) -> None:
        self._check_writer()
        found = self._remote.read(self._name)
        if found is None or found[0] != self._content:
            raise self._lost()

    def _lost(self) -> CacheLockedError:
        return CacheLockedError(
            f"{self._remote.url}/{self._name}: another worker was given this shard. Nothing was "
            "published. If the run does not go on by itself: "
            f"{precompute_command(self._remote.url)}"
        )


def _name(token: str, space: RowSpace, k: int) -> str:
    return f"{WORKERS_FOLDER}/{token}/{space}-{k:06d}.json"
