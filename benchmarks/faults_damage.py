"""Damage to files of a finished cache, and what reader and ``verify`` make of it."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.faults_cache import FORMATS, Format, judge, side_files, write
from cache import CacheCorruptError, discard_bad, verify
from cache.durable import TEMPORARY_SUFFIX
from cache.layout import HEADER_NAME
from cache.ledger_seal import SEAL_NAME
from cache.lock import LOCK_NAME
from cache.side_files import SIDE_FILES_NAME

__all__ = ["Damage", "damages"]

Damage = Callable[[Path, Path, random.Random], str]
"""Damages the cache at the first path, with the one at the second to take from; says how."""

_REPAIRED = 10
"""Of so many damages one is repaired, too."""

Report = Callable[[str, list[str]], None]


def damages(
    work: Path, counts: dict[str, int], rng: random.Random, tell: Report
) -> dict[str, Counter[str]]:
    """Damage caches of both formats, judge each time, and mend.

    Args:
        work: an empty folder.
        counts: ``flip``, ``truncation``, ``swap`` → how many.
        rng: of all random choices.
        tell: gets each silent damage.

    Returns:
        Kind of damage → outcomes.
    """
    found: dict[str, Counter[str]] = {kind: Counter() for kind in counts}
    caches = {}
    for store in FORMATS:
        digest = write(work / store, store)
        write(work / f"{store}-other", store, data="e")
        caches[store] = digest
    kinds: dict[str, tuple[Damage, ...]] = {
        "flip": (_flip,),
        "truncation": (_truncate,),
        "swap": _SWAPS,
    }
    for kind, count in counts.items():
        for number in range(count):
            store = FORMATS[number % 2]
            path = work / store
            damage = kinds[kind][number // 2 % len(kinds[kind])]
            with _mended(path):
                how = damage(path, work / f"{store}-other", rng)
                verdict = judge(path, digest=caches[store])
                if number % _REPAIRED == 0 and not _repairs(path, store, caches[store]):
                    found[kind]["lost"] += 1
                    tell(f"{store}: {how}", ["not mended"])
            found[kind][verdict.outcome] += 1
            if verdict.wrong:
                tell(f"{store}: {how}", verdict.wrong)
    for store in FORMATS:  # the mending is a part of the measurement
        verdict = judge(work / store, digest=caches[store])
        if verdict.outcome != "survived":
            raise RuntimeError(f"{store} was not mended: {verdict.named} {verdict.wrong}")
    return found


def _repairs(path: Path, store: Format, digest: str) -> bool:
    """Whether taking out what is bad and writing it again gives the whole cache."""
    with suppress(CacheCorruptError):  # a damaged header: the writer knows it
        discard_bad(path, verify(path))
    write(path, store)
    return judge(path, digest=digest).outcome == "survived"


@contextmanager
def _mended(path: Path) -> Iterator[None]:
    """Put every file back as it was, times included, whatever happens to it."""
    before = {file: (file.read_bytes(), file.stat()) for file in path.rglob("*") if file.is_file()}
    try:
        yield
    finally:
        for file, (content, status) in before.items():
            if not file.is_file() or file.read_bytes() != content:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        for file in path.rglob("*"):
            if file.is_file() and file not in before:
                file.unlink()


def _classes(path: Path) -> list[list[Path]]:
    """The files that may be damaged, by what they are."""
    every = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != LOCK_NAME and file.suffix != TEMPORARY_SUFFIX
    ]
    shards = [file for file in every if _is_shard(file)]
    metadata = [file for file in every if file.name == "zarr.json"]
    ledger = [file for file in every if file.parent.name == "ledger" and file.name != SEAL_NAME]
    parquet = [file for file in every if file.suffix == ".parquet"]
    others = [file for file in every if file.parent == path]
    beside = [path / name for name in (*side_files(), SIDE_FILES_NAME)]
    # Shards twice: they are what a cache consists of.
    parts = (shards, shards, metadata, ledger, parquet, others, beside)
    return [part for part in parts if part]


def _is_shard(file: Path) -> bool:
    return file.suffix == ".h5" or "c" in [parent.name for parent in file.parents][:6]


def _any_file(path: Path, rng: random.Random) -> Path:
    return rng.choice(rng.choice(_classes(path)))


def _rewrite(file: Path, content: bytes, rng: random.Random) -> None:
    """Write other bytes; a failing disk leaves the time of the file alone, a program does not."""
    status = file.stat()
    file.write_bytes(content)
    if rng.random() < 0.5:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _flip(path: Path, _: Path, rng: random.Random) -> str:
    file = _any_file(path, rng)
    content = bytearray(file.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    _rewrite(file, bytes(content), rng)
    return f"bit {bit} of byte {place} of {file.relative_to(path)}"


def _truncate(path: Path, _: Path, rng: random.Random) -> str:
    file = _any_file(path, rng)
    content = file.read_bytes()
    left = rng.randrange(len(content))
    _rewrite(file, content[:left], rng)
    return f"{file.relative_to(path)} cut from {len(content)} to {left} bytes"


def _shards(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if file.is_file() and _is_shard(file)]


def _delete(path: Path, _: Path, rng: random.Random) -> str:
    file = rng.choice(_shards(path))
    file.unlink()
    return f"{file.relative_to(path)} deleted"


def _swap(first: Path, second: Path) -> None:
    aside = first.with_name(f"{first.name}.aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def _swap_same_array(path: Path, _: Path, rng: random.Random) -> str:
    first = rng.choice(_shards(path))
    array = first.relative_to(path / "arrays").parts[0]
    same = [file for file in _shards(path / "arrays" / array) if file != first]
    second = rng.choice(same)
    _swap(first, second)
    return f"{first.relative_to(path)} exchanged with {second.relative_to(path)}"


def _swap_other_array(path: Path, _: Path, rng: random.Random) -> str:
    first = rng.choice(_shards(path))
    array = first.relative_to(path / "arrays").parts[0]
    others = [f for f in _shards(path) if f.relative_to(path / "arrays").parts[0] != array]
    second = rng.choice(others)
    _swap(first, second)
    return f"{first.relative_to(path)} exchanged with {second.relative_to(path)}"


def _foreign_shard(path: Path, other: Path, rng: random.Random) -> str:
    file = rng.choice(_shards(path))
    name = file.relative_to(path)
    shutil.copy2(other / name, file)
    return f"{name} taken from another cache"


def _foreign_entry(path: Path, other: Path, rng: random.Random) -> str:
    entry = rng.choice(sorted((path / "ledger").glob("*.json")))
    shutil.copy2(other / "ledger" / entry.name, entry)
    return f"ledger/{entry.name} taken from another cache"


def _deleted_entry(path: Path, _: Path, rng: random.Random) -> str:
    entry = rng.choice(sorted((path / "ledger").glob("*.json")))
    entry.unlink()
    return f"ledger/{entry.name} deleted"


def _swapped_entries(path: Path, _: Path, rng: random.Random) -> str:
    first, second = rng.sample(sorted((path / "ledger").glob("*.json")), 2)
    _swap(first, second)
    return f"ledger/{first.name} exchanged with {second.name}"


def _deleted_beside(path: Path, _: Path, rng: random.Random) -> str:
    name = rng.choice((*side_files(), SIDE_FILES_NAME, HEADER_NAME))
    (path / name).unlink()
    return f"{name} deleted"


def _foreign_beside(path: Path, other: Path, rng: random.Random) -> str:
    names = rng.choice((("splits.json",), ("splits.json", SIDE_FILES_NAME), (SIDE_FILES_NAME,)))
    for name in names:
        shutil.copy2(other / name, path / name)
    return f"{' and '.join(names)} taken from another cache"


_SWAPS: tuple[Damage, ...] = (
    _delete,
    _swap_same_array,
    _swap_other_array,
    _foreign_shard,
    _foreign_entry,
    _deleted_entry,
    _swapped_entries,
    _deleted_beside,
    _foreign_beside,
)
