"""The one training loop.

Stages differ only in what a batch is and what the loss is: they hand over a ``TrainingTask``.
Batches are a pure function of their number and every step seeds its own random stream, so a run
that was killed anywhere continues with the losses of one that was not: to the bit on a CPU, to
rounding on a GPU, which adds up some gradients in no fixed order.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import Tensor, nn

from cache.prefetch import prefetch
from efficient_medsam2.networks.device import pick_device
from stages.context import StageContext
from stages.errors import StageConfigError
from stages.training.checkpoint import (
    keep_best,
    load_checkpoint,
    remove_checkpoint,
    restore_best,
    save_checkpoint,
)
from stages.training.journal import Journal
from stages.training.optimisation import learning_rate_at, make_optimizer
from stages.training.pinning import pinned
from stages.training.settings import LoopConfig
from stages.training.task import TrainingResult, TrainingTask

__all__ = ["share_done", "train"]


def share_done(number: int, config: LoopConfig) -> float:
    """How far into training batch ``number`` is: 0 at the first, below 1 at the last."""
    batches = config.steps * config.accumulate * int(PartialState().num_processes)
    return number / batches


def train(
    task: TrainingTask[Any], config: LoopConfig, context: StageContext, *, name: str
) -> TrainingResult:
    """Train until ``config.steps``, continuing a checkpoint of the same fingerprint.

    Afterwards ``task.module`` holds the weights to hand on, and ``metrics.jsonl`` the curves. The
    last checkpoint stays until the weights are handed on (``hand_on``).

    Raises:
        NetworkConfigError: the device is not there.
        StageConfigError: the precision does not suit the device, or the loss is not finite.
    """
    accelerator = _accelerator(config, context)
    module, optimizer = accelerator.prepare(task.module, make_optimizer(task.module, config))
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    state = (
        load_checkpoint(accelerator, context.directory, fingerprint=context.fingerprint)
        if context.resume
        else None
    )
    accelerator.wait_for_everyone()
    if state is None:
        if accelerator.is_main_process:
            remove_checkpoint(context.directory)
        state = {"step": 0, "window": {}, "best": None, "final": {}, "before": {}}
        if task.validate is not None:
            state["before"] = _validated(task, accelerator)
            if task.may_keep_start and task.best_by is not None:
                state["best"] = {"step": 0, "figures": state["before"]}
                if accelerator.is_main_process:
                    keep_best(task.module, context.directory)
    else:
        context.progress.note(f"{name}: continuing at step {state['step']} of {config.steps}")
    path = context.directory / "metrics.jsonl" if accelerator.is_main_process else None
    journal = Journal(path, step=state["step"])
    if state["step"] == 0 and state["before"]:
        journal.write(step=0, **_named("validation", state["before"]))
    run = _Run(name, task, config, context, accelerator, module, optimizer, journal, state)
    run.go()
    best = state["best"]
    if task.best_by is not None and best is not None and best["step"] != state["step"]:
        accelerator.wait_for_everyone()
        restore_best(task.module, context.directory)
        accelerator.wait_for_everyone()  # the file goes with the checkpoint, later
        if best["step"] == 0:
            context.progress.note(
                f"{name}: no step made it better on the validation split; the student is handed "
                "on as it came"
            )
    return TrainingResult(
        steps=state["step"],
        final=state["final"],
        validation=best["figures"] if best else {},
        best_step=best["step"] if best else state["step"],
        started_at=state["before"],
    )


@dataclass
class _Run:
    """The moving parts of one run."""

    name: str
    task: TrainingTask[Any]
    config: LoopConfig
    context: StageContext
    accelerator: Accelerator
    module: nn.Module
    optimizer: Any
    journal: Journal
    state: dict[str, Any]

    def go(self) -> None:
        config, state = self.config, self.state
        first = state["step"]
        workers = self.accelerator.num_processes
        numbers = (
            (step * config.accumulate + micro) * workers + self.accelerator.process_index
            for step in range(first, config.steps)
            for micro in range(config.accumulate)
        )
        on_gpu = self.accelerator.device.type == "cuda"
        stream = prefetch(self._make_pinned if on_gpu else self.task.make_batch, numbers)
        started = saved = time.monotonic()
        self.module.train()
        bar = self.context.progress.bar(
            total=config.steps, description=self.name, unit="step", initial=first
        )
        with _closing(stream), bar:
            for step in range(first, config.steps):
                terms = self._step(step, stream)
                state["step"] = step + 1
                self._count(terms)
                if state["step"] % config.log_every == 0 or state["step"] == config.steps:
                    elapsed = time.monotonic() - started
                    wait = getattr(stream, "wait_seconds", 0.0) / max(elapsed, 1e-9)
                    batches = (state["step"] - first) * config.accumulate * workers
                    rate = batches * config.batch_size / elapsed
                    self._log(step, rate=rate, wait=wait)
                if self._validates(state["step"]):
                    self._validate()
                bar.update(1, loss=terms["loss"])
                if self._saves(time.monotonic() - saved):
                    self._save()
                    saved = time.monotonic()

    def _make_pinned(self, number: int) -> Any:  # noqa: ANN401 - whatever the task makes
        return pinned(self.task.make_batch(number))

    def _step(self, step: int, stream: Iterator[Any]) -> dict[str, float]:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        sums: dict[str, Tensor] = {}
        for micro in range(config.accumulate):
            torch.manual_seed(self.context.seed * 1_000_003 + step * config.accumulate + micro)
            parts = self.task.parts(next(stream))
            for part in parts[:-1]:
                # The gradients are put together over processes once, with those of the last part.
                with self.accelerator.no_sync(self.module):
                    self._learn(part, sums)
            with self.accelerator.accumulate(self.module):
                self._learn(parts[-1], sums)
                if self.accelerator.sync_gradients:
                    trained = [p for p in self.module.parameters() if p.requires_grad]
                    self.accelerator.clip_grad_norm_(trained, config.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        # Numbers are asked for once a step: a GPU is waited for by each.
        totals = {name: float(value) / config.accumulate for name, value in sums.items()}
        if not math.isfinite(totals["loss"]):
            raise StageConfigError(
                f"{self.name}: the loss is {totals['loss']} at step {step}. Lower the learning "
                f"rate: --set {_block(self.name)}.learning_rate={config.learning_rate / 10:g}"
            )
        return totals

    def _learn(self, part: Any, sums: dict[str, Tensor]) -> None:  # noqa: ANN401 - the task's
        """Gradients of one part; its terms are added to the sums of the step."""
        terms: dict[str, Tensor] = self.module(part)
        if terms["loss"].requires_grad:  # a part may go through nothing that is trained
            self.accelerator.backward(terms["loss"])
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach()

    def _count(self, terms: dict[str, float]) -> None:
        window = self.state["window"]
        window["count"] = window.get("count", 0) + 1
        for key, value in terms.items():
            window[key] = window.get(key, 0.0) + value

    def _log(self, step: int, *, rate: float, wait: float) -> None:
        window = self.state["window"]
        count = window.pop("count")
        self.state["final"] = {key: value / count for key, value in window.items()}
        self.state["window"] = {}
        self.journal.write(
            step=step + 1,
            **self.state["final"],
            learning_rate=learning_rate_at(step, self.config),
            samples_per_second=round(rate, 2),
            data_wait_share=round(wait, 4),
            peak_memory_mb=round(_peak_memory_mb(self.accelerator), 1),
        )

    def _validates(self, step: int) -> bool:
        if self.task.validate is None:
            return False
        every = self.config.validate_every
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _saves(self, seconds: float) -> bool:
        """Whether to write a checkpoint now, the same on every process."""
        if self.accelerator.num_processes == 1:
            return seconds > self.config.checkpoint_seconds
        if self.state["step"] % self.config.log_every:
            return False
        due: list[Any] = [seconds > self.config.checkpoint_seconds]
        broadcast_object_list(due)
        return bool(due[0])

    def _validate(self) -> None:
        figures = _validated(self.task, self.accelerator)
        self.module.train()
        step, best = self.state["step"], self.state["best"]
        self.journal.write(step=step, **_named("validation", figures))
        key = self.task.best_by
        if best is None or key is None or figures[key] >= best["figures"][key]:
            self.state["best"] = {"step": step, "figures": figures}
            if key is not None and self.accelerator.is_main_process:
                keep_best(self.task.module, self.context.directory)

    def _save(self) -> None:
        save_checkpoint(
            self.accelerator,
            self.context.directory,
            fingerprint=self.context.fingerprint,
            state=self.state,
        )


def _accelerator(config: LoopConfig, context: StageContext) -> Accelerator:
    device = pick_device(context.device)
    if config.precision == "fp16" and device.type != "cuda":
        raise StageConfigError(
            "precision fp16 needs a GPU, and this stage runs on the CPU. Leave it out: "
            f"--set {_block(context.directory.name)}.precision=no"
        )
    # Accelerate keeps the precision for the life of the process; each stage has its own.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        # Which heads a batch exercises depends on its prompts.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _block(stage: str) -> str:
    """The block of the config that a stage's settings are in."""
    family = stage.partition("_")[0]
    return "teacher_training" if family == "teacher" else family


def _validated(task: TrainingTask[Any], accelerator: Accelerator) -> dict[str, float]:
    """Figures from the main process, the same on every process."""
    assert task.validate is not None
    figures: list[Any] = [None]
    if accelerator.is_main_process:
        task.module.eval()
        with torch.no_grad():
            figures = [task.validate()]
    if accelerator.num_processes > 1:
        broadcast_object_list(figures)
    result: dict[str, float] = figures[0]
    return result


def _named(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{key}": value for key, value in figures.items()}


def _peak_memory_mb(accelerator: Accelerator) -> float:
    if accelerator.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(accelerator.device)) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


@contextmanager
def _closing(stream: Any) -> Iterator[None]:  # noqa: ANN401 - any iterator with close()
    try:
        yield
    finally:
        stream.close()
