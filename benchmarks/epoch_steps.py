"""Steps of one training stage, from the cache or with the teacher online, in a process alone.

``benchmarks.cached_vs_online`` starts it and says when to step, one line each:

    python -m benchmarks.epoch_steps encoder online CACHE CHECKPOINT

"go 2" on standard input runs two steps of the project's own training loop, and answers with their
seconds and the peak of memory so far as JSON. The two sources share everything, the loop with its
prefetching thread, the stage's module, its losses and the optimiser: online, what the cache holds
is computed by the whole teacher, either in the thread that makes the batches ahead (``batches``) or
in the step itself, just before the student's forward pass (``step``). Images
and labels come from the cache in both, and photometric augmentation is off in both, so that the
teacher sees what it saw when the cache was made.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import nn

from benchmarks.bare_stage import bare_context
from benchmarks.online_teacher import encoded, followed
from benchmarks.resident import peak_rss_mb
from cache import CacheReader
from cache.dataset import select_tracks
from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig
from efficient_medsam2.teachers.load import load_teacher
from stages.distill_encoder import EncoderConfig, EncoderModule, training_rows
from stages.distill_memory import MemoryConfig, MemoryModule
from stages.training.heads import TeacherHeads, feature_deviations
from stages.training.loop import train
from stages.training.memory_batches import forced_windows
from stages.training.settings import LoopConfig
from stages.training.slice_batches import SliceStream
from stages.training.student import new_student, open_cache, smallest_object
from stages.training.task import TrainingTask

__all__ = ["Epoch"]

STUDENT = StudentConfig(backbone="mobilenetv3_small_100", memory_layers=1, memory_slices=3)


class Epoch:
    """A stage's task, of which some steps at a time are run.

    Args:
        stage: ``encoder`` or ``memory``.
        online: run the teacher in place of reading what it gave: where the ``batches`` are made,
            or in the ``step``; None reads.
        cache: folder of a complete cache.
        checkpoint: of the MedSAM2 that made the cache.
        device: ``cpu`` or ``cuda``.
        batch_size: slices or tracks in a step.
        length: slices of a window.
        at_once: the setting of this name of the stages; None: theirs.
        teacher_at_once: slices that go through the teacher together; None: a whole batch.
        train_encoder: the setting of this name of the memory stage.
    """

    def __init__(
        self,
        stage: str,
        *,
        online: Literal["batches", "step"] | None,
        cache: Path,
        checkpoint: Path,
        device: str,
        batch_size: int | None,
        length: int,
        at_once: int | None = None,
        teacher_at_once: int | None = None,
        train_encoder: bool = True,
    ) -> None:
        self._libraries_mb = peak_rss_mb()
        self._folder = tempfile.TemporaryDirectory(prefix="epoch-steps-")
        self._context = bare_context(
            Path(self._folder.name), cache=cache, device=device, resume=False
        )
        self._device = pick_device(device)
        reader = open_cache(self._context)
        teacher = load_teacher("medsam2", checkpoint).runner if online else None
        if teacher is not None:
            teacher.model.to(self._device).requires_grad_(False)
        given = {"batch_size": batch_size, "at_once": at_once}
        loop: dict[str, Any] = {name: size for name, size in given.items() if size is not None}
        loop |= {"log_every": 1, "checkpoint_seconds": 1e9, "augment": 0}
        runner = new_student(STUDENT, cache, seed=0, device=device)
        self._config: LoopConfig
        self._module: nn.Module
        self._make_batch: Callable[[int], Any]
        self._parts: Callable[[Any], Sequence[Any]]
        if stage == "encoder":
            self._prepare_encoder(reader, runner, teacher, EncoderConfig(**loop))
        else:
            loop["train_encoder"] = train_encoder
            self._prepare_memory(reader, runner, teacher, MemoryConfig(**loop, length=length))
        if teacher is not None:
            complete = partial(
                encoded if stage == "encoder" else followed,
                teacher=teacher,
                at_once=teacher_at_once,
            )
            make_batch, parts = self._make_batch, self._parts
            if online == "step":
                self._parts = lambda batch: parts(complete(batch))
            else:
                self._make_batch = lambda number: complete(make_batch(number))

    def _prepare_encoder(
        self,
        reader: CacheReader,
        runner: SliceRunner,
        teacher: SliceRunner | None,
        config: EncoderConfig,
    ) -> None:
        if teacher is None:
            heads = TeacherHeads.of_cache(reader, size=runner.image_size)
        else:
            heads = TeacherHeads(
                runner=teacher,
                sigma=feature_deviations(reader),
                size=runner.image_size,
                mode=None,
                is_copied=True,
            )
        inner = EncoderModule(runner, heads, config)
        rows = training_rows(reader, config)
        self._config, self._module = config, inner
        self._parts = lambda batch: batch.split(config.at_once)
        self.steps_of_epoch = len(rows) / config.batch_size
        self._make_batch = SliceStream(
            reader,
            rows,
            batch_size=config.batch_size,
            prompts_per_slice=config.prompts_per_slice,
            smallest=smallest_object(reader),
            box_share=config.box_share,
            augment=config.augment,
            features=teacher is None,
            seed=0,
        )

    def _prepare_memory(
        self,
        reader: CacheReader,
        runner: SliceRunner,
        teacher: SliceRunner | None,
        config: MemoryConfig,
    ) -> None:
        inner = MemoryModule(runner, feature_deviations(reader), config)
        tracks = select_tracks(reader, split="train", minimum_length=config.length)
        self._config, self._module, self._parts = config, inner, inner.parts
        self.steps_of_epoch = len(tracks) / config.batch_size
        self._make_batch = forced_windows(
            reader,
            tracks,
            batch_size=config.batch_size,
            length=config.length,
            augment=config.augment,
            seed=0,
            forced=lambda number: number % 2 == 0,
            features=teacher is None,
        )

    def run(self, steps: int) -> dict[str, float]:
        """Some steps, the reading of the first batch included: seconds each, wait, memory, loss."""
        config = self._config.model_copy(update={"steps": steps})
        task = TrainingTask(module=self._module, make_batch=self._make_batch, parts=self._parts)
        begun = time.perf_counter()
        result = train(task, config, self._context, name="epoch")
        seconds = time.perf_counter() - begun
        journal = self._context.directory / "metrics.jsonl"
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        journal.unlink()
        return {
            "seconds_per_step": seconds / steps,
            "data_wait_share": float(lines[-1]["data_wait_share"]),
            "steady_wait_share": _steady_wait(lines, config.batch_size),
            "peak_memory_mb": self.peak_memory_mb(),
            "loss": float(result.final["loss"]),
        }

    def peak_memory_mb(self) -> float:
        """The device's peak on a GPU, else that of this process, weights and libraries included."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device)) / 1e6
        return peak_rss_mb()

    def libraries_mb(self) -> float:
        """What of it the imported libraries were before there was a network; a GPU has none."""
        return 0.0 if self._device.type == "cuda" else self._libraries_mb


def _steady_wait(lines: list[dict[str, Any]], batch_size: int) -> float:
    """Share of the time after the first step that was spent waiting for a batch."""
    seconds = [line["step"] * batch_size / line["samples_per_second"] for line in lines]
    waits = [
        line["data_wait_share"] * elapsed for line, elapsed in zip(lines, seconds, strict=True)
    ]
    if len(lines) < 2:
        return float(waits[0] / seconds[0])
    # The journal's shares are rounded: no wait at all may come out below nothing.
    return max(float((waits[-1] - waits[0]) / (seconds[-1] - seconds[0])), 0.0)


@click.command()
@click.argument("stage", type=click.Choice(["encoder", "memory"]))
@click.argument("source", type=click.Choice(["cached", "online"]))
@click.argument("cache", type=click.Path(path_type=Path, exists=True))
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch-size", type=int)
@click.option("--length", default=4, show_default=True)
@click.option("--online-in", type=click.Choice(["batches", "step"]), default="batches")
@click.option("--at-once", type=int)
@click.option("--teacher-at-once", type=int)
@click.option("--freeze-encoder", is_flag=True, help="memory.train_encoder=false.")
def main(
    stage: str,
    source: str,
    cache: Path,
    checkpoint: Path,
    device: str,
    batch_size: int | None,
    length: int,
    online_in: Literal["batches", "step"],
    at_once: int | None,
    teacher_at_once: int | None,
    freeze_encoder: bool,
) -> None:
    """Run steps of STAGE as standard input asks for them ("go N")."""
    epoch = Epoch(
        stage,
        online=online_in if source == "online" else None,
        cache=cache,
        checkpoint=checkpoint,
        device=device,
        batch_size=batch_size,
        length=length,
        at_once=at_once,
        teacher_at_once=teacher_at_once,
        train_encoder=not freeze_encoder,
    )
    before = {
        "peak_memory_mb": epoch.peak_memory_mb(),
        "libraries_mb": epoch.libraries_mb(),
        "steps_of_epoch": epoch.steps_of_epoch,
    }
    click.echo(json.dumps(before))
    for line in sys.stdin:
        click.echo(json.dumps(epoch.run(int(line.split()[1]))))


if __name__ == "__main__":
    main()
