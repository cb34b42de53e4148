"""How fast features come from a disk: our cache beside the formats that others use.

    python -m benchmarks.cache_read --json read.json --plot read.png

Random batches of 16 samples of a 512-pixel teacher (three levels, 2.1 MB a sample), verified to
be the samples' own bytes before anything is timed; ours verify every byte on every read as well.
All are timed in turn in each round, and only ratios of one run's medians are printed: the machine
is never quiet. Warm: all files in memory. Cold: the pages of a format's files are dropped, and
that they are is asserted; two threads read.
"""

import argparse
import gc
import importlib.metadata
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache_format import Format, Read, check, installed
from benchmarks.cache_formats import FORMATS
from benchmarks.cache_samples import LEVELS, SAMPLE_BYTES, Batch, empty_batch
from benchmarks.page_cache import drop, resident_share, warm
from cache import CacheReader
from cache.checksum import crc32c_library
from cache.loader import BatchLoader
from cache.shuffle import ShuffledRows

_BATCH = 16
_COLD = ("raw", "direct", "hdf5", "int8", "npy")
_COLD_SAMPLES = 192
_STILL_RESIDENT = 0.02
_PACKAGES = (
    *("numpy", "torch", "zarr", "h5py", "awscrt", "google-crc32c"),
    *("tensorstore", "webdataset", "litdata", "mosaicml-streaming"),
)


@dataclass
class Times:
    """What was measured of one format, a number a round.

    Attributes:
        wall: seconds a batch.
        cpu: processor seconds a sample, all threads.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def measure(times: Times, work: Callable[[], Any], batches: int) -> None:
    """Time ``work``, which reads ``batches`` batches."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    times.wall.append((time.perf_counter() - wall) / batches)
    times.cpu.append((time.process_time() - cpu) / batches / _BATCH)


def write_all(folder: Path, formats: Sequence[Format], count: int) -> dict[str, Path]:
    """Write every format's files; those that are there already are kept."""
    places = {}
    for item in formats:
        place = folder / (item.folder_of or item.name)
        done = place / f".{count}.done"
        if item.folder_of is None and not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            item.write(place, count)
            done.touch()
        places[item.name] = place
    return places


def read_warm(
    readers: Mapping[str, Read], loader: BatchLoader, *, count: int, rounds: int, batches: int
) -> dict[str, Times]:
    """Time warm batches, all formats in turn in each round."""
    times = {name: Times() for name in (*readers, "loader")}
    out = empty_batch(_BATCH)
    rng = np.random.default_rng(1)

    def from_loader() -> None:
        for _ in range(4 * batches):
            next(loader)

    for number in range(rounds + 1):
        chosen = rng.integers(0, count, (batches, _BATCH)).tolist()
        gc.collect()
        for name in _turn(readers, number):
            measure(times[name], partial(_read_all, readers[name], chosen, out), batches)
        measure(times["loader"], from_loader, 4 * batches)
        loader.close()
    # In the first round files, threads and libraries start up.
    return {name: Times(wall=item.wall[1:], cpu=item.cpu[1:]) for name, item in times.items()}


def _turn(readers: Mapping[str, Any], number: int) -> list[str]:
    """Give all names, another one first in each round."""
    names = list(readers)
    start = number % len(names)
    return names[start:] + names[:start]


def _read_all(read: Read, batches: Sequence[Sequence[int]], out: Batch) -> None:
    for rows in batches:
        read(rows, out)


def _read_parts(
    pool: ThreadPoolExecutor, read: Read, parts: Sequence[list[list[int]]], memory: list[Batch]
) -> None:
    """Read each part's batches in a thread and memory of its own."""
    list(pool.map(partial(_read_all, read), parts, memory))


def read_cold(
    formats: Sequence[Format], places: Mapping[str, Path], *, count: int, rounds: int
) -> dict[str, Times]:
    """Time batches that must come from the disk, by two threads.

    Where a file lies on a disk, a virtual one above all, can make it twice as fast as its copy;
    so every round reads fresh copies, and another format is the first to be copied and read.
    """
    times = {item.name: Times() for item in formats}
    kinds = {item.name: item for item in formats}
    memory = [empty_batch(_BATCH), empty_batch(_BATCH)]
    rng = np.random.default_rng(2)
    with ThreadPoolExecutor(2) as pool:
        for number in range(rounds):
            # No sample twice: the second time it would be in memory.
            rows = rng.permutation(count)[: 4 * _BATCH].reshape(2, -1, _BATCH).tolist()
            for name in _turn(kinds, number):
                copy = places[name].with_name(f"{name}-copy")
                shutil.copytree(places[name], copy)
                read = kinds[name].open(copy)
                drop(copy)
                share = resident_share(copy)
                if share > _STILL_RESIDENT:
                    raise RuntimeError(f"{share:.0%} of {copy} is still in memory")
                work = partial(_read_parts, pool, read, rows, memory)
                measure(times[name], work, sum(map(len, rows)))
                shutil.rmtree(copy)
    return times


def ratio(times: Mapping[str, Times], mine: str, other: str) -> float:
    """Give how many times as fast ``mine`` is as ``other``, by medians of the same rounds."""
    return statistics.median(times[other].wall) / statistics.median(times[mine].wall)


def all_ratios(
    formats: Sequence[Format], warmed: Mapping[str, Times], cold: Mapping[str, Times]
) -> dict[str, float]:
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
    found["cold_vs_npy"] = ratio(cold, "direct", "npy")
    found["cold_vs_raw"] = ratio(cold, "direct", "raw")
    return found


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


def run(folder: Path, *, count: int, rounds: int, batches: int, threads: int) -> dict[str, Any]:
    """Write, read and compare everything; give the report."""
    there = {item.name: installed(item) for item in FORMATS}
    formats = [item for item in FORMATS if there[item.name]]
    skipped = sorted(name for name, installed in there.items() if not installed)
    if skipped:
        print(f"not installed, left out: {', '.join(skipped)}")
    places = write_all(folder, formats, count)
    for place in set(places.values()):
        warm(place)
    readers = {item.name: item.open(places[item.name]) for item in formats}
    for item in formats:
        (item.check or check)(readers[item.name], [count - 1, 3, 0, 3], item.name)
    reader = CacheReader(places["direct"] / "cache")
    order = ShuffledRows(range(count), _BATCH, seed=0)
    with BatchLoader(reader, list(LEVELS), order, threads=threads) as loader:
        warmed = read_warm(readers, loader, count=count, rounds=rounds, batches=batches)
    cold_formats = [item for item in formats if item.name in _COLD]
    cold_count = max(4 * _BATCH, min(count, _COLD_SAMPLES))
    cold_places = write_all(folder / "cold", cold_formats, cold_count)
    cold = read_cold(cold_formats, cold_places, count=cold_count, rounds=rounds)
    return {
        "ratios": all_ratios(formats, warmed, cold),
        "warm": _numbers(warmed),
        "cold": _numbers(cold),
        "settings": {
            "samples": count,
            "sample_bytes": SAMPLE_BYTES,
            "rounds": rounds,
            "batches_a_round": batches,
            "loader_threads": threads,
            "crc32c": crc32c_library,
        },
        "versions": {name: _version(name) for name in _PACKAGES} | {"skipped": skipped},
        "times": {"warm": warmed, "cold": cold},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(times: Mapping[str, Times]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "x_raw": ratio(times, name, "raw"),
            "cpu_seconds_a_sample": statistics.median(item.cpu),
        }
        for name, item in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where files go; kept. Default: temporary")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=4, help="batches a round and format")
    parser.add_argument("--threads", type=int, default=1, help="threads of the loader")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cache-read-") as temporary:
        folder = chosen.folder or Path(temporary)
        report = run(
            folder,
            count=chosen.samples,
            rounds=chosen.rounds,
            batches=chosen.batches,
            threads=chosen.threads,
        )
    times = report.pop("times")
    for title in ("warm", "cold"):
        print(f"\n{title:12} x raw   CPU ms a sample")
        rows = sorted(report[title].items(), key=lambda item: -item[1]["x_raw"])
        for name, row in rows:
            print(f"{name:12} {row['x_raw']:5.2f}   {1e3 * row['cpu_seconds_a_sample']:.3f}")
    print()
    for name, value in report["ratios"].items():
        print(f"{name:26} {value:6.2f}")
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")
    if chosen.plot:
        draw(chosen.plot, times["warm"], times["cold"])


if __name__ == "__main__":
    main()
