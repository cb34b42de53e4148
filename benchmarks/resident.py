"""Largest resident size of this process; it imports nothing that would count."""

import resource
import sys
from pathlib import Path

__all__ = ["peak_rss_mb"]


def peak_rss_mb() -> float:
    """Largest resident size of this process so far, MB."""
    status = Path("/proc/self/status")
    if status.is_file():
        # ``ru_maxrss`` survives exec: it would tell the size of the process that started this one.
        line = next(each for each in status.read_text().splitlines() if each.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
