"""The results of an ablation as grouped bars: one row of panels for each varied key."""

import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan

from pipeline.ablation_results import (
    AblationResults,
    CombinationResults,
    ModelFigures,
)
from pipeline.spread import Spread, spread_of

__all__ = ["Panel", "draw_results", "panels"]

_METRICS = {"dsc": "DSC", "dsc_3d": "DSC 3D"}
_COLOURS = ("#1f6fb5", "#b5670b", "#3f8f4f", "#8a4fae", "#b23a48", "#5b6b73", "#0f8b8d", "#946b2d")
_INK = "#59616c"
_LONGEST_LABEL = 28


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Bars of one metric.

    Attributes:
        title: what is varied.
        metric: ``DSC`` or ``DSC 3D``.
        groups: labels below the groups of bars.
        series: model → a figure for each group, None where there is none.
        teacher: the teacher's figure, drawn as a line; None where it has none.
    """

    title: str
    metric: str
    groups: tuple[str, ...]
    series: dict[str, tuple[Spread | None, ...]]
    teacher: float | None


def panels(results: AblationResults) -> tuple[tuple[Panel, ...], ...]:
    """A row of panels for each key: its values, averaged over those of the other keys.

    Where nothing is varied: the models by their share of the labels, or side by side.
    """
    measured = tuple(results.measured())
    if not measured:
        return ()
    if results.factors:
        return tuple(
            tuple(_by_value(results, measured, factor.key, metric) for metric in _METRICS)
            for factor in results.factors
        )
    return (tuple(_by_model(measured[0], metric) for metric in _METRICS),)


def draw_results(results: AblationResults) -> bytes | None:
    """A PNG on white; None where nothing was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = panels(results)
    if not rows:
        return None
    bars = max(len(panel.groups) * max(len(panel.series), 1) for row in rows for panel in row)
    width = min(max(8.0, 1.2 + 0.9 * bars), 24.0)
    figure = Figure(figsize=(width, 3.4 * len(rows)), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for places, row in zip(grid, rows, strict=True):
        for axes, panel in zip(places, row, strict=True):
            _draw(axes, panel)
    handles, labels = grid[0][0].get_legend_handles_labels()
    if labels:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=len(labels),
            frameon=False,
            fontsize=9,
        )
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def _by_value(
    results: AblationResults, measured: Sequence[CombinationResults], key: str, metric: str
) -> Panel:
    factor = next(factor for factor in results.factors if factor.key == key)
    by_family = all(_one_of_a_family(each) for each in measured)
    named = [(each, _named(each, by_family=by_family)) for each in measured]
    teacher = _teacher(measured, metric)
    names = dict.fromkeys(name for _, models in named for name in models)
    if teacher is not None:
        del names["teacher"]
    series = {}
    for name in names:
        figures = []
        for value in factor.values:
            chosen = [
                (each, models[name])
                for each, models in named
                if each.values[key] == value and name in models
            ]
            figures.append(_over_combinations(chosen, metric))
        series[name] = tuple(figures)
    return Panel(
        title=key,
        metric=_METRICS[metric],
        groups=tuple(factor.values),
        series=series,
        teacher=teacher,
    )


def _by_model(only: CombinationResults, metric: str) -> Panel:
    shares = _shares(only)
    teacher = _teacher((only,), metric)
    if len(shares) > 1:
        series = {}
        for family in ("baseline", "finetune"):
            models = {row.label_fraction: row.model for row in _rows(only) if row.family == family}
            series[family] = tuple(
                spread_of(only.figures(models[share], metric)) if share in models else None
                for share in shares
            )
        return Panel(
            title="share of the labels",
            metric=_METRICS[metric],
            groups=tuple(f"{share * 100:g} %" for share in shares),
            series=series,
            teacher=teacher,
        )
    students = tuple(model for model in only.models() if model != "teacher")
    figures = tuple(spread_of(only.figures(model, metric)) for model in students)
    return Panel(
        title="models",
        metric=_METRICS[metric],
        groups=students,
        series={"student": figures},
        teacher=teacher,
    )


def _rows(combination: CombinationResults) -> Iterator[ModelFigures]:
    return (row for run in combination.runs for row in run.rows)


def _shares(combination: CombinationResults) -> tuple[float, ...]:
    """Label fractions of finetuned students and baselines, falling."""
    found = {
        row.label_fraction
        for row in _rows(combination)
        if row.family in ("baseline", "finetune") and row.label_fraction is not None
    }
    return tuple(sorted(found, reverse=True))


def _one_of_a_family(combination: CombinationResults) -> bool:
    families = [model.partition("_")[0] for model in combination.models()]
    return len(set(families)) == len(families)


def _named(combination: CombinationResults, *, by_family: bool) -> dict[str, str]:
    """Name of a bar → model."""
    return {
        (model.partition("_")[0] if by_family else model): model for model in combination.models()
    }


def _over_combinations(
    chosen: Sequence[tuple[CombinationResults, str]], metric: str
) -> Spread | None:
    """Mean over combinations for each seed, then the spread over seeds."""
    by_seed: dict[int, list[float]] = {}
    for combination, model in chosen:
        for run in combination.runs:
            for row in run.rows:
                figure = getattr(row, metric)
                if row.model == model and figure is not None:
                    by_seed.setdefault(run.seed, []).append(figure)
    most = max((len(figures) for figures in by_seed.values()), default=0)
    whole = [figures for figures in by_seed.values() if len(figures) == most]
    return spread_of([statistics.fmean(figures) for figures in whole])


def _teacher(measured: Sequence[CombinationResults], metric: str) -> float | None:
    """The teacher's figure where it is one and the same everywhere."""
    figures = {figure for each in measured for figure in each.figures("teacher", metric)}
    return figures.pop() if len(figures) == 1 else None


def _draw(axes, panel: Panel) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 (matplotlib)
    width = 0.8 / max(len(panel.series), 1)
    for place, (name, figures) in enumerate(panel.series.items()):
        shift = (place - (len(panel.series) - 1) / 2) * width
        known = [(group, figure) for group, figure in enumerate(figures) if figure is not None]
        bars = axes.bar(
            [group + shift for group, _ in known],
            [figure.mean for _, figure in known],
            width * 0.92,
            yerr=[nan if figure.deviation is None else figure.deviation for _, figure in known],
            color=_COLOURS[place % len(_COLOURS)],
            error_kw={"elinewidth": 1.0, "capsize": 2.5, "ecolor": "#222222"},
            label=name,
        )
        axes.bar_label(
            bars,
            fmt="%.3f",
            padding=2,
            fontsize=7,
            color=_INK,
            rotation=90,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},  # over the teacher's line
        )
    if panel.teacher is not None:
        axes.axhline(
            panel.teacher, color=_INK, linestyle="--", linewidth=1, label="teacher", zorder=0
        )
    axes.set_xticks(range(len(panel.groups)), [_short(group) for group in panel.groups])
    axes.set_xlim(-0.6, len(panel.groups) - 0.4)
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_ylabel(panel.metric, color=_INK)
    axes.set_xlabel(panel.title, color=_INK)
    axes.tick_params(colors=_INK, labelsize=8, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_INK)
    axes.grid(axis="y", color=_INK, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
