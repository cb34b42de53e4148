"""The results of an ablation as a table: plain text for a terminal, Markdown for a page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.ablation_results import METRICS, AblationResults, CombinationResults
from pipeline.spread import spread_of

__all__ = ["ABSENT", "TableRow", "markdown_section", "table_rows", "table_titles"]

ABSENT = "–"
"""Stands for a figure that was not measured."""

_ALL = "any"
_TITLES = ("DSC", "DSC 3D", "NSD", "retention %", "retention 3D %")
_SCALES = (1.0, 1.0, 1.0, 100.0, 100.0)
_DIGITS = (3, 3, 3, 1, 1)
_PLAIN_FACTS = ("data_source", "split", "slices", "tracks", "device", "cpu", "threads")


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of the table.

    Attributes:
        model: the model.
        values: of each varied key, ``any`` where the key makes no difference to the model.
        figures: one text for each of :data:`~pipeline.ablation_results.METRICS`.
        seeds: how many seeds stand behind them.
    """

    model: str
    values: tuple[str, ...]
    figures: tuple[str, ...]
    seeds: int

    @property
    def cells(self) -> tuple[str, ...]:
        """All of it, as :func:`table_titles` names it."""
        return (self.model, *self.values, *self.figures, str(self.seeds))


def table_titles(results: AblationResults) -> tuple[str, ...]:
    """Heads of the columns."""
    return ("model", *(factor.key for factor in results.factors), *_TITLES, "seeds")


def table_rows(results: AblationResults) -> tuple[TableRow, ...]:
    """One row for each model and combination; one alone where a model is the same in all."""
    measured = tuple(results.measured())
    models = tuple(dict.fromkeys(model for each in measured for model in each.models()))
    return tuple(row for model in models for row in _rows_of(results, measured, model))


def markdown_section(results: AblationResults, *, plot: str | None, level: int = 2) -> str:
    """A section of a page: title, command, table, plot and circumstances; every figure is read.

    Args:
        results: what was found.
        plot: where the picture lies, as a link; None leaves it out.
        level: of the heading.
    """
    lines = [f"{'#' * level} {results.title}", "", "```sh", results.command, "```", ""]
    if not results.complete:
        lines += ["**Not complete:** some runs are missing or ended in an error.", ""]
    lines += list(_markdown_table(table_titles(results), table_rows(results)))
    lines += ["", _circumstances(results)]
    for failure in results.failures:
        where = ", ".join(f"{key}={label}" for key, label in failure.values.items())
        lines += ["", f"Failed: {where or 'the config'}, seed {failure.seed}: {failure.error}"]
    if plot is not None:
        lines += ["", f"![{results.title}]({plot})"]
    return "\n".join(lines) + "\n"


def _rows_of(
    results: AblationResults, measured: Sequence[CombinationResults], model: str
) -> Iterator[TableRow]:
    having = [each for each in measured if model in each.models()]
    figures = [tuple(each.figures(model, metric) for metric in METRICS) for each in having]
    keys = [factor.key for factor in results.factors]
    if len(having) == len(results.combinations) > 1 and len(set(figures)) == 1:
        yield _row(model, (_ALL,) * len(keys), figures[0])
        return
    for each, values in zip(having, figures, strict=True):
        yield _row(model, tuple(each.values[key] for key in keys), values)


def _row(model: str, values: tuple[str, ...], figures: Sequence[tuple[float, ...]]) -> TableRow:
    texts = []
    for each, scale, digits in zip(figures, _SCALES, _DIGITS, strict=True):
        spread = spread_of(each, scale=scale)
        texts.append(ABSENT if spread is None else spread.text(digits))
    return TableRow(
        model=model,
        values=values,
        figures=tuple(texts),
        seeds=max((len(each) for each in figures), default=0),
    )


def _markdown_table(titles: Sequence[str], rows: Sequence[TableRow]) -> Iterator[str]:
    first = len(titles) - len(_TITLES) - 1
    yield _line(titles)
    yield _line(["---"] * first + ["---:"] * (len(titles) - first))
    for row in rows:
        yield _line(row.cells)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _circumstances(results: AblationResults) -> str:
    seeds = ", ".join(str(seed) for seed in results.seeds)
    spread = ", mean ± standard deviation" if len(results.seeds) > 1 else ""
    sentences = [f"Seeds {seeds}{spread}."]
    facts = [
        f"{name.replace('_', ' ')} {results.context[name]}"
        for name in _PLAIN_FACTS
        if results.context.get(name) is not None
    ]
    if facts:
        sentences.append(f"Measured on: {', '.join(facts)}.")
    sentences.append(
        f"{len(results.stage_seconds)} stage runs for {results.stage_uses} uses, "
        f"{results.wall_s / 60:.1f} minutes."
    )
    libraries = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    sentences.append(f"Made with {libraries}.")
    return " ".join(sentences)
