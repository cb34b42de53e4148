"""What ``metrics.jsonl`` of a teacher's training says: its curves, and how long it took.

The journal has no clock. Each line has the steps a second since the command was called, so the
manifest's times (of its last call) tell how many steps that call did, and the rate before it how
long the earlier one took.
"""

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TrainingTime", "draw_curves", "read_journal", "training_time"]

_RATE = "samples_per_second"
_PAUSE = 30
"""Ten steps that seem to take so many times as long as usual hide a call that was stopped."""

Journal = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """How long training took.

    Attributes:
        last_seconds: of the command's last call.
        last_steps: that it did, about where the training had been stopped and was continued.
        total_seconds: of all calls; None where there are more than two.
    """

    last_seconds: float
    last_steps: int
    total_seconds: float | None


def read_journal(path: Path) -> list[dict[str, float]]:
    """All lines of ``metrics.jsonl``.

    Raises:
        ValueError: a line is no JSON.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_time(
    journal: Journal, *, steps: int, batch_size: int, last_seconds: float
) -> TrainingTime:
    """How long training took in all.

    Args:
        journal: the lines of ``metrics.jsonl``.
        steps: of the whole training.
        batch_size: samples of a step.
        last_seconds: from the manifest: the last call.
    """
    rates = [(line["step"], line[_RATE] / batch_size) for line in journal if line.get(_RATE)]
    last_steps = min(round(rates[-1][1] * last_seconds), steps) if rates else steps
    if last_steps > 0.97 * steps:
        return TrainingTime(last_seconds=last_seconds, last_steps=steps, total_seconds=last_seconds)
    # Rates are rounded, and so is where the last call began: before it by a margin.
    first = steps - last_steps
    earlier = [(step, rate) for step, rate in rates if step < 0.97 * first]
    total = None
    if len(earlier) > 2:
        seconds = [step / rate for step, rate in earlier]
        gaps = [after - before for before, after in zip(seconds, seconds[1:], strict=False)]
        usual = statistics.median(gaps)
        if max(gaps) < _PAUSE * usual:
            total = first / earlier[-1][1] + last_seconds
    return TrainingTime(last_seconds=last_seconds, last_steps=last_steps, total_seconds=total)


def draw_curves(journal: Journal, *, best_step: int) -> bytes:
    """A PNG on white: the loss, and validation DSC in 2D and 3D, with the step that was chosen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 2.8), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    loss = [(line["step"], line["loss"]) for line in journal if "loss" in line]
    left.plot(*zip(*loss, strict=True), color="#1f6fb5", linewidth=0.6, alpha=0.45)
    left.plot(*zip(*_smoothed(loss), strict=True), color="#1f6fb5", linewidth=1.6)
    left.set_ylabel("training loss")
    for key, name, colour in (
        ("validation_dsc", "boxes on slices", "#b5670b"),
        ("validation_dsc_3d", "tracks (3D)", "#3f8f4f"),
    ):
        points = [(line["step"], line[key]) for line in journal if key in line]
        if points:
            right.plot(
                *zip(*points, strict=True), color=colour, marker="o", markersize=3, label=name
            )
    right.axvline(best_step, color="#59616c", linestyle="--", linewidth=1, label="chosen")
    right.set_ylabel("validation DSC")
    right.set_ylim(0, 1)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each value's mean with its neighbours, ten on either side."""
    values = [value for _, value in points]
    return [
        (step, statistics.fmean(values[max(place - 10, 0) : place + 11]))
        for place, (step, _) in enumerate(points)
    ]
