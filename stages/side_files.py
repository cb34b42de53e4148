"""What lies beside the rows of a cache and is read by stages."""

from pathlib import Path

from cache.conversions import CONVERTED_NAME
from cache.side_files import record_side_files

__all__ = [
    "FILES_NAME",
    "PROGRESS_NAME",
    "SKIPPED_NAME",
    "SPLITS_NAME",
    "TEACHER_FOLDER",
    "copied_names",
    "record",
    "side_file_names",
]

TEACHER_FOLDER = "teacher"
"""Inside a cache: the teacher as a model folder, so students can copy its decoder from there."""

SPLITS_NAME = "splits.json"
"""Inside a cache: which case is in which split."""

FILES_NAME = "files.json"
"""In a cache: size and time of every raw file when it was read, to tell cheaply if one changed."""

SKIPPED_NAME = "skipped.json"
"""In a cache: the cases that could not be read and were left out, with why."""

PROGRESS_NAME = "precompute.json"
"""In a cache: what a run that finishes it has to repeat, and nothing that a reader needs."""

_NAMES = (SPLITS_NAME, FILES_NAME, SKIPPED_NAME, PROGRESS_NAME)


def copied_names(cache: Path) -> tuple[str, ...]:
    """Names of what a conversion takes over, relative to the cache folder."""
    plain = tuple(name for name in _NAMES if (cache / name).is_file())
    teacher = tuple(
        file.relative_to(cache).as_posix()
        for file in sorted((cache / TEACHER_FOLDER).rglob("*"))
        if file.is_file() and file.suffix != ".tmp"
    )
    return plain + teacher


def side_file_names(cache: Path) -> tuple[str, ...]:
    """Names of everything beside the rows that is there, relative to the cache folder."""
    own = (CONVERTED_NAME,) if (cache / CONVERTED_NAME).is_file() else ()
    return copied_names(cache) + own


def record(cache: Path) -> None:
    """Record all of it as it is now, for ``cache.side_files``; only under the cache's lock."""
    # Only a conversion knows what it converted.
    record_side_files(cache, side_file_names(cache), kept=(CONVERTED_NAME,))
