"""Faults of every kind against caches, and whether any of them goes unnoticed or costs rows.

    python -m benchmarks.faults [--rounds 50] [--seed 0] [--json FILE]

Of two rounds: seven writers of synthetic arrays and one ``precompute`` of the phantom are killed
with SIGKILL at random moments. Of each round: twenty bits are flipped and four files cut short, in
shards, their metadata, ledger, Parquet files, header, statistics, completion mark, splits and the
teacher's weights; a shard, ledger entry, header or file beside the rows is deleted, exchanged, or
taken from another cache; readers open a cache that is being
written, twice. Of five rounds: two Dask workers are killed, a writer meets a full disk (a limit on
the size of files) twice, and two writers meet in one folder, twice. Both formats take turns.

After each fault all rows are read and compared with the truth, and ``verify`` looks at everything:

survived  nothing differs, and the rows that were finished read as they were written
detected  an error of the cache names the damage
silent    other values without an error, an error without a name, or damage that ``verify`` misses
lost      finished rows or files that are gone or were written again by a writer that goes on, and
          damage that repairing (tried on every tenth) does not mend

Exit code 1 unless ``silent`` and ``lost`` are 0.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from benchmarks.faults_damage import damages

__all__ = ["OUTCOMES", "campaign", "totals"]

OUTCOMES = ("survived", "detected", "silent", "lost")

_DAMAGE_OF_A_ROUND = {"flip": 20.0, "truncation": 4.0, "swap": 1.0}
_JOBS_OF_A_ROUND = {"synthetic": 3.5, "full": 0.4, "two": 0.4, "live": 2.0, "precompute": 0.5}
_WORKERS_OF_A_ROUND = 0.4

Found = dict[str, Counter[str]]


def campaign(
    rounds: int,
    *,
    seed: int,
    work: Path,
    precompute: bool = True,
    workers: bool = True,
    tell: Callable[[str], None],
) -> Found:
    """Run the campaign.

    Args:
        rounds: how many.
        seed: of all random choices.
        work: an empty folder.
        precompute: kill the command line too, not only writers of synthetic arrays.
        workers: kill Dask workers too.
        tell: gets a line on each kind, and on each silent fault.

    Returns:
        Kind of fault → outcomes.
    """
    found: Found = {}

    def silent(how: str, why: list[str]) -> None:
        tell(f"SILENT {how}: {why}")

    def told(name: str, counts: Counter[str], begun: float) -> None:
        found[name] = counts
        figures = ", ".join(f"{outcome} {counts[outcome]}" for outcome in OUTCOMES)
        tell(f"{name}: {figures}; {time.perf_counter() - begun:.0f} s")

    begun = time.perf_counter()
    (work / "damage").mkdir()
    counts = {kind: _number(rounds, each) for kind, each in _DAMAGE_OF_A_ROUND.items()}
    for name, outcomes in damages(work / "damage", counts, random.Random(seed), silent).items():
        told(name, outcomes, begun)
    jobs = {name: _number(rounds, each) for name, each in _JOBS_OF_A_ROUND.items()}
    if not precompute:
        del jobs["precompute"]
    begun = time.perf_counter()
    for name, outcomes in _forked(jobs, work, seed):
        told(name, outcomes, begun)
        begun = time.perf_counter()
    if workers:
        told("workers", _worker_kills(_number(rounds, _WORKERS_OF_A_ROUND), seed, work), begun)
    return found


def totals(found: Found) -> dict[str, int]:
    """Outcome → faults of all kinds."""
    return {outcome: sum(counts[outcome] for counts in found.values()) for outcome in OUTCOMES}


def _number(rounds: int, each: float) -> int:
    return max(1, round(rounds * each))


def _forked(jobs: dict[str, int], work: Path, seed: int) -> Iterator[tuple[str, Counter[str]]]:
    folder = work / "forked"
    folder.mkdir()
    counts = ",".join(map(str, jobs.values()))
    words = ["benchmarks.faults_kills", ",".join(jobs), str(folder), counts, str(seed)]
    # Forking needs a process without threads.
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **single},
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        names = iter(jobs)
        for line in process.stdout:
            if line.startswith("{"):
                yield next(names), Counter(json.loads(line))
    left = list(names)
    if process.returncode or left:
        raise RuntimeError(f"{left} ended with {process.returncode}")


def _worker_kills(kills: int, seed: int, work: Path) -> Counter[str]:
    from benchmarks.faults_dask import worker_kills

    (work / "workers").mkdir()
    result = worker_kills(kills, seed=seed, work=work / "workers")
    return Counter({name: getattr(result, name) for name in OUTCOMES})


def _table(found: Found) -> str:
    lines = [f"{'fault':12}" + "".join(f"{name:>10}" for name in ("faults", *OUTCOMES))]
    for kind, counts in [*found.items(), ("all", Counter(totals(found)))]:
        faults = sum(counts[name] for name in OUTCOMES[:3])
        numbers = [faults, *(counts[name] for name in OUTCOMES)]
        lines.append(f"{kind:12}" + "".join(f"{number:>10}" for number in numbers))
    return "\n".join(lines)


@click.command()
@click.option("--rounds", default=50, show_default=True, help="50 are 200 kills and 1000 flips.")
@click.option("--seed", default=0, show_default=True)
@click.option("--precompute/--no-precompute", default=True, help="Kill the command line too.")
@click.option("--workers/--no-workers", default=True, help="Kill Dask workers too.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the figures here too.")
def main(rounds: int, seed: int, precompute: bool, workers: bool, out: Path | None) -> None:
    """Faults of every kind against caches; exit code 1 unless silent and lost are 0."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        found = campaign(
            rounds,
            seed=seed,
            work=Path(folder),
            precompute=precompute,
            workers=workers,
            tell=lambda line: click.echo(line, err=True),
        )
    click.echo(_table(found))
    of_all = totals(found)
    if out is not None:
        kinds = {kind: {name: counts[name] for name in OUTCOMES} for kind, counts in found.items()}
        seconds = round(time.perf_counter() - begun, 1)
        figures = {**of_all, "kinds": kinds, "rounds": rounds, "seed": seed, "seconds": seconds}
        out.write_text(json.dumps(figures, indent=1) + "\n")
    if of_all["silent"] or of_all["lost"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
