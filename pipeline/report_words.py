"""Figures and sentences of a report, as a person reads them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.report_records import EvaluationContext, Row, RunRecords, last_student, named_row
from pipeline.spread import Spread

__all__ = [
    "ABSENT",
    "Column",
    "about_the_data",
    "byte_text",
    "columns",
    "headline",
    "number",
    "stage_title",
    "summary_table",
    "table_cells",
]

ABSENT = "–"
"""Stands for a figure that was not measured."""

_STAGE_TITLES = {
    "teacher": "Teacher",
    "precompute": "Precompute",
    "baseline": "Baseline: labels only",
    "encoder": "Encoder distillation",
    "memory": "Memory distillation",
    "finetune": "Finetuning on labels",
    "evaluate": "Evaluation",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table of models.

    Attributes:
        title: its head.
        meaning: what the figure is.
        figure: row → figure in the column's unit; its mean where there are several seeds.
        spread: row → that figure over the seeds; None for what no seed changes.
        digits: decimals; None: as few as its smallest figure needs.
        quality: higher is better, and differences between students are not timing noise.
    """

    title: str
    meaning: str
    figure: Callable[[Row], float | None]
    digits: int | None
    quality: bool = False
    spread: Callable[[Row], Spread | None] | None = None


def columns(context: EvaluationContext) -> tuple[Column, ...]:
    """The columns of the table of models."""
    tolerance = context.nsd_tolerance_mm
    nsd = (
        "NSD" if tolerance is None else f"NSD @\N{NO-BREAK SPACE}{tolerance:g}\N{NO-BREAK SPACE}mm"
    )
    stored = context.cache_bytes_per_slice
    kilobytes = None if stored is None else stored / 1000
    return (
        Column(
            title="DSC",
            meaning="mean Dice of prompted slices",
            figure=lambda row: row.mean("dsc"),
            digits=3,
            quality=True,
            spread=lambda row: row.spread("dsc"),
        ),
        Column(
            title="DSC 3D",
            meaning="mean Dice of volumes, propagated from one prompted slice",
            figure=lambda row: row.mean("dsc_3d"),
            digits=3,
            quality=True,
            spread=lambda row: row.spread("dsc_3d"),
        ),
        Column(
            title=nsd,
            meaning="mean normalised surface Dice of prompted slices",
            figure=lambda row: row.mean("nsd"),
            digits=3,
            quality=True,
            spread=lambda row: row.spread("nsd"),
        ),
        Column(
            title="Retention %",
            meaning="DSC over the teacher's",
            figure=lambda row: _scaled(row.mean("retention"), 100),
            digits=1,
            quality=True,
            spread=lambda row: row.spread("retention", scale=100),
        ),
        Column(
            title="Retention 3D %",
            meaning="DSC 3D over the teacher's",
            figure=lambda row: _scaled(row.mean("retention_3d"), 100),
            digits=1,
            quality=True,
            spread=lambda row: row.spread("retention_3d", scale=100),
        ),
        Column(
            title="Params M",
            meaning="parameters, millions",
            figure=lambda row: _scaled(row.params, 1e-6),
            digits=2,
        ),
        Column(
            title="GFLOP",
            meaning="10⁹ operations for a prompted slice, 2 per multiply-accumulate",
            figure=lambda row: row.gflop,
            digits=None,
        ),
        Column(
            title="GFLOP tracked",
            meaning="10⁹ operations for a slice found through the memory",
            figure=lambda row: row.gflop_tracked,
            digits=None,
        ),
        Column(
            title="GMAC",
            meaning="10⁹ multiply-accumulates for a prompted slice",
            figure=lambda row: row.gmac,
            digits=None,
        ),
        Column(
            title="ms / slice",
            meaning="milliseconds for a prompted slice on this machine",
            figure=lambda row: row.ms_per_slice,
            digits=None,
        ),
        Column(
            title="Cache kB / slice",
            meaning="what this run's cache holds of a slice, 1 kB = 1000 bytes",
            figure=lambda row: None if row.family == "teacher" else kilobytes,
            digits=0,
        ),
    )


def table_cells(column: Column, rows: Sequence[Row]) -> tuple[tuple[str, bool], ...]:
    """(text, whether it is the best student's) for each row.

    Only quality is emphasised, only among students with all labels, and only where they differ:
    they share one network, so their cost differs by timing noise alone.
    """
    figures = [column.figure(row) for row in rows]
    digits = _digits(figures) if column.digits is None else column.digits
    texts = [number(figure, digits) for figure in figures]
    rivals = [
        text
        for row, figure, text in zip(rows, figures, texts, strict=True)
        if figure is not None and _is_rival(row)
    ]
    best = max(rivals, key=float) if column.quality and len(set(rivals)) > 1 else None
    return tuple(
        (_with_deviation(column, row, text, digits), text == best and _is_rival(row))
        for row, text in zip(rows, texts, strict=True)
    )


def _with_deviation(column: Column, row: Row, text: str, digits: int) -> str:
    spread = None if column.spread is None else column.spread(row)
    return text if spread is None else spread.text(digits)


def number(value: float | None, digits: int) -> str:
    """``value`` with ``digits`` decimals, or a dash."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def byte_text(count: float | None) -> str:
    """Bytes in the largest decimal unit that they fill."""
    if count is None:
        return ABSENT
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def stage_title(stage: str) -> str:
    """The name of a stage for people."""
    family, _, suffix = stage.partition("_")
    title = _STAGE_TITLES.get(family, stage)
    return f"{title}, {suffix.replace('p', '.')} % of the labels" if suffix else title


def about_the_data(context: EvaluationContext) -> tuple[str, ...]:
    """What the data are and what the figures can therefore say."""
    if context.data_source == "mni152":
        sentences = [
            "All images are slabs of one volume, the MNI152 template: an average brain, whose "
            "structures were labelled by rules and not by experts.",
            "The figures show that every step of the pipeline works. They say nothing about "
            "accuracy on patients.",
        ]
    elif context.data_source == "phantom":
        sentences = [
            "All images were generated by a program; they show no patient.",
            "The figures show that every step of the pipeline works. They say nothing about "
            "accuracy on medical images.",
        ]
    else:
        source = "the given data" if context.data_source is None else context.data_source
        sentences = [f"The images come from {source}."]
        if not context.shared_split:
            sentences.append(
                "Training and test cases are of different patients, as far as files and headers "
                "tell them apart. Another scanner or population can give other figures."
            )
    if context.shared_split:
        sentences.append(
            "There were too few patients for a test split: the test cases were also used in "
            "training. The figures say nothing about new patients."
        )
    return tuple(sentences)


def headline(records: RunRecords) -> str:
    """The result in one sentence."""
    teacher, student = named_row(records.rows, "teacher"), last_student(records.rows)
    if student is None:
        return "No student was evaluated."
    parts = []
    if (retention := student.mean("retention")) is not None:
        kept = f"keeps {retention * 100:.0f} % of the teacher's DSC"
        if (retention_3d := student.mean("retention_3d")) is not None:
            kept += f" ({retention_3d * 100:.0f} % in 3D)"
        parts.append(kept)
    if teacher is not None and teacher.gflop and student.gflop:
        parts.append(f"needs {_times(teacher.gflop / student.gflop)} GFLOP per slice")
    return f"The student {' and '.join(parts)}." if parts else "The student was evaluated alone."


def summary_table(rows: Sequence[Row]) -> str:
    """A short table for the terminal: model, DSC, DSC 3D, NSD, retention, GFLOP, ms.

    Quality is mean ± standard deviation where there are several seeds.
    """
    digits = {name: _digits([getattr(row, name) for row in rows]) for name in _MEASURED}
    lines: list[tuple[str, ...]] = [
        ("model", "DSC", "DSC 3D", "NSD", "retention", "GFLOP", "ms/slice")
    ]
    for row in rows:
        retention = row.spread("retention", scale=100)
        kept = ABSENT if retention is None else f"{retention.text(1)} %"
        quality = (_text(row.spread(name)) for name in ("dsc", "dsc_3d", "nsd"))
        cost = (number(getattr(row, name), digits[name]) for name in _MEASURED)
        lines.append((row.model, *quality, kept, *cost))
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join("  ".join(_justified(line, widths)) for line in lines)


_MEASURED = ("gflop", "ms_per_slice")


def _text(spread: Spread | None) -> str:
    return ABSENT if spread is None else spread.text(3)


def _justified(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for place, (text, width) in enumerate(zip(line, widths, strict=True)):
        yield text.ljust(width) if place == 0 else text.rjust(width)


def _is_rival(row: Row) -> bool:
    return row.distilled and "_" not in row.model


def _digits(figures: Sequence[float | None]) -> int:
    """Decimals that leave two figures of the smallest value, 1 to 4."""
    smallest = min((abs(figure) for figure in figures if figure), default=1.0)
    return next((digits for digits in (1, 2, 3) if smallest >= 10.0 ** (1 - digits)), 4)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _times(ratio: float) -> str:
    return f"{ratio:.1f} × fewer" if ratio >= 1 else f"{1 / ratio:.1f} × more"
