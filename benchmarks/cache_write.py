"""How fast features go to a disk: our cache beside the formats that others use.

    python -m benchmarks.cache_write --json write.json --plot write.png

Every format writes the same samples, made beforehand, and ends with everything on the disk
(fsync). Ours also refuse values that are not finite, sum the channels, read every shard back,
compare it, and record its digests; nobody else does any of that. All write in turn in each round.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cache_format import Format, installed, say_skipped
from benchmarks.cache_formats import FORMATS
from benchmarks.cache_samples import SAMPLE_BYTES

__all__ = ["run"]


def _written_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def run(folder: Path, formats: list[Format], *, count: int, rounds: int) -> dict[str, Any]:
    """Write ``count`` samples in every format, ``rounds`` times; give the report."""
    wall: dict[str, list[float]] = {item.name: [] for item in formats}
    cpu: dict[str, list[float]] = {item.name: [] for item in formats}
    sizes = {}
    for number in range(rounds + 1):
        for item in formats:
            place = folder / item.name
            place.mkdir(parents=True)
            started, used = time.perf_counter(), time.process_time()
            item.write(place, count)
            if number:  # the first round makes the samples and loads libraries
                wall[item.name].append(time.perf_counter() - started)
                cpu[item.name].append((time.process_time() - used) / count)
            sizes[item.name] = _written_bytes(place)
            shutil.rmtree(place)
    medians = {name: statistics.median(values) for name, values in wall.items()}
    ratios = {
        f"{ours}_vs_{name}": medians[name] / medians[ours]
        for ours in ("direct", "hdf5")
        for name in medians
        if name != ours
    }
    return {
        "ratios": ratios,
        "x_raw": {name: medians["raw"] / value for name, value in medians.items()},
        "cpu_seconds_a_sample": {name: statistics.median(values) for name, values in cpu.items()},
        "bytes_over_samples": {name: size / (count * SAMPLE_BYTES) for name, size in sizes.items()},
        "settings": {"samples": count, "rounds": rounds},
    }


def draw(file: Path, report: dict[str, Any]) -> None:
    """Draw bars of speed relative to raw."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    values = dict(sorted(report["x_raw"].items(), key=lambda item: item[1]))
    colours = ["tab:blue" if name in ("direct", "hdf5") else "tab:gray" for name in values]
    axis.barh(list(values), list(values.values()), color=colours)
    axis.set_title("writing with fsync, speed relative to raw", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk to measure. Default: temporary")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    formats = [item for item in FORMATS if item.folder_of is None and installed(item)]
    say_skipped(FORMATS)
    with tempfile.TemporaryDirectory(prefix="cache-write-", dir=chosen.folder) as temporary:
        report = run(Path(temporary), formats, count=chosen.samples, rounds=chosen.rounds)
    print(f"{'':12} x raw   CPU ms a sample   bytes over samples'")
    for name, value in sorted(report["x_raw"].items(), key=lambda item: -item[1]):
        cpu = 1e3 * report["cpu_seconds_a_sample"][name]
        print(f"{name:12} {value:5.2f}   {cpu:15.2f}   {report['bytes_over_samples'][name]:.4f}")
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")
    if chosen.plot:
        draw(chosen.plot, report)


if __name__ == "__main__":
    main()
