"""How fast a pass over the cache is, and what holds it up."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cache.schema import RowSpace
from stages.cache_overlap import RoleTimes

__all__ = ["PassReport", "Verdict", "WrittenBytes", "summary_of"]

Verdict = Literal["reader-bound", "teacher-bound", "disk-bound"]


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """What one pass did in this run.

    Attributes:
        name: row space of the pass.
        rows: rows made now; those that were there already are not counted.
        written: bytes written now.
        times: how long each role worked.
    """

    name: RowSpace
    rows: int
    written: int
    times: RoleTimes = field(default_factory=RoleTimes)

    @property
    def rows_per_second(self) -> float:
        """Rows made per second of the pass; 0 where none was made."""
        return self.rows / self.times.seconds if self.rows else 0.0

    @property
    def shares(self) -> dict[Verdict, float]:
        """Share of the pass in which reader, teacher and writer worked; they overlap."""
        seconds = max(self.times.seconds, 1e-9)
        return {
            "reader-bound": self.times.reader / seconds,
            "teacher-bound": self.times.teacher / seconds,
            "disk-bound": self.times.writer / seconds,
        }

    @property
    def verdict(self) -> Verdict:
        """The role that worked longest: the others waited for it."""
        shares = self.shares
        return max(shares, key=lambda role: shares[role])

    def line(self) -> str:
        """The report in one line."""
        shares = self.shares
        return (
            f"{self.name}: {self.rows} rows in {self.times.seconds:.1f} s "
            f"({self.rows_per_second:.3g} rows/s), {_size(self.written)} written; "
            f"{self.verdict} (teacher at work {shares['teacher-bound']:.0%} of the time, "
            f"reader {shares['reader-bound']:.0%}, disk {shares['disk-bound']:.0%})"
        )


class WrittenBytes:
    """Bytes of the cache that are on the disk, against what it will have.

    Args:
        path: the cache folder.
        written: there when this run began.
        total: of the finished cache.
    """

    def __init__(self, path: Path, *, written: int, total: int) -> None:
        self.written = written
        self._path = path
        self._total = total

    def add(self, count: int) -> None:
        """Another ``count`` bytes are written."""
        self.written += count

    def figures(self) -> dict[str, str]:
        """What to show beside a progress bar: written of all, and the disk's free room."""
        free = shutil.disk_usage(self._path).free
        return {
            "written": f"{_size(self.written)} of {_size(self._total)}",
            "free": _size(free),
        }


def summary_of(reports: Mapping[RowSpace, PassReport]) -> dict[str, Any]:
    """Figures of all passes for the artifact: JSON values.

    ``slices_per_second`` and ``verdict`` are those of the slices, and absent where a rerun found
    them all written.
    """
    summary: dict[str, Any] = {
        "seconds": {name: round(report.times.seconds, 3) for name, report in reports.items()},
        "bytes_written": sum(report.written for report in reports.values()),
        "verdicts": {name: report.verdict for name, report in reports.items() if report.rows},
    }
    slices = reports["slices"]
    if slices.rows:
        summary |= {
            "slices_per_second": round(slices.rows_per_second, 3),
            "verdict": slices.verdict,
        }
    return summary


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
