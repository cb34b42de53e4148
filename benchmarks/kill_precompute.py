"""Precompute killed with SIGKILL at random points, and what came of it.

    python -m benchmarks.kill_precompute [--kills 20] [--seed 0] [--data FOLDER] [--json FILE]

An uninterrupted run tells the digest and the number of shards. Then the command line is started
in a process of its own, killed at a random point, and typed again until it has been killed
``--kills`` times and finished. The points are spread over all shards, each some random time after
a given number of them was finished. The cache must end with the same digest, and no shard that
was in the ledger at a kill may have been written again (same inode, time and size).
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.official_checkpoint import write_checkpoint
from benchmarks.peak_memory import save_small_teacher
from benchmarks.volumes import write_volumes
from cache import CacheReader
from cache.layout import HEADER_NAME, read_header
from cache.ledger import load_ledger
from cache.schema import ROW_SPACES

Files = dict[Path, tuple[int, int, int]]
"""Path → inode, modification time in ns, bytes."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the killed run came to.

    Attributes:
        kills: how often it was killed before it was done.
        passes: pass that was at work at a kill → kills.
        starting: of these, kills before the first shard of that process was finished.
        rewritten: files of finished shards that were written again.
        digest: of the finished cache.
    """

    kills: int
    passes: Mapping[str, int]
    starting: int
    rewritten: tuple[str, ...]
    digest: str


def command(settings: Mapping[str, object]) -> list[str]:
    """The command line of one precompute."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [
        sys.executable,
        "-c",
        "import sys; from pipeline.cli import main; sys.exit(main())",
        *("precompute", "-c", "laptop", *words, "--progress", "none"),
    ]


def finished_files(cache: Path) -> Files:
    """Every shard file that the ledger names, as it lies on the disk."""
    if not (cache / HEADER_NAME).is_file():
        return {}
    files: Files = {}
    for entry in load_ledger(cache, read_header(cache)).entries.values():
        for array in entry.arrays.values():
            seen = (cache / array.file).stat()
            files[cache / array.file] = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
    return files


def finished_shards(cache: Path) -> int:
    """How many shards are in the ledger."""
    return len(list(cache.glob("ledger/*.json")))


def pass_at_work(cache: Path, shards: Mapping[str, int]) -> str:
    """The first pass with shards missing."""
    for space in ROW_SPACES:
        if len(list(cache.glob(f"ledger/{space}-*.json"))) < shards[space]:
            return space
    return "finishing"


def kill_often(
    words: list[str],
    cache: Path,
    *,
    kills: int,
    shards: Mapping[str, int],
    shard_seconds: float,
    rng: random.Random,
) -> Outcome:
    """Run a command, killing it at random points, until it is done."""
    points = sorted(rng.randrange(sum(shards.values())) for _ in range(kills))
    passes: Counter[str] = Counter()
    rewritten: list[str] = []
    starting, killed = 0, 0
    before: Files = {}
    for point in [*points, None]:
        had = finished_shards(cache)
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        if point is not None:
            _wait_for(process, cache, point)
            time.sleep(rng.uniform(0, shard_seconds))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            raise click.ClickException(f"precompute ended with {process.returncode}: {errors}")
        now = finished_files(cache)
        rewritten += [str(file) for file, seen in before.items() if now.get(file) != seen]
        before = now
        if process.returncode == 0:
            break
        killed += 1
        at = pass_at_work(cache, shards)
        passes[at] += 1
        starting += finished_shards(cache) == had
        click.echo(f"kill {killed}: {finished_shards(cache)} shards there, {at}", err=True)
    return Outcome(
        kills=killed,
        passes=dict(passes),
        starting=starting,
        rewritten=tuple(rewritten),
        digest=CacheReader(cache).digest(),
    )


def _wait_for(process: "subprocess.Popen[str]", cache: Path, shards: int) -> None:
    """Until so many shards are finished and this process has begun to work, or has ended."""
    header = cache / HEADER_NAME
    while process.poll() is None and (finished_shards(cache) < shards or not header.exists()):
        time.sleep(0.01)


def shards_of(cache: Path) -> dict[str, int]:
    """Number of shards of each pass of a finished cache."""
    return {space: len(list(cache.glob(f"ledger/{space}-*.json"))) for space in ROW_SPACES}


def seconds_between_shards(cache: Path) -> float:
    """Mean time from one finished shard to the next; starting up is not in it."""
    times = [entry.stat().st_mtime for entry in cache.glob("ledger/*.json")]
    return (max(times) - min(times)) / max(len(times) - 1, 1)


def teacher_settings(teacher: str, work: Path) -> dict[str, object]:
    """Write a teacher's weights; the settings that name them."""
    if teacher == "small":
        return {"teacher.checkpoint": save_small_teacher(work / "teacher")}
    checkpoint = write_checkpoint(work / "MedSAM2.pt")
    return {"teacher.kind": "medsam2", "teacher.checkpoint": checkpoint}


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Volumes; else made.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--rows-per-shard", default=3, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the figures here too.")
@click.option(
    "--teacher",
    type=click.Choice(["medsam2", "small"]),
    default="medsam2",
    show_default=True,
    help="MedSAM2 of synthetic weights, or a network that takes milliseconds.",
)
def main(
    kills: int,
    seed: int,
    data: Path | None,
    device: str,
    rows_per_shard: int,
    out: Path | None,
    teacher: str,
) -> None:
    """Kill a 512 x 512 precompute of a synthetic MedSAM2 at random points; compare digests.

    Exit code 1 where the cache differs, or a finished shard was written again.
    """
    with tempfile.TemporaryDirectory(prefix="kill-precompute-") as folder:
        work = Path(folder)
        if data is None:
            data = write_volumes(work / "ct", cases=3, depth=8, side=512, labelled=5)
        settings = {
            **teacher_settings(teacher, work),
            "data.source": data,
            "cache.rows_per_shard": rows_per_shard,
            "precompute.prompts.per_object": 1,
            "precompute.tracks.per_object": 1,
            "precompute.tracks.length": 4,
            "run.device": device,
        }
        begun = time.perf_counter()
        whole = work / "whole"
        subprocess.run(command({**settings, "run.dir": whole}), check=True)
        seconds = time.perf_counter() - begun
        shards = shards_of(whole / "cache")
        told = ", ".join(f"{count} of {space}" for space, count in shards.items())
        click.echo(f"uninterrupted: {seconds:.0f} s; shards: {told}", err=True)
        pieced = work / "pieced"
        outcome = kill_often(
            command({**settings, "run.dir": pieced}),
            pieced / "cache",
            kills=kills,
            shards=shards,
            shard_seconds=seconds_between_shards(whole / "cache"),
            rng=random.Random(seed),
        )
        same = outcome.digest == CacheReader(whole / "cache").digest()
    passes = ", ".join(f"{count} in {name}" for name, count in outcome.passes.items())
    click.echo(
        f"{outcome.kills} kills ({passes}; {outcome.starting} before their first shard): digest "
        f"{'the same' if same else 'DIFFERENT'}, finished shard files written again: "
        f"{len(outcome.rewritten)}"
    )
    if out is not None:
        figures = {
            "kills": outcome.kills,
            "passes": dict(outcome.passes),
            "same_digest": same,
            "rewritten": list(outcome.rewritten),
        }
        out.write_text(json.dumps(figures, indent=1) + "\n")
    if not same or outcome.rewritten or outcome.kills < kills:
        sys.exit(1)


if __name__ == "__main__":
    main()
