"""What users call a cache: its folder, or the address of an object store.

The folder of a mirror looks like a cache, yet no command takes it for one. Messages about it name
the address that it mirrors, which the mirror keeps in a file of its own.
"""

import re
from pathlib import Path

from cache.durable import write_durably

__all__ = ["ADDRESS", "CACHE_FOLDER", "STATE_FOLDER", "is_address", "keep_address", "place_of"]

ADDRESS = re.compile(r"^(s3a?|gs|az|abfss?|azure|adl)://[^/]+")
"""Addresses of stores that keep what they are given."""

CACHE_FOLDER = "cache"
"""In a mirror's folder: the part that looks like the cache."""

STATE_FOLDER = "state"
"""In a mirror's folder: the mirror's own part."""

_FILE = "address"


def is_address(place: Path | str) -> bool:
    """Whether a text that names a cache is an address of whatever kind, and no folder."""
    return "://" in str(place)


def keep_address(folder: Path, url: str) -> None:
    """Have ``place_of`` know which address the mirror in ``folder`` stands for."""
    file = folder / STATE_FOLDER / _FILE
    if not file.is_file() or file.read_text() != url:
        write_durably(file, url.encode())


def place_of(path: Path | str) -> str:
    """What users call a cache or a file of it: the address where the path is in a mirror."""
    if is_address(path):
        return str(path)
    given = Path(path)
    for folder in (given, *given.parents):
        file = folder.parent / STATE_FOLDER / _FILE
        if folder.name == CACHE_FOLDER and file.is_file():
            return "/".join([file.read_text(), *given.relative_to(folder).parts])
    return str(path)
