"""The curves of a small teacher's training as one small picture."""

import io
import statistics
from collections.abc import Mapping, Sequence

__all__ = ["draw_curves"]

_NEIGHBOURS = 10
_VALIDATION = (
    ("validation_dsc", "boxes on slices", "#b5670b"),
    ("validation_dsc_3d", "tracks (3D)", "#3f8f4f"),
)


def draw_curves(journal: Sequence[Mapping[str, float]], *, best_step: int) -> bytes:
    """A PNG on white: the loss, and validation DSC in 2D and 3D, with the step that was chosen.

    Args:
        journal: the lines of ``metrics.jsonl``.
        best_step: whose weights were handed on.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 2.8), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    loss = [(line["step"], line["loss"]) for line in journal if "loss" in line]
    left.plot(*zip(*loss, strict=True), color="#1f6fb5", linewidth=0.6, alpha=0.4)
    left.plot(*zip(*_smoothed(loss), strict=True), color="#1f6fb5", linewidth=1.6)
    left.set_ylabel("training loss")
    for key, name, colour in _VALIDATION:
        points = [(line["step"], line[key]) for line in journal if key in line]
        if points:
            steps, values = zip(*points, strict=True)
            right.plot(steps, values, color=colour, marker="o", markersize=3, label=name)
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
    """Each value's mean with its neighbours on either side."""
    values = [value for _, value in points]
    return [
        (step, statistics.fmean(values[max(place - _NEIGHBOURS, 0) : place + _NEIGHBOURS + 1]))
        for place, (step, _) in enumerate(points)
    ]
