"""How fast features come from a disk: our cache beside the formats that others use.

    python -m benchmarks.cache_read --json read.json --plot read.png

Random batches of 16 samples of a 512-pixel teacher (three levels, 2.1 MB a sample), verified to
be the samples' own bytes before anything is timed; ours verify every byte on every read as well.
All are timed in turn in each round, and only ratios of one run's medians are printed: the machine
is never quiet. Warm: all files in memory, as writing left them there; then once more as an epoch
in random order leaves them, because the kernel copies from many small pieces of memory slower than
from few large ones (``ratios_after_epoch``). Cold: the pages of a format's files are dropped, and
that they are is asserted; two threads read.
"""

import argparse
import gc
import importlib.metadata
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache_format import Format, Read, check, installed, say_skipped
from benchmarks.cache_formats import FORMATS
from benchmarks.cache_ratios import Times, cold_ratios, draw, numbers, warm_ratios
from benchmarks.cache_samples import LEVELS, SAMPLE_BYTES, Batch, empty_batch
from benchmarks.page_cache import drop, resident_share, warm
from cache import CacheReader
from cache.direct_read import way_of_reading
from cache.loader import BatchLoader
from cache.shuffle import ShuffledRows

_BATCH = 16
_COLD = ("raw", "direct", "hdf5", "int8", "npy")
_COLD_SAMPLES = 192
_STILL_RESIDENT = 0.02
_PACKAGES = (
    *("numpy", "torch", "zarr", "h5py", "crc32c-rs", "google-crc32c"),
    *("tensorstore", "webdataset", "litdata", "mosaicml-streaming"),
)


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


def read_an_epoch(readers: Mapping[str, Read], places: Mapping[str, Path], count: int) -> None:
    """Drop every format's files and have its own reader bring them back, in random order."""
    out = empty_batch(_BATCH)
    for name in readers:
        drop(places[name])
    order = np.random.default_rng(3).permutation(count)
    for read in readers.values():
        for start in range(0, count, _BATCH):
            rows = order[start : start + _BATCH].tolist()
            read(rows, {name: values[: len(rows)] for name, values in out.items()})


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


def run(folder: Path, *, count: int, rounds: int, batches: int, threads: int) -> dict[str, Any]:
    """Write, read and compare everything; give the report."""
    formats = [item for item in FORMATS if installed(item)]
    skipped = say_skipped(FORMATS)
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
        read_an_epoch(readers, places, count)
        later = read_warm(readers, loader, count=count, rounds=rounds, batches=batches)
    cold_formats = [item for item in formats if item.name in _COLD]
    cold_count = max(4 * _BATCH, min(count, _COLD_SAMPLES))
    cold_places = write_all(folder / "cold", cold_formats, cold_count)
    cold = read_cold(cold_formats, cold_places, count=cold_count, rounds=rounds)
    return {
        "ratios": warm_ratios(formats, warmed) | cold_ratios(cold),
        "ratios_after_epoch": warm_ratios(formats, later),
        "warm": numbers(warmed),
        "warm_after_epoch": numbers(later),
        "cold": numbers(cold),
        "settings": {
            "samples": count,
            "sample_bytes": SAMPLE_BYTES,
            "rounds": rounds,
            "batches_a_round": batches,
            "loader_threads": threads,
            "reader": way_of_reading(),
        },
        "versions": {name: _version(name) for name in _PACKAGES} | {"skipped": skipped},
        "times": {"warm": warmed, "cold": cold},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


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
    for title in ("warm", "warm_after_epoch", "cold"):
        print(f"\n{title:16} x raw   CPU ms a sample")
        rows = sorted(report[title].items(), key=lambda item: -item[1]["x_raw"])
        for name, row in rows:
            print(f"{name:16} {row['x_raw']:5.2f}   {1e3 * row['cpu_seconds_a_sample']:.3f}")
    print()
    later = report["ratios_after_epoch"]
    print(f"{'':26} {'':>6}  after an epoch")
    for name, value in report["ratios"].items():
        after = f"{later[name]:6.2f}" if name in later else ""
        print(f"{name:26} {value:6.2f}  {after}".rstrip())
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")
    if chosen.plot:
        draw(chosen.plot, times["warm"], times["cold"])


if __name__ == "__main__":
    main()
