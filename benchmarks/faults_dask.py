"""Dask workers killed with SIGKILL while they fill a cache, and what came of it.

    python -m benchmarks.faults_dask [--kills 20] [--seed 0] [--json FILE]

A single process fills a cache of the phantom with a small teacher: the truth. Then a coordinator
(the command line) fills others on an external scheduler with worker processes on loopback. At
random points a random worker is killed and another one joins. Every cache must end with the
truth's digest and pass ``verify``, and no shard that was in the ledger at a kill may have been
written again.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.dask_processes import DaskProcesses
from benchmarks.kill_precompute import finished_files, finished_shards
from benchmarks.peak_memory import save_small_teacher
from cache import CacheReader
from cache.verify import verify

__all__ = ["WorkerKills", "command", "worker_kills"]

_WORKERS = 3
_KILLS_OF_A_RUN = 4
_RUN_S = 300.0


@dataclass(frozen=True, kw_only=True)
class WorkerKills:
    """What came of the kills.

    Attributes:
        kills: workers that were killed while a run was at work.
        runs: runs in which that happened.
        survived: kills after which the run ended with the truth's digest.
        detected: kills after which the run ended with an error, or verify found damage.
        silent: kills after which the cache is another one, and verify finds nothing.
        lost: shard files that were finished at a kill and were written again.
    """

    kills: int
    runs: int
    survived: int
    detected: int
    silent: int
    lost: int


def worker_kills(
    kills: int, *, seed: int, work: Path, workers: int = _WORKERS, per_run: int = _KILLS_OF_A_RUN
) -> WorkerKills:
    """Kill workers of runs that fill caches.

    Args:
        kills: how many workers to kill in all.
        seed: of the random points.
        work: an empty folder for the caches.
        workers: processes at a time.
        per_run: kills in one run.
    """
    rng = random.Random(seed)
    teacher = save_small_teacher(work / "teacher")
    truth = work / "truth"
    subprocess.run(command(truth, teacher), check=True)
    digest = CacheReader(truth / "cache").digest()
    total = finished_shards(truth / "cache")
    counts = dict.fromkeys(("kills", "runs", "survived", "detected", "silent", "lost"), 0)
    with DaskProcesses(workers) as dask:
        while counts["kills"] < kills:
            folder = work / f"run{counts['runs']}"
            wanted = min(per_run, kills - counts["kills"])
            points = sorted(rng.randrange(total) for _ in range(wanted))
            killed, lost, ended_well = _run(
                [*command(folder, teacher), "--scheduler", dask.address],
                folder / "cache",
                dask,
                points,
                rng,
            )
            if not killed:
                continue
            counts["runs"] += 1
            counts["kills"] += killed
            counts["lost"] += lost
            outcome = "detected"
            if ended_well:
                same = CacheReader(folder / "cache").digest() == digest
                sound = verify(folder / "cache").ok
                outcome = "detected" if not sound else "survived" if same else "silent"
            counts[outcome] += killed
            click.echo(f"run {counts['runs']}: {killed} workers killed: {outcome}", err=True)
    return WorkerKills(**counts)


def _run(
    words: list[str], cache: Path, dask: DaskProcesses, points: list[int], rng: random.Random
) -> tuple[int, int, bool]:
    """Workers killed, files of finished shards written again, whether the run ended well."""
    killed, lost = 0, 0
    before: dict[Path, tuple[int, int, int]] = {}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        for point in points:
            while process.poll() is None and finished_shards(cache) < point + 1:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.2))
            if process.poll() is not None:
                break
            dask.kill_worker(rng.randrange(len(dask.workers)))
            dask.add_worker()
            killed += 1
            now = finished_files(cache)
            lost += sum(now.get(file) != seen for file, seen in before.items())
            before = now
        _, errors = process.communicate(timeout=_RUN_S)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        click.echo(errors, err=True)
    now = finished_files(cache)
    lost += sum(now.get(file) != seen for file, seen in before.items())
    return killed, lost, process.returncode == 0


def command(run_dir: Path, teacher: Path) -> list[str]:
    """Give the command line of a precompute of a small phantom."""
    settings = {
        "run.dir": run_dir,
        "run.device": "cpu",
        "run.threads": 1,
        "teacher.checkpoint": teacher,
        "data.source": "phantom",
        "data.phantom_size": 48,
        "data.phantom_depth": 24,
        "data.smallest": 5,
        "cache.rows_per_shard": 3,
        "precompute.batch_size": 2,
        "precompute.prompts.per_object": 1,
        "precompute.tracks.per_object": 1,
        "precompute.tracks.length": 4,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [
        sys.executable,
        "-c",
        "import sys; from pipeline.cli import main; sys.exit(main())",
        *("precompute", "-c", "phantom", *words, "--progress", "none"),
    ]


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=_WORKERS, show_default=True, help="Processes at a time.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the figures here too.")
def main(kills: int, seed: int, workers: int, out: Path | None) -> None:
    """Kill Dask workers at random points; exit code 1 unless silent and lost are 0."""
    with tempfile.TemporaryDirectory(prefix="faults-dask-") as folder:
        found = worker_kills(kills, seed=seed, work=Path(folder), workers=workers)
    click.echo(", ".join(f"{name} {count}" for name, count in asdict(found).items()))
    if out is not None:
        out.write_text(json.dumps(asdict(found), indent=1) + "\n")
    if found.silent or found.lost or found.survived < found.kills:
        sys.exit(1)


if __name__ == "__main__":
    main()
