"""What ``benchmarks.cache_read`` makes of its times: ratios, tables and the plot."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cache_format import Format

__all__ = ["Times", "cold_ratios", "draw", "numbers", "warm_ratios"]


@dataclass
class Times:
    """What was measured of one format, a number a round.

    Attributes:
        wall: seconds a batch.
        cpu: processor seconds a sample, all threads.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def ratio(times: Mapping[str, Times], mine: str, other: str) -> float:
    """Give how many times as fast ``mine`` is as ``other``, by medians of the same rounds."""
    return statistics.median(times[other].wall) / statistics.median(times[mine].wall)


def warm_ratios(formats: Sequence[Format], warmed: Mapping[str, Times]) -> dict[str, float]:
    """Give the ratios, by name; a format that is not installed has none."""
    names = [item.name for item in formats if item.name not in ("raw", "direct")]
    found = {"direct_vs_raw": ratio(warmed, "direct", "raw")}
    for name in names:
        # Other ways of ours are compared with the yardstick, the rest with our reader.
        if name in ("hdf5", "int8"):
            found[f"{name}_vs_raw"] = ratio(warmed, name, "raw")
        else:
            found[f"direct_vs_{name}"] = ratio(warmed, "direct", name)
    found["hdf5_vs_h5py"] = ratio(warmed, "hdf5", "h5py")
    found["loader_vs_raw"] = ratio(warmed, "loader", "raw")
    return found


def cold_ratios(cold: Mapping[str, Times]) -> dict[str, float]:
    """Give the ratios of reading from the disk."""
    return {f"cold_vs_{name}": ratio(cold, "direct", name) for name in ("npy", "raw")}


def draw(file: Path, warmed: Mapping[str, Times], cold: Mapping[str, Times]) -> None:
    """Draw bars of speed relative to raw, and of processor time a sample."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for axis, times, title in (
        (axes[0], warmed, "warm, speed relative to raw preadv"),
        (axes[1], cold, "cold, two threads, relative to raw"),
    ):
        values = {name: ratio(times, name, "raw") for name in times}
        _bars(axis, values, title)
    _bars(
        axes[2],
        {name: 1e3 * statistics.median(item.cpu) for name, item in warmed.items()},
        "warm, processor milliseconds a sample",
    )
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def _bars(axis: Any, values: Mapping[str, float], title: str) -> None:  # noqa: ANN401
    names = sorted(values, key=values.__getitem__)
    ours = ("direct", "hdf5", "int8", "loader")
    colours = ["tab:blue" if name in ours else "tab:gray" for name in names]
    axis.barh(names, [values[name] for name in names], color=colours)
    for place, name in enumerate(names):
        axis.text(values[name], place, f" {values[name]:.2f}", va="center", fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)


def numbers(times: Mapping[str, Times]) -> dict[str, dict[str, float]]:
    """Give speed relative to raw, and processor time a sample, by format."""
    return {
        name: {
            "x_raw": ratio(times, name, "raw"),
            "cpu_seconds_a_sample": statistics.median(item.cpu),
        }
        for name, item in times.items()
    }
