"""One epoch of distillation from the cache against the same epoch with the teacher run online.

    python -m benchmarks.cached_vs_online [--json FILE] [--device cuda] [--threads N]

MedSAM2 at 512 px (its real size, synthetic weights) teaches a student with MobileNetV3-small, one
layer of memory attention and three slices of memory, in batches of the stages' own size. For each
of the two stages two processes, one that reads the cache and one that runs the teacher
(``benchmarks.epoch_steps``), take turns: a round is some steps of the one and then of the other,
while the other waits. An epoch is its number of steps times the seconds of a step, so the ratio of
two epochs is that of two steps: the median over rounds. Peaks are those of whole processes,
libraries and weights included, on a GPU those of its memory; beside their ratio stands that of what
lies on top of the imported libraries. In both the student takes a batch in the parts that the
stages make of it (``at_once``); the teacher takes a batch as it comes, or ``--teacher-at-once``
slices of it. The share of the time that an encoder step waits for its batch is the training loop's
own figure, from the second step on.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click

from benchmarks.official_checkpoint import write_checkpoint
from benchmarks.volumes import write_volumes
from stages.distill_encoder import EncoderConfig
from stages.distill_memory import MemoryConfig

__all__ = ["compare"]

WANTED = {"encoder": 3.0, "memory": 5.0}
WANTED_MEMORY = 0.5
WANTED_WAIT = 0.02
SOURCES = ("cached", "online")
_ENCODER, _MEMORY = EncoderConfig(), MemoryConfig()  # a user's batches where nothing is said


class Worker:
    """A process that steps when it is told to; a context manager that ends it."""

    def __init__(self, words: list[str], *, threads: int | None) -> None:
        environment = dict(os.environ)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.epoch_steps", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        )

    def __enter__(self) -> Self:
        self.started = self._answer()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if error is not None:
            self._process.kill()
        self._process.wait()

    def go(self, steps: int) -> dict[str, float]:
        """Run some steps; the worker's figures."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"go {steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"a worker ended with status {self._process.wait()}")
        figures: dict[str, float] = json.loads(line)
        return figures


def say(text: str) -> None:
    """A line of progress."""
    click.echo(text, err=True)


def make_cache(work: Path, checkpoint: Path, *, cases: int, depth: int, device: str) -> Path:
    """A cache of generated volumes, two tracks of ``depth`` / 2 slices each, all for training."""
    data = work / "data"
    write_volumes(data, cases=cases, depth=depth, side=512, labelled=max(depth // 2, 1))
    script = [sys.executable, "-m", "benchmarks.peak_memory", str(data), str(checkpoint)]
    cache = work / "cache"
    script += [str(cache), "--kind", "medsam2", "--device", device]
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    return cache


def compare(
    stage: str,
    words: list[str],
    *,
    rounds: int,
    steps: int,
    wait_steps: int,
    threads: int | None,
) -> dict[str, Any]:
    """Run the rounds of one stage.

    Args:
        stage: ``encoder`` or ``memory``.
        words: further arguments of the workers.
        rounds: that count; one before them warms up.
        steps: of each source in a round.
        wait_steps: of a last run from the cache that tells the wait for data; 0 leaves it out.
        threads: of each worker; None: as many as there are cores.

    Returns:
        ``speedup`` and ``peak_memory_ratio`` and what they are made of.
    """
    seconds: dict[str, list[float]] = {source: [] for source in SOURCES}
    peaks: dict[str, float] = {}
    losses: dict[str, float] = {}
    made: dict[str, Any] = {}
    with (
        Worker([stage, "cached", *words], threads=threads) as cached,
        Worker([stage, "online", *words], threads=threads) as online,
    ):
        workers = {"cached": cached, "online": online}
        for source, worker in workers.items():
            losses[source] = worker.go(1)["loss"]
        for number in range(rounds):
            for source, worker in workers.items():
                figures = worker.go(steps)
                seconds[source].append(figures["seconds_per_step"])
                peaks[source] = figures["peak_memory_mb"]
            say(
                f"{stage}, round {number + 1} of {rounds}: cached {seconds['cached'][-1]:.2f}, "
                f"online {seconds['online'][-1]:.2f} s/step"
            )
        if wait_steps:
            figures = cached.go(wait_steps)
            made["data_wait_share"] = figures["steady_wait_share"]
            made["data_wait_share_with_first_batch"] = figures["data_wait_share"]
        made["steps_of_epoch"] = cached.started["steps_of_epoch"]
        made["peak_memory_mb_before_training"] = {
            source: worker.started["peak_memory_mb"] for source, worker in workers.items()
        }
        above = {
            source: peaks[source] - worker.started["libraries_mb"]
            for source, worker in workers.items()
        }
        made["peak_memory_mb_above_libraries"] = above
        made["peak_memory_ratio_above_libraries"] = above["cached"] / above["online"]
    if abs(losses["cached"] - losses["online"]) > 0.01 * abs(losses["online"]):
        raise click.ClickException(f"{stage}: the two sources do not teach the same: {losses}")
    ratios = [slow / fast for slow, fast in zip(seconds["online"], seconds["cached"], strict=True)]
    return {
        "speedup": statistics.median(ratios),
        "peak_memory_ratio": peaks["cached"] / peaks["online"],
        "ratios": ratios,
        "seconds_per_step": {
            source: statistics.median(values) for source, values in seconds.items()
        },
        "seconds_per_epoch": {
            source: statistics.median(values) * made["steps_of_epoch"]
            for source, values in seconds.items()
        },
        "peak_memory_mb": peaks,
        "first_loss": losses,
        **made,
    }


def verdict(holds: bool) -> str:
    """Whether what is wanted holds."""
    return "holds" if holds else "MISSED"


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the figures here too.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--threads", type=int, help="CPU threads of each worker; by default one a core.")
@click.option("--rounds", default=7, show_default=True, help="Of each stage, beside the warm-up.")
@click.option(
    "--steps",
    default=2,
    show_default=True,
    help="Of each source in a round; every other memory step remembers the teacher's memories.",
)
@click.option("--wait-steps", default=10, show_default=True, help="To tell the wait for data.")
@click.option("--slices", default=_ENCODER.batch_size, show_default=True, help="Encoder batch.")
@click.option("--tracks", default=_MEMORY.batch_size, show_default=True, help="Memory batch.")
@click.option("--length", default=_MEMORY.length, show_default=True, help="Slices of a window.")
@click.option("--online-in", type=click.Choice(["batches", "step"]), default="batches")
@click.option("--at-once", type=int, help="As in a config; by default each stage's own.")
@click.option(
    "--teacher-at-once",
    type=int,
    help="Slices that go through the online teacher together; by default a batch as it comes.",
)
@click.option("--freeze-encoder", is_flag=True, help="memory.train_encoder=false.")
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Of MedSAM2.")
@click.option("--cache", type=click.Path(path_type=Path, exists=True), help="Made by it.")
@click.option("--stage", "stages", type=click.Choice(list(WANTED)), multiple=True)
def main(
    out: Path | None,
    device: str,
    threads: int | None,
    rounds: int,
    steps: int,
    wait_steps: int,
    slices: int,
    tracks: int,
    length: int,
    online_in: str,
    at_once: int | None,
    teacher_at_once: int | None,
    freeze_encoder: bool,
    checkpoint: Path | None,
    cache: Path | None,
    stages: tuple[str, ...],
) -> None:
    """Measure what training from the cache saves.

    Wanted: an encoder epoch 3 times and a memory epoch 5 times as fast, at half the peak memory,
    and less than 2 % of an encoder step spent waiting for data. With --online-in batches the
    teacher makes the batches, in the loop's thread that reads ahead; with "step" it runs before
    the student's forward pass, one after the other.
    """
    if cache is not None and checkpoint is None:
        raise click.UsageError("--cache needs the --checkpoint that it was made by")
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="cached-vs-online-") as folder:
        work = Path(folder)
        checkpoint = checkpoint or write_checkpoint(work / "MedSAM2.pt")
        if cache is None:
            say("making a cache")
            cache = make_cache(work, checkpoint, cases=tracks, depth=2 * length, device=device)
        for stage in stages or tuple(WANTED):
            words = [str(cache), str(checkpoint), "--device", device, "--length", str(length)]
            words += ["--batch-size", str(slices if stage == "encoder" else tracks)]
            words += ["--online-in", online_in]
            words += [] if at_once is None else ["--at-once", str(at_once)]
            words += [] if teacher_at_once is None else ["--teacher-at-once", str(teacher_at_once)]
            words += ["--freeze-encoder"] if freeze_encoder else []
            made = compare(
                stage,
                words,
                rounds=rounds,
                steps=steps,
                wait_steps=wait_steps if stage == "encoder" else 0,
                threads=threads,
            )
            figures[f"{stage}_speedup"] = made["speedup"]
            figures[f"{stage}_peak_memory_ratio"] = made["peak_memory_ratio"]
            details[stage] = made
            pace, peak = made["seconds_per_step"], made["peak_memory_mb"]
            click.echo(
                f"{stage}_speedup: {made['speedup']:.2f} (wanted {WANTED[stage]:g}: "
                f"{verdict(made['speedup'] >= WANTED[stage])}; {pace['cached']:.2f} and "
                f"{pace['online']:.2f} s a step)"
            )
            click.echo(
                f"{stage}_peak_memory_ratio: {made['peak_memory_ratio']:.2f} (wanted "
                f"{WANTED_MEMORY:g}: {verdict(made['peak_memory_ratio'] <= WANTED_MEMORY)}; "
                f"{peak['cached']:.0f} and {peak['online']:.0f} MB; above the libraries "
                f"{made['peak_memory_ratio_above_libraries']:.2f})"
            )
            if "data_wait_share" in made:
                share = figures["data_wait_share"] = made["data_wait_share"]
                click.echo(
                    f"data_wait_share: {share:.2%} (wanted {WANTED_WAIT:.0%}: "
                    f"{verdict(share < WANTED_WAIT)})"
                )
    details["online_in"], details["device"], details["threads"] = online_in, device, threads
    details["at_once"], details["teacher_at_once"] = at_once, teacher_at_once
    details["freeze_encoder"] = freeze_encoder
    if out is not None:
        out.write_text(json.dumps({**figures, "details": details}, indent=1) + "\n")


if __name__ == "__main__":
    main()
