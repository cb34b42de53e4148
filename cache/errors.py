"""Errors of the cache.

CacheError                 (exit code 4)
├── CacheMissingError      no cache here, or rows of it were never written
├── CacheStaleError        a cache of other settings, data, teacher or schema
├── CacheCorruptError      bytes that are not what the ledger says
├── CacheLockedError       another process is writing this cache
├── CacheUnreachableError  the object store that holds the cache does not answer
├── CacheDataError         arrays offered for writing that no training could use (exit code 3)
└── CacheSpaceError        not enough disk (exit code 5)

Every message says what is wrong, where, and the command that mends it.
"""

from typing import ClassVar

__all__ = [
    "CacheCorruptError",
    "CacheDataError",
    "CacheError",
    "CacheLockedError",
    "CacheMissingError",
    "CacheSpaceError",
    "CacheStaleError",
    "CacheUnreachableError",
]


class CacheError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: ClassVar[int] = 4


class CacheMissingError(CacheError):
    """There is no cache at a path, or the asked rows were never written."""


class CacheStaleError(CacheError):
    """A cache that was made from other settings, data, teacher or schema."""


class CacheCorruptError(CacheError):
    """Files whose bytes are not what was written."""


class CacheLockedError(CacheError):
    """Another process is writing this cache."""


class CacheUnreachableError(CacheError):
    """The object store that holds the cache does not answer, or refuses."""


class CacheDataError(CacheError):
    """Values offered for writing that are not finite."""

    exit_code: ClassVar[int] = 3


class CacheSpaceError(CacheError):
    """The disk or a quota has no room for what has to be written."""

    exit_code: ClassVar[int] = 5
