"""Files beside the rows of a cache that stages read: a teacher's weights, splits, provenance.

``side_files.json`` holds their sizes and digests. Whoever writes such files records them;
``complete.json`` holds the digest of the record. Caches of versions that recorded nothing are
read as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cache.address import place_of
from cache.durable import sha256_of_bytes, sha256_of_file, write_durably
from cache.errors import CacheCorruptError
from cache.layout import (
    COMPLETE_NAME,
    CompleteMark,
    encode_checked,
    read_checked,
    read_complete_mark,
    read_header,
)
from cache.mending import repair_command

__all__ = [
    "SIDE_FILES_NAME",
    "SideFile",
    "checked_file",
    "checked_folder",
    "glance_at_side_files",
    "read_side_files",
    "record_side_files",
    "side_files_problems",
    "side_files_sha256",
]

SIDE_FILES_NAME = "side_files.json"

_SMALL_BYTES = 1 << 20
"""Files up to this size are compared byte by byte at a glance too."""


@dataclass(frozen=True, kw_only=True)
class SideFile:
    """What a file beside the rows must be.

    Attributes:
        bytes: size.
        sha256: digest of its bytes.
    """

    bytes: int
    sha256: str


def record_side_files(cache: Path, names: Iterable[str], *, kept: Sequence[str] = ()) -> None:
    """Record files as they lie in a cache now. Only who holds the cache's lock may.

    Where the record changes, the completion mark is removed: ``CacheWriter.finish`` writes it.

    Args:
        cache: the cache folder, with its header.
        names: of the files, relative to the folder.
        kept: of files that nobody can have written anew: what is recorded of them already stays,
            so that damage to them does not become their record.
    """
    files = {
        name: {"bytes": (cache / name).stat().st_size, "sha256": sha256_of_file(cache / name)}
        for name in names
    }
    try:
        before = read_side_files(cache) or {}
    except CacheCorruptError:
        before = {}
    files |= {name: asdict(before[name]) for name in kept if name in before}
    fingerprint = read_header(cache).spec.fingerprint()
    content = encode_checked({"fingerprint": fingerprint, "files": dict(sorted(files.items()))})
    record = cache / SIDE_FILES_NAME
    if not record.is_file() or record.read_bytes() != content:
        (cache / COMPLETE_NAME).unlink(missing_ok=True)
        write_durably(record, content)


def read_side_files(cache: Path) -> Mapping[str, SideFile] | None:
    """Give name → what the file must be, or ``None`` where nothing was ever recorded.

    Raises:
        CacheCorruptError: the record is damaged, of another cache, or gone.
    """
    record = cache / SIDE_FILES_NAME
    mark = _readable_mark(cache)
    wanted = None if mark is None else mark.side_files_sha256
    if not record.is_file():
        if wanted is None:
            return None
        raise _damage(cache, SIDE_FILES_NAME, "is missing")
    content = read_checked(record)
    try:
        fingerprint = content["fingerprint"]
        files = {name: SideFile(**file) for name, file in content["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise _damage(cache, SIDE_FILES_NAME, f"is no record of files ({error!r})") from error
    other = fingerprint != read_header(cache).spec.fingerprint()
    if other or wanted not in (None, side_files_sha256(cache)):
        raise _damage(cache, SIDE_FILES_NAME, "is not the one that the cache was finished with")
    return files


def side_files_sha256(cache: Path) -> str | None:
    """Give the digest of the record, or ``None`` where there is none."""
    record = cache / SIDE_FILES_NAME
    return sha256_of_bytes(record.read_bytes()) if record.is_file() else None


def side_files_problems(cache: Path) -> tuple[int | None, dict[str, str]]:
    """Compare every recorded file, byte by byte.

    Returns:
        How many files are recorded (``None``: nothing was ever recorded), and name → what is
        wrong with it.
    """
    try:
        files = read_side_files(cache)
    except CacheCorruptError as error:
        return 0, {SIDE_FILES_NAME: str(error)}
    if files is None:
        return None, {}
    found = {name: _problem(cache / name, file) for name, file in files.items()}
    return len(files), {name: problem for name, problem in found.items() if problem}


def glance_at_side_files(cache: Path) -> dict[str, str]:
    """Compare sizes of the recorded files, and the bytes of small ones: name → what is wrong.

    Raises:
        CacheCorruptError: the record itself cannot be trusted.
    """
    found = {
        name: _problem(cache / name, file, thorough=file.bytes <= _SMALL_BYTES)
        for name, file in (read_side_files(cache) or {}).items()
    }
    return {name: problem for name, problem in found.items() if problem}


def checked_file(cache: Path, name: str) -> Path:
    """Give the path of a file beside the rows, its bytes compared with what was recorded.

    Raises:
        CacheCorruptError: it is missing or has other bytes; or the record is damaged.
    """
    files = read_side_files(cache)
    if files is not None and name in files:
        _check(cache, {name: files[name]})
    return cache / name


def checked_folder(cache: Path, name: str) -> Path:
    """Give the path of a folder beside the rows, all its recorded files compared.

    Raises:
        CacheCorruptError: a file is missing or has other bytes; or the record is damaged.
    """
    files = read_side_files(cache) or {}
    _check(cache, {key: file for key, file in files.items() if key.startswith(f"{name}/")})
    return cache / name


def _check(cache: Path, files: Mapping[str, SideFile]) -> None:
    for name, file in files.items():
        problem = _problem(cache / name, file)
        if problem:
            raise _damage(cache, name, problem)


def _problem(path: Path, file: SideFile, *, thorough: bool = True) -> str | None:
    try:
        size = path.stat().st_size
        if size != file.bytes:
            return f"has {size} bytes, not {file.bytes}"
        if thorough and sha256_of_file(path) != file.sha256:
            return "has other bytes than were written (SHA-256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _readable_mark(cache: Path) -> CompleteMark | None:
    """The completion mark; a damaged one is named by who reads rows or verifies."""
    try:
        return read_complete_mark(cache)
    except CacheCorruptError:
        return None


def _damage(cache: Path, name: str, problem: str) -> CacheCorruptError:
    place = place_of(cache / name)
    return CacheCorruptError(f"{place} {problem}. Make it again: {repair_command(cache)}")
