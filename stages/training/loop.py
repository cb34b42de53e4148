"""The one training loop.

Stages differ only in what a batch is and what the loss is: they hand over a ``TrainingTask``.
Batches are a pure function of their number and every step seeds its own random stream, so a run
that was killed anywhere continues with the losses of one that was not.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from cache.prefetch import prefetch
from stages.context import StageContext
from stages.training.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from stages.training.journal import Journal
from stages.training.settings import LoopConfig

__all__ = ["TrainingResult", "TrainingTask", "learning_rate_at", "train"]

BatchT = TypeVar("BatchT")

_BEST = "best.pt"


@dataclass(frozen=True, kw_only=True)
class TrainingTask(Generic[BatchT]):
    """A stage's share of the loop.

    Attributes:
        module: what is trained. ``module(batch)`` gives the loss terms by name, the sum to
            minimise under ``loss``. Parameters without ``requires_grad`` stay as they are.
        make_batch: batch number → batch, a pure function; it runs in a background thread.
        validate: figures of the module as it is now, such as DSC on the validation split.
        best_by: the figure (higher is better) that picks the weights to hand on; without it the
            last weights are handed on.
    """

    module: nn.Module
    make_batch: Callable[[int], BatchT]
    validate: Callable[[], dict[str, float]] | None = None
    best_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training run ended.

    Attributes:
        steps: optimiser steps done.
        final: loss terms of the last logged window.
        validation: figures of the weights handed on.
        best_step: the step of those weights.
        started_at: figures before the first step, where the task validates.
    """

    steps: int
    final: dict[str, float]
    validation: dict[str, float]
    best_step: int
    started_at: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """As JSON values, for the stage's manifest."""
        return {
            "steps": self.steps,
            "loss": self.final.get("loss"),
            "losses": self.final,
            "validation": self.validation,
            "validation_before": self.started_at,
            "best_step": self.best_step,
        }


def learning_rate_at(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine to ``final_learning_rate`` of the peak."""
    warm = int(config.warmup * config.steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(config.steps - warm, 1)
    low = config.final_learning_rate
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    task: TrainingTask[Any], config: LoopConfig, context: StageContext, *, name: str
) -> TrainingResult:
    """Train until ``config.steps``, continuing a checkpoint of the same fingerprint.

    Afterwards ``task.module`` holds the weights to hand on, and ``metrics.jsonl`` the curves.
    """
    accelerator = Accelerator(
        cpu=context.device == "cpu",
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
    )
    module, optimizer = accelerator.prepare(task.module, _optimizer(task.module, config))
    state = (
        load_checkpoint(accelerator, context.directory, fingerprint=context.fingerprint)
        if context.resume
        else None
    )
    if state is None:
        remove_checkpoint(context.directory)
        (context.directory / _BEST).unlink(missing_ok=True)
        state = {"step": 0, "window": {}, "best": None, "final": {}, "before": {}}
        if task.validate is not None:
            state["before"] = _validated(task, accelerator)
    else:
        context.progress.note(f"{name}: continuing at step {state['step']} of {config.steps}")
    journal = Journal(context.directory / "metrics.jsonl", step=state["step"])
    if state["step"] == 0 and state["before"]:
        journal.write(step=0, **_named("validation", state["before"]))
    run = _Run(task, config, context, accelerator, module, optimizer, journal, state)
    run.go(name)
    best = state["best"]
    if task.best_by is not None and best is not None and best["step"] != state["step"]:
        _restore(task.module, context.directory / _BEST)
    (context.directory / _BEST).unlink(missing_ok=True)
    remove_checkpoint(context.directory)
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

    task: TrainingTask[Any]
    config: LoopConfig
    context: StageContext
    accelerator: Accelerator
    module: nn.Module
    optimizer: Any
    journal: Journal
    state: dict[str, Any]

    def go(self, name: str) -> None:
        config, state = self.config, self.state
        first = state["step"]
        workers = self.accelerator.num_processes
        numbers = (
            (step * config.accumulate + micro) * workers + self.accelerator.process_index
            for step in range(first, config.steps)
            for micro in range(config.accumulate)
        )
        stream = prefetch(self.task.make_batch, numbers)
        started = saved = time.monotonic()
        self.module.train()
        bar = self.context.progress.bar(
            total=config.steps, description=name, unit="step", initial=first
        )
        with _closing(stream), bar:
            for step in range(first, config.steps):
                terms = self._step(step, stream)
                state["step"] = step + 1
                self._count(terms)
                if state["step"] % config.log_every == 0 or state["step"] == config.steps:
                    elapsed = time.monotonic() - started
                    wait = getattr(stream, "wait_seconds", 0.0) / max(elapsed, 1e-9)
                    rate = (state["step"] - first) * config.batch_size * workers / elapsed
                    self._log(step, rate=rate, wait=wait)
                if self._validates(state["step"]):
                    self._validate()
                bar.update(1, loss=terms["loss"])
                if time.monotonic() - saved > config.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()

    def _step(self, step: int, stream: Iterator[Any]) -> dict[str, float]:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        totals: dict[str, float] = {}
        for micro in range(config.accumulate):
            torch.manual_seed(self.context.seed * 1_000_003 + step * config.accumulate + micro)
            batch = next(stream)
            with self.accelerator.accumulate(self.module):
                terms: dict[str, Tensor] = self.module(batch)
                self.accelerator.backward(terms["loss"])
                if self.accelerator.sync_gradients:
                    trained = [p for p in self.module.parameters() if p.requires_grad]
                    self.accelerator.clip_grad_norm_(trained, config.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for key, value in terms.items():
                totals[key] = totals.get(key, 0.0) + float(value.detach()) / config.accumulate
        if not math.isfinite(totals["loss"]):
            raise FloatingPointError(
                f"loss is {totals['loss']} at step {step}; try a lower learning rate, such as "
                f"--set {self.context.directory.name}.learning_rate={config.learning_rate / 10:g}"
            )
        return totals

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

    def _validate(self) -> None:
        figures = _validated(self.task, self.accelerator)
        self.module.train()
        step, best = self.state["step"], self.state["best"]
        self.journal.write(step=step, **_named("validation", figures))
        key = self.task.best_by
        if best is None or key is None or figures[key] >= best["figures"][key]:
            self.state["best"] = {"step": step, "figures": figures}
            if key is not None and self.accelerator.is_main_process:
                _keep(self.task.module, self.context.directory / _BEST)

    def _save(self) -> None:
        save_checkpoint(
            self.accelerator,
            self.context.directory,
            fingerprint=self.context.fingerprint,
            state=self.state,
        )


def _optimizer(module: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


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


def _keep(module: nn.Module, path: Path) -> None:
    partial = path.with_suffix(".tmp")
    torch.save(module.state_dict(), partial)
    partial.replace(path)


def _restore(module: nn.Module, path: Path) -> None:
    module.load_state_dict(torch.load(path, weights_only=True))


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
