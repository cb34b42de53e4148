"""What an estimate says: sizes, time, and the settings that would fit."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache.sizes import NO_END, fits

__all__ = ["Alternative", "ArraySize", "CacheEstimate", "CacheSize", "TimeEstimate", "readable"]


def readable(size: float) -> str:
    """Bytes as people read them: ``1.2 GB`` is 1 200 000 000."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.1f} kB" if size >= 1e3 else f"{size:.0f} B"


@dataclass(frozen=True, kw_only=True)
class ArraySize:
    """One array of a cache to be.

    Attributes:
        name: the array.
        rows: rows of its space.
        row_bytes: bytes of one row without its checksum.
        bytes: of all its shard files.
    """

    name: str
    rows: int
    row_bytes: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Settings that make a cache smaller.

    Attributes:
        settings: such as ``precompute.views.count=1``, all of them together.
        total_bytes: of the whole cache with them.
    """

    settings: tuple[str, ...]
    total_bytes: int

    def text(self) -> str:
        """The settings as they are typed, and what they give."""
        typed = " ".join(f"--set {setting}" for setting in self.settings)
        return f"{typed} ({readable(self.total_bytes)})"


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """Bytes of a cache to be, against the disk.

    Attributes:
        folder: where it is to lie.
        counts: rows of each space.
        arrays: in order of their bytes, largest first.
        overhead: index, ledger, metadata and the teacher's own folder → bytes.
        total_bytes: of the finished folder.
        present_bytes: of a cache that lies there already, whose files are kept or replaced.
        free_bytes: left on the disk; ``NO_END`` for an object store.
    """

    folder: Path
    counts: Mapping[str, int]
    arrays: tuple[ArraySize, ...]
    overhead: Mapping[str, int]
    total_bytes: int
    present_bytes: int
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        """What is still to be written."""
        return max(self.total_bytes - self.present_bytes, 0)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for it."""
        return fits(self.needed_bytes, self.free_bytes)

    def lines(self) -> tuple[str, ...]:
        """A table of arrays, then the total and the disk."""
        rows = [
            (a.name, f"{a.rows:,}", readable(a.row_bytes), readable(a.bytes)) for a in self.arrays
        ]
        rows += [(name, "", "", readable(size)) for name, size in self.overhead.items()]
        rows += [("total", "", "", readable(self.total_bytes))]
        lines = [f"{count} {space}" for space, count in self.counts.items()]
        lines += _table(("array", "rows", "a row", "bytes"), rows)
        if self.present_bytes:
            lines.append(f"there already: {readable(self.present_bytes)}")
        if self.free_bytes == NO_END:
            lines.append("free: an object store tells no end of its room")
        else:
            verdict = "" if self.fits else " - does not fit"
            lines.append(f"free: {readable(self.free_bytes)} at {self.folder}{verdict}")
        return tuple(lines)


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """Time of what is left to do, from a measured sample.

    Attributes:
        total_s: of the whole run.
        parts_s: ``start`` (teacher, labels), ``slices``, ``prompts``, ``tracks`` → seconds.
        slices_per_second: of the first pass.
        shares: ``teacher``, ``reader``, ``disk`` → busy seconds over those of all three.
        sampled: what was measured: counts, and seconds that it took.
    """

    total_s: float
    parts_s: Mapping[str, float]
    slices_per_second: float
    shares: Mapping[str, float]
    sampled: Mapping[str, float]

    @property
    def bound(self) -> str:
        """Which of teacher, reader and disk the run waits for."""
        return max(self.shares, key=lambda name: self.shares[name])

    def lines(self) -> tuple[str, ...]:
        """Time, pace, and what bounds it."""
        parts = ", ".join(f"{name} {_duration(s)}" for name, s in self.parts_s.items())
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        return (
            f"time: {_duration(self.total_s)} ({parts})",
            f"pace: {self.slices_per_second:.3g} slices/s, {self.bound}-bound ({shares}), "
            f"from {self.sampled['slices']:.0f} slices, {self.sampled['prompts']:.0f} prompts and "
            f"{self.sampled['track_steps']:.0f} track steps in {self.sampled['seconds']:.0f} s",
        )


@dataclass(frozen=True, kw_only=True)
class CacheEstimate:
    """What a cache would hold and take.

    Attributes:
        size: its bytes; None while the teacher, on which they depend, is not trained yet.
        time: None where it was not measured.
        alternatives: where it does not fit: settings that would, mildest first.
        notes: what a user should read.
    """

    size: CacheSize | None
    time: TimeEstimate | None
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """All of it, to be printed."""
        lines = list(self.notes)
        lines += self.size.lines() if self.size else ()
        lines += self.time.lines() if self.time else ()
        return tuple(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        size = None
        if self.size:
            arrays = {array.name: asdict(array) for array in self.size.arrays}
            size = asdict(self.size) | {
                "folder": str(self.size.folder),
                "arrays": arrays,
                "needed_bytes": self.size.needed_bytes,
                "fits": self.size.fits,
            }
        time = asdict(self.time) | {"bound": self.time.bound} if self.time else None
        alternatives = [asdict(alternative) for alternative in self.alternatives]
        return {
            "size": size,
            "time": time,
            "alternatives": alternatives,
            "notes": list(self.notes),
        }


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell; numbers to the right."""
    table = [titles, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(titles))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
