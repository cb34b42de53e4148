"""A finished training of the small teacher: its manifest, its journal, and how long it took.

The journal has no clock. Each line has the steps a second since the command was called, so the
manifest's times (of its last call) tell how many steps that call did, and the rate before it how
long the earlier one took.
"""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from benchmarks.measured_model import shown
from pipeline.artifacts import Manifest, read_manifest
from pipeline.config import load_config

__all__ = ["CardError", "TrainedTeacher", "TrainingTime", "read_run", "training_time"]

PREFIX = "teacher_training."
"""Begins the training's settings in a manifest."""

_RATE = "samples_per_second"
_LINES_APART = 30
"""Two lines that seem so many times as long apart as usual hide a call that was stopped."""


class CardError(click.ClickException):
    """What a card is made from does not belong together, or is not there."""


@dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """How long training took.

    Attributes:
        last_seconds: of the command's last call.
        last_steps: that it did; about, where an earlier call had been stopped.
        total_seconds: of all calls, about; None where there are more than two.
    """

    last_seconds: float
    last_steps: int
    total_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class TrainedTeacher:
    """A finished training run.

    Attributes:
        manifest: of its artifact.
        journal: the lines of ``metrics.jsonl``.
        threads: that it was given; None: all.
        device: that it was given.
        time: how long it took.
    """

    manifest: Manifest
    journal: Sequence[Mapping[str, float]]
    threads: int | None
    device: str
    time: TrainingTime

    def setting(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        """A setting of the training by its short name."""
        return self.manifest.settings[f"{PREFIX}{name}"]


def read_run(folder: Path) -> TrainedTeacher:
    """Read a training run.

    Args:
        folder: the artifact, such as ``runs/demo_teacher/teacher``.

    Raises:
        CardError: there is no finished run.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise CardError(
            f"{shown(folder)} holds no finished training; run: efficient-medsam2 train teacher -c "
            "configs/demo_teacher.yaml, or name another with --run"
        )
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    journal = [json.loads(line) for line in lines]
    began, ended = map(datetime.fromisoformat, (manifest.started_utc, manifest.finished_utc))
    settings = load_config(folder.parent / "config.yaml").run
    return TrainedTeacher(
        manifest=manifest,
        journal=journal,
        threads=settings.threads,
        device=settings.device,
        time=training_time(
            journal,
            steps=manifest.settings[f"{PREFIX}steps"],
            batch_size=manifest.settings[f"{PREFIX}batch_size"],
            last_seconds=(ended - began).total_seconds(),
        ),
    )


def training_time(
    journal: Sequence[Mapping[str, float]], *, steps: int, batch_size: int, last_seconds: float
) -> TrainingTime:
    """How long training took in all.

    Args:
        journal: the lines of ``metrics.jsonl``.
        steps: of the whole training.
        batch_size: samples of a step.
        last_seconds: of the command's last call.
    """
    rates = [(line["step"], line[_RATE] / batch_size) for line in journal if line.get(_RATE)]
    last_steps = round(rates[-1][1] * last_seconds) if rates else steps
    if last_steps > 0.97 * steps:
        return TrainingTime(last_seconds=last_seconds, last_steps=steps, total_seconds=last_seconds)
    # Rates are rounded, and so is the step at which the last call began: keep away from it.
    first = steps - last_steps
    seconds = [step / rate for step, rate in rates if step < 0.97 * first]
    gaps = [after - before for before, after in itertools.pairwise(seconds)]
    total = None
    if gaps and min(gaps) >= -1 and max(gaps) < _LINES_APART * statistics.median(gaps):
        total = seconds[-1] / (0.97 * first) * first + last_seconds
    return TrainingTime(last_seconds=last_seconds, last_steps=last_steps, total_seconds=total)
