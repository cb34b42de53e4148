"""Who else may write a cache: workers that hold the token of the writer at work.

The one writer of a folder (``cache.lock``) may let processes on other machines write shards. It
writes a token, and each worker compares it with its own whenever it writes a shard. A worker
whose writer is gone, however late it wakes up, finds another token or none and publishes
nothing.

Workers hold the token's file in shared mode while they write and publish one shard; giving a new
token takes it exclusively. So a token never changes in the middle of a shard. Both modes are
``flock``, which the shared file system must support, and the kernel lets go of both when a process
ends.
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import CacheLockedError
from cache.layout import LEDGER_FOLDER
from cache.mending import precompute_command
from cache.schema import RowSpace

__all__ = [
    "SHARD_LOCK_SUFFIX",
    "TOKEN_NAME",
    "give_token",
    "hold_shard",
    "hold_token",
    "remove_shard_locks",
    "revoke_token",
]

TOKEN_NAME = ".workers"
SHARD_LOCK_SUFFIX = ".lock"
PATIENCE_S = 120.0
"""How long a new writer waits for a worker of an earlier one that is in the middle of a shard."""

_TOKEN_BYTES = 16
_POLL_S = 0.02


def give_token(folder: Path) -> str:
    """Let workers write, those with this token alone; the folder's lock must be held.

    Raises:
        CacheLockedError: a worker of an earlier writer does not end its shard.
    """
    token = secrets.token_hex(_TOKEN_BYTES)
    _replace_token(folder, token, create=True)
    return token


def revoke_token(folder: Path) -> None:
    """Let no worker write any more; the folder's lock must be held.

    Raises:
        CacheLockedError: a worker of an earlier writer does not end its shard.
    """
    _replace_token(folder, "", create=False)


def _replace_token(folder: Path, token: str, *, create: bool) -> None:
    import fcntl

    file = folder / TOKEN_NAME
    try:
        descriptor = os.open(file, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
    except FileNotFoundError:
        return
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise CacheLockedError(
                        f"{folder}: a worker of an earlier precompute has been writing a shard "
                        f"for {PATIENCE_S:.0f} s. End the workers of that run (scancel, or stop "
                        "its dask worker processes), then run the command again."
                    ) from error
                time.sleep(_POLL_S)
        # Emptied before it is removed: a worker may have opened it already.
        os.ftruncate(descriptor, 0)
        if token:
            os.pwrite(descriptor, token.encode(), 0)
            os.fsync(descriptor)
        else:
            file.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def hold_token(folder: Path, token: str) -> Iterator[None]:
    """Keep the writer's token from changing while a worker writes one shard.

    Raises:
        CacheLockedError: the folder has another token, or none.
    """
    import fcntl

    try:
        descriptor = os.open(folder / TOKEN_NAME, os.O_RDONLY)
    except FileNotFoundError as error:
        raise _refused(folder) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.pread(descriptor, 2 * _TOKEN_BYTES + 1, 0).decode(errors="replace") != token:
            raise _refused(folder)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def hold_shard(folder: Path, space: RowSpace, shard: int) -> Iterator[None]:
    """Keep other workers from the same shard; waits for the one that has it.

    A scheduler that loses sight of a worker gives its task to another, and both may be alive.
    """
    import fcntl

    file = folder / LEDGER_FOLDER / f"{space}-{shard:06d}{SHARD_LOCK_SUFFIX}"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_shard_locks(folder: Path) -> None:
    """Remove what ``hold_shard`` left behind; nobody may hold the token any more."""
    for file in (folder / LEDGER_FOLDER).glob(f"*{SHARD_LOCK_SUFFIX}"):
        file.unlink(missing_ok=True)


def _refused(folder: Path) -> CacheLockedError:
    return CacheLockedError(
        f"{folder}: this worker's permission to write is over: the precompute that gave it has "
        "ended, or another one has begun. Nothing was published. Go on: "
        f"{precompute_command(folder)}"
    )
