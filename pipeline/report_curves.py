"""Training curves: the loss, and the validation DSC on a second axis."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report_overlays import Picture

__all__ = ["Curve", "curve_of", "draw_curve"]

_LOG_FROM = 5.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Figures of one training run, in the order of steps.

    Attributes:
        loss: (step, loss).
        validation: (step, DSC on the validation split).
    """

    loss: tuple[tuple[float, float], ...]
    validation: tuple[tuple[float, float], ...]

    @property
    def logarithmic(self) -> bool:
        """Whether the loss spans so much that only a logarithmic scale shows its end."""
        values = [loss for _, loss in self.loss]
        return bool(values) and min(values) > 0 and max(values) / min(values) >= _LOG_FROM


def curve_of(journal: Sequence[Mapping[str, float]]) -> Curve | None:
    """The curve of a stage's ``metrics.jsonl``; None where it holds no loss."""
    loss = tuple((line["step"], line["loss"]) for line in journal if "loss" in line)
    validation = tuple(
        (line["step"], line["validation_dsc"]) for line in journal if "validation_dsc" in line
    )
    return Curve(loss=loss, validation=validation) if loss else None


def draw_curve(curve: Curve, *, dark: bool) -> Picture:
    """Draw for a light or a dark page, with a transparent background."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    ink, line, points = ("#aab2bd", "#7db7f0", "#f2b35e") if dark else _LIGHT_INK
    figure = Figure(figsize=(4.2, 2.5), dpi=160, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.plot(*zip(*curve.loss, strict=True), color=line, linewidth=1.6, marker=_dot(curve.loss))
    axes.set_xlabel("step", color=ink)
    axes.set_ylabel("loss, log scale" if curve.logarithmic else "loss", color=line)
    if curve.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    every = [axes]
    if curve.validation:
        second = axes.twinx()
        second.plot(
            *zip(*curve.validation, strict=True),
            color=points,
            linewidth=1.2,
            linestyle="--",
            marker="o",
            markersize=3.5,
        )
        second.set_ylabel("validation DSC", color=points)
        second.set_ylim(*_dsc_range([dsc for _, dsc in curve.validation]))
        second.yaxis.set_major_locator(MaxNLocator(nbins=5))
        every.append(second)
    for each in every:
        each.patch.set_alpha(0)
        each.tick_params(colors=ink, labelsize=8, which="both", length=3)
        for side, spine in each.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(ink)
    axes.grid(axis="y", color=ink, alpha=0.25, linewidth=0.6)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    width, height = canvas.get_width_height()
    return Picture(png=buffer.getvalue(), width=width, height=height)


_LIGHT_INK = ("#59616c", "#1f6fb5", "#b5670b")


def _dsc_range(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis: at least 0.1 apart, so that noise does not look like progress."""
    middle = (min(values) + max(values)) / 2
    half = max((max(values) - min(values)) * 0.55, 0.05)
    return max(middle - half, -0.02), min(middle + half, 1.02)


def _dot(points: Sequence[tuple[float, float]]) -> str:
    """A line through one point is invisible."""
    return "o" if len(points) == 1 else ""
