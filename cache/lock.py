"""One writer per cache folder."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import CacheLockedError

__all__ = ["LOCK_NAME", "FolderLock", "in_turn", "is_held"]

LOCK_NAME = ".lock"
_TURN_NAME = ".turn"


class FolderLock:
    """An exclusive lock on a folder, held until ``release`` or the end of the process.

    The kernel holds it (``flock``), so a killed process never leaves a folder locked. The lock
    file stays behind and carries the holder's process id for the message.

    Args:
        folder: an existing folder.

    Raises:
        CacheLockedError: another process (or this one, elsewhere) holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        # POSIX only, and only writers need it: reading works where fcntl does not exist.
        import fcntl

        path = folder / LOCK_NAME
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            self.release()
            raise CacheLockedError(
                f"{folder}: process {holder or 'unknown'} is writing this cache. Wait until it "
                f"ends or stop it (kill {holder or 'PID'}), then run the command again."
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_held(folder: Path) -> bool:
    """Whether somebody holds a folder's lock now."""
    if sys.platform == "win32":
        return False  # nobody can
    try:
        FolderLock(folder).release()
    except CacheLockedError:
        return True
    return False


@contextmanager
def in_turn(folder: Path) -> Generator[None, None, None]:
    """Wait until no other process is in such a block of the same folder."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / _TURN_NAME).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
