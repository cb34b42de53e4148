"""What a run has to show: each check with its figure and what was wanted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report_records import (
    Repetition,
    Row,
    RunRecords,
    StageRecord,
    last_student,
    named_row,
)

__all__ = ["Check", "run_checks"]

_FEWER_GFLOP = 3.0
_RETENTION = 0.9


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        name: what is looked at.
        value: the figure; None where it could not be measured.
        wanted: the bound, as text.
        ok: whether the figure keeps the bound; None where it could not be measured.
        detail: the figures behind it, as text.
    """

    name: str
    value: float | None
    wanted: str
    ok: bool | None
    detail: str


def run_checks(records: RunRecords) -> tuple[Check, ...]:
    """All checks of a run, passed or not."""
    rows = records.rows
    teacher, student = named_row(rows, "teacher"), last_student(rows)
    checks = [
        _cheaper(teacher, student),
        _retained(teacher, student),
        _above(named_row(rows, "baseline"), student, labels="all labels"),
    ]
    checks += _above_with_fewer_labels(rows)
    checks += [check for stage in records.stages for check in _validation(stage)]
    checks += _of_these_weights(records.stages)
    checks += _repeated(records.repetitions)
    return tuple(checks)


def _cheaper(teacher: Row | None, student: Row | None) -> Check:
    name, wanted = "GFLOP per slice, teacher over student", f"at least {_FEWER_GFLOP:g}"
    theirs, ours = _figure(teacher, "gflop"), _figure(student, "gflop")
    if theirs is None or not ours:
        return _unmeasured(name, wanted, {"teacher": theirs, "student": ours})
    ratio = theirs / ours
    return Check(
        name=name,
        value=ratio,
        wanted=wanted,
        ok=ratio >= _FEWER_GFLOP,
        detail=f"{ratio:.1f} × fewer: {theirs:.3g} → {ours:.3g}",
    )


def _retained(teacher: Row | None, student: Row | None) -> Check:
    name, wanted = "DSC kept from the teacher", f"at least {_RETENTION * 100:g} %"
    kept = _figure(student, "retention")
    if kept is None:
        return _unmeasured(name, wanted, {"student": kept})
    ours, theirs = _figure(student, "dsc"), _figure(teacher, "dsc")
    return Check(
        name=name,
        value=kept,
        wanted=wanted,
        ok=kept >= _RETENTION,
        detail=f"{kept * 100:.1f} %: {_text(ours)} of {_text(theirs)}",
    )


def _above(baseline: Row | None, student: Row | None, *, labels: str) -> Check:
    name, wanted = f"Student over baseline, {labels}", "DSC above the baseline's"
    ours, theirs = _figure(student, "dsc"), _figure(baseline, "dsc")
    if ours is None or theirs is None:
        return _unmeasured(name, wanted, {"student": ours, "baseline": theirs})
    return Check(
        name=name,
        value=ours - theirs,
        wanted=wanted,
        ok=ours > theirs,
        detail=f"{ours - theirs:+.3f}: {ours:.3f} against {theirs:.3f}",
    )


def _above_with_fewer_labels(rows: Sequence[Row]) -> Iterator[Check]:
    fewer = [row for row in rows if row.family in ("baseline", "finetune") and "_" in row.model]
    for suffix in dict.fromkeys(row.model.partition("_")[2] for row in fewer):
        baseline = named_row(rows, f"baseline_{suffix}")
        student = named_row(rows, f"finetune_{suffix}")
        fraction = _figure(student or baseline, "label_fraction")
        share = suffix.replace("p", ".") if fraction is None else f"{fraction * 100:g}"
        yield _above(baseline, student, labels=f"{share} % of the labels")


def _validation(stage: StageRecord) -> Iterator[Check]:
    """A stage must not hand on worse weights than it was given."""
    if stage.manifest is None:
        return
    before = _validation_dsc(stage.manifest.summary, "validation_before")
    after = _validation_dsc(stage.manifest.summary, "validation")
    if before is None or after is None:
        return
    yield Check(
        name=f"Validation DSC after {stage.name}",
        value=after - before,
        wanted="not below the one before it",
        ok=after >= before,
        detail=f"{after - before:+.3f}: {before:.3f} → {after:.3f}",
    )


def _validation_dsc(summary: dict[str, Any], key: str) -> float | None:
    figures = summary.get(key)
    value = figures.get("dsc") if isinstance(figures, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _of_these_weights(stages: Sequence[StageRecord]) -> Iterator[Check]:
    """The evaluation must have read the weights that lie in the folder now."""
    manifests = {stage.name: stage.manifest for stage in stages if stage.manifest is not None}
    evaluation = manifests.get("evaluate")
    name, wanted = "Evaluated weights", "those in this folder"
    if evaluation is None:
        yield _unmeasured(name, wanted, {"manifest of evaluate": None})
        return
    others = [
        stage
        for stage, identity in evaluation.upstream.items()
        if stage in manifests and manifests[stage].identity != identity
    ]
    yield Check(
        name=name,
        value=float(len(others)),
        wanted=wanted,
        ok=not others,
        detail=f"changed since: {', '.join(others)}" if others else "those in this folder",
    )


def _repeated(repetitions: Sequence[Repetition]) -> Iterator[Check]:
    """Repetitions of another recipe or cache must not pass for this run's."""
    if not repetitions:
        return
    counted = [str(each.seed) for each in repetitions if not each.problem]
    others = [f"seed {each.seed}: {each.problem}" for each in repetitions if each.problem]
    detail = [f"means over the run's own seed and {', '.join(counted)}"] if counted else []
    detail += [f"not counted: {'; '.join(others)}"] if others else []
    yield Check(
        name="Repetitions with other seeds",
        value=float(len(counted)),
        wanted="settings and cache of this run",
        ok=None if others else True,
        detail="; ".join(detail),
    )


def _unmeasured(name: str, wanted: str, figures: dict[str, float | None]) -> Check:
    lacking = ", ".join(what for what, value in figures.items() if value is None)
    return Check(name=name, value=None, wanted=wanted, ok=None, detail=f"no figure of: {lacking}")


def _figure(row: Row | None, name: str) -> float | None:
    """A figure, its mean where there are several seeds."""
    return None if row is None else row.mean(name)


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
