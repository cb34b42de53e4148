"""What a way to keep cached features is here: how it is written, opened and checked."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache_samples import Batch, empty_batch, sample

__all__ = ["Format", "Read", "check", "flush", "installed", "say_skipped"]

Read = Callable[[Sequence[int], Batch], Any]
"""Fill a batch with the samples of these numbers. What it returns are the samples' numbers where
the format chooses them itself."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way.

    Attributes:
        name: as it is printed and stands in the ratios.
        write: (folder, samples) → nothing; ends with everything on the disk.
        open: folder → how to read batches.
        package: what must be installed.
        folder_of: name of the format whose files it reads, where not its own.
        streaming: whether samples come in an order of its own.
        check: refuses wrong values; None: ``check``, which wants the samples' own bytes.
    """

    name: str
    write: Callable[[Path, int], None]
    open: Callable[[Path], Read]
    package: str | None = None
    folder_of: str | None = None
    streaming: bool = False
    check: Callable[[Read, Sequence[int], str], None] | None = None


def installed(item: Format) -> bool:
    """Whether the package that a format needs is there."""
    return item.package is None or importlib.util.find_spec(item.package) is not None


def say_skipped(formats: Sequence[Format]) -> list[str]:
    """Print which formats are left out, and how to have them; their names."""
    skipped = sorted(item.name for item in formats if not installed(item))
    if skipped:
        print(
            f"not installed, left out: {', '.join(skipped)}. To have them: "
            "python -m pip install --no-deps -r benchmarks/requirements.txt"
        )
    return skipped


def flush(folder: Path) -> None:
    """Force all files of a folder to the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def check(read: Read, rows: Sequence[int], name: str) -> None:
    """Refuse a format that does not give the samples' own bytes.

    Raises:
        RuntimeError: a value differs.
    """
    out = empty_batch(len(rows))
    numbers = read(rows, out) or rows
    for place, number in enumerate(numbers):
        expected = sample(number)
        for level, values in out.items():
            if values[place].tobytes() != expected[level].tobytes():
                raise RuntimeError(f"{name} gives other bytes for sample {number}, {level}")
