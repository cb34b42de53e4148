"""What precompute costs beside the teacher alone, and how its memory grows.

    python -m benchmarks.precompute [--json FILE] [--device cuda] [--data FOLDER]

(a) Slices a second of the encoder pass (read, squash, encode, write, flush, reread, digest) over
those of the teacher's encoder alone on the same images, batch size and threads. Rounds of the two
take turns in one process; the ratio is the median over rounds.
(b) Peak memory of one precompute of 20, 200 and 2 000 slices, as one volume each and as so many
cases, each in a fresh process.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.bare_stage import bare_context
from benchmarks.official_checkpoint import write_checkpoint
from benchmarks.peak_memory import save_small_teacher
from benchmarks.volumes import write_volume, write_volumes
from cache import CacheReader
from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.teachers.load import load_teacher
from efficient_medsam2.teachers.protocol import SliceTeacher
from stages import precompute
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.cases import DataConfig
from stages.row_settings import PromptConfig, TrackConfig
from stages.teacher_source import TeacherConfig

LENGTHS = (20, 200, 2000)
FLAT = 0.05
WANTED_RATIO = 0.95


def say(text: str) -> None:
    """A line of progress."""
    click.echo(text, err=True)


def run_precompute(
    data: Path, checkpoint: Path, cache: Path, *, batch: int, shard: int, tracks: int, device: str
) -> dict[str, Any]:
    """One precompute into a new folder; its summary, with seconds by pass."""
    cache.mkdir(parents=True)
    context = bare_context(cache, cache=cache, device=device, resume=True)
    artifact = precompute.run(
        DataConfig(source=str(data), slices="all"),
        TeacherConfig(kind="medsam2", checkpoint=checkpoint),
        CacheConfig(rows_per_shard=shard),
        PrecomputeConfig(
            prompts=PromptConfig(per_object=1),
            tracks=TrackConfig(per_object=tracks),
            batch_size=batch,
        ),
        context,
    )
    return dict(artifact.summary)


@torch.no_grad()
def teacher_seconds(teacher: SliceTeacher, image_NCSS: np.ndarray, batch: int) -> float:
    """Seconds of the encoder alone over all images, in batches."""
    device = next(teacher.module.parameters()).device
    begun = time.perf_counter()
    for start in range(0, len(image_NCSS), batch):
        pixels = teacher.network_input(
            torch.from_numpy(image_NCSS[start : start + batch]).to(device)
        )
        teacher.encode(pixels)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def throughput(
    work: Path, data: Path | None, *, slices: int, rounds: int, batch: int, device: str
) -> dict[str, Any]:
    """Measure (a)."""
    checkpoint = write_checkpoint(work / "MedSAM2.pt")
    if data is None:
        data = work / "ct"
        write_volume(data / "3D_ct.npz", depth=slices, side=512, labelled=6, seed=0)
    shard = 2 * batch
    say("throughput: warming up")
    first = run_precompute(
        data, checkpoint, work / "full", batch=batch, shard=shard, tracks=1, device=device
    )
    reader = CacheReader(work / "full")
    image = np.asarray(reader.read("image", range(reader.counts["slices"])))
    teacher = load_teacher("medsam2", checkpoint).model
    teacher.module.to(pick_device(device))
    teacher_seconds(teacher, image[:batch], batch)
    alone, together = [], []
    for number in range(rounds):
        alone.append(len(image) / teacher_seconds(teacher, image, batch))
        summary = run_precompute(
            data,
            checkpoint,
            work / f"round{number}",
            batch=batch,
            shard=shard,
            tracks=0,
            device=device,
        )
        together.append(len(image) / summary["seconds"]["slices"])
        say(
            f"round {number + 1} of {rounds}: teacher {alone[-1]:.3g}, precompute "
            f"{together[-1]:.3g} slices/s: {together[-1] / alone[-1]:.3f} ({summary['verdict']})"
        )
    ratios = [made / base for made, base in zip(together, alone, strict=True)]
    passes = {
        name: first[name] / first["seconds"][name] for name in ("slices", "prompts", "tracks")
    }
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "teacher_slices_per_second": statistics.median(alone),
        "precompute_slices_per_second": statistics.median(together),
        "full_run_rows_per_second": passes,
        "slices": len(image),
        "batch_size": batch,
        "threads": torch.get_num_threads(),
        "device": str(pick_device(device)),
    }


def peak_memory(work: Path, *, teacher: str, device: str, as_cases: bool) -> Iterator[float]:
    """Measure (b): MB by number of slices, of one volume or of so many cases."""
    small = teacher == "small"
    checkpoint = work / ("teacher" if small else "MedSAM2.pt")
    if small:
        save_small_teacher(checkpoint)
    elif not checkpoint.is_file():
        write_checkpoint(checkpoint)
    for length in LENGTHS:
        name = f"{'cases' if as_cases else 'volume'}{length}"
        data = work / name
        if as_cases:
            write_volumes(data, cases=length, depth=1, side=256, labelled=1)
        else:
            write_volume(data / "3D_ct.npz", depth=length, side=256, labelled=length, seed=0)
        words = [str(data), str(checkpoint), str(work / f"{name}.cache"), "--device", device]
        words += [] if small else ["--kind", "medsam2"]
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peak_memory", *words],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        told = json.loads(done.stdout.splitlines()[-1])
        say(
            f"memory of {length} slices as {'cases' if as_cases else 'one volume'}: "
            f"{told['peak_memory_mb']:.0f} MB ({told['prompts']} prompts, {told['tracks']} track "
            f"rows, {time.perf_counter() - begun:.0f} s)"
        )
        yield told["peak_memory_mb"]


def growth(peaks: dict[str, float]) -> float:
    """How far the largest peak lies above the smallest."""
    return max(peaks.values()) / min(peaks.values()) - 1


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the figures here too.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Volumes for (a).")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--slices", default=48, show_default=True, help="Of the generated volume for (a).")
@click.option("--rounds", default=3, show_default=True, help="Of (a).")
@click.option("--batch-size", default=4, show_default=True, help="Of (a).")
@click.option("--threads", type=int, help="CPU threads of the network; by default one a core.")
@click.option(
    "--teacher",
    type=click.Choice(["small", "medsam2"]),
    default="small",
    show_default=True,
    help="Of (b): its memory grows with the data or does not, whatever the network's size.",
)
@click.option("--part", type=click.Choice(["all", "throughput", "memory"]), default="all")
def main(
    out: Path | None,
    data: Path | None,
    device: str,
    slices: int,
    rounds: int,
    batch_size: int,
    threads: int | None,
    teacher: str,
    part: str,
) -> None:
    """Measure precompute against its teacher, and its peak memory.

    Wanted: precompute_vs_teacher of at least 0.95, and a peak memory flat within 5 %.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="precompute-") as folder:
        work = Path(folder)
        if part != "memory":
            made = throughput(
                work, data, slices=slices, rounds=rounds, batch=batch_size, device=device
            )
            figures["precompute_vs_teacher"] = made["ratio"]
            details["throughput"] = made
            rates = made["full_run_rows_per_second"]
            click.echo(
                f"precompute_vs_teacher: {made['ratio']:.3f} (wanted {WANTED_RATIO}; "
                f"{made['precompute_slices_per_second']:.3g} of "
                f"{made['teacher_slices_per_second']:.3g} slices/s, {made['device']}, "
                f"batches of {batch_size})"
            )
            click.echo(
                f"a full run: {rates['slices']:.3g} slices/s, {rates['prompts']:.3g} prompts/s, "
                f"{rates['tracks']:.3g} track rows/s"
            )
        if part != "throughput":
            for as_cases in (False, True):
                found = peak_memory(work, teacher=teacher, device=device, as_cases=as_cases)
                peaks = dict(zip(map(str, LENGTHS), found, strict=True))
                name = "peak_memory_mb" + ("_of_cases" if as_cases else "")
                (details if as_cases else figures)[name] = peaks
                told = ", ".join(f"{length}: {peak:.0f} MB" for length, peak in peaks.items())
                verdict = "flat" if growth(peaks) <= FLAT else "NOT flat"
                kind = "cases" if as_cases else "slices of one volume"
                click.echo(f"peak memory by {kind}: {told}: {verdict}, {growth(peaks):.1%}")
    if out is not None:
        out.write_text(json.dumps({**figures, "details": details}, indent=1) + "\n")


if __name__ == "__main__":
    main()
