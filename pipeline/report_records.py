"""What a report is made from, as records. `pipeline.report_files` reads them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, TypeAdapter

from pipeline.artifacts import Manifest
from pipeline.spread import Spread, spread_of

__all__ = [
    "SEED_FIGURES",
    "Evaluation",
    "EvaluationContext",
    "Repetition",
    "Row",
    "RunRecords",
    "Sample",
    "StageRecord",
    "Structure",
    "TeacherIdentity",
    "finite",
    "last_student",
    "models_in_order",
    "named_row",
    "parse_rows",
]

_ORDER = ("teacher", "baseline", "encoder", "memory", "finetune")
SEED_FIGURES = ("dsc", "dsc_3d", "nsd", "retention", "retention_3d")
"""Figures of a row that are kept for each seed: ``dsc_seeds`` and so on."""

_NAMES = {
    "teacher": "Teacher",
    "baseline": "Baseline: labels only",
    "encoder": "Student after encoder distillation",
    "memory": "Student after memory distillation",
    "finetune": "Student after finetuning",
}


class Structure(BaseModel):
    """Figures of one model on one structure; None where nothing was measured."""

    model_config = ConfigDict(frozen=True, extra="allow")

    dsc: float | None = None
    nsd: float | None = None
    dsc_3d: float | None = None
    slices: int | None = None
    tracks: int | None = None


class Row(BaseModel):
    """Figures of one model; None where nothing was measured.

    Attributes:
        model: ``teacher``, ``baseline``, ``encoder``, ``memory``, ``finetune``; ``baseline_10``
            and the like for a share of the labels.
        title: its name for people.
        dsc: mean Dice of prompted slices, 0 to 1.
        dsc_3d: mean Dice of volumes segmented from one prompted slice.
        nsd: mean normalised surface Dice.
        retention: ``dsc`` over the teacher's.
        retention_3d: ``dsc_3d`` over the teacher's.
        params: number of parameters.
        gflop: 10^9 floating-point operations for a prompted slice (2 per multiplication).
        gflop_tracked: the same for a slice that is found through the memory.
        gmac: 10^9 multiply-accumulates for a prompted slice.
        ms_per_slice: milliseconds for a prompted slice.
        label_fraction: share of the labels that it was trained with.
        per_structure: structure → its figures.
        dsc_seeds: ``dsc`` by seed, the run's own first; likewise the other figures.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    model: str
    title: str = ""
    dsc: float | None = None
    dsc_3d: float | None = None
    nsd: float | None = None
    retention: float | None = None
    retention_3d: float | None = None
    params: int | None = None
    gflop: float | None = None
    gflop_tracked: float | None = None
    gmac: float | None = None
    ms_per_slice: float | None = None
    label_fraction: float | None = None
    per_structure: dict[str, Structure] = {}
    dsc_seeds: tuple[float | None, ...] = ()
    dsc_3d_seeds: tuple[float | None, ...] = ()
    nsd_seeds: tuple[float | None, ...] = ()
    retention_seeds: tuple[float | None, ...] = ()
    retention_3d_seeds: tuple[float | None, ...] = ()

    def spread(self, figure: str, *, scale: float = 1.0) -> Spread | None:
        """A figure over the seeds that have it, or the run's own; None where there is none."""
        by_seed = getattr(self, f"{figure}_seeds") if figure in SEED_FIGURES else ()
        values = by_seed or (getattr(self, figure),)
        return spread_of([value for value in values if value is not None], scale=scale)

    def mean(self, figure: str) -> float | None:
        """A figure's mean over the seeds that have it."""
        spread = self.spread(figure)
        return None if spread is None else spread.mean

    @property
    def name(self) -> str:
        """The title; where that only repeats the model, what the model is."""
        first, comma, rest = self.title.partition(",")
        if first in ("", self.family) and self.family in _NAMES:
            return _NAMES[self.family] + comma + rest
        return self.title or self.model

    @property
    def family(self) -> str:
        """``baseline`` of ``baseline_10``."""
        return self.model.partition("_")[0]

    @property
    def distilled(self) -> bool:
        """Whether it is a student that learnt from the teacher."""
        return self.family in ("encoder", "memory", "finetune")


class TeacherIdentity(BaseModel):
    """Which teacher it was."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str | None = None
    weights_sha256: str | None = None


class EvaluationContext(BaseModel):
    """On what, and on which machine, the figures were measured."""

    model_config = ConfigDict(frozen=True, extra="allow")

    split: str | None = None
    shared_split: bool | None = None
    cases: int | None = None
    objects: int | None = None
    slices: int | None = None
    tracks: int | None = None
    track_length: float | None = None
    nsd_tolerance_mm: float | None = None
    device: str | None = None
    cpu: str | None = None
    threads: int | None = None
    cache_bytes_per_slice: float | None = None
    cache_bytes: int | None = None
    teacher: TeacherIdentity = TeacherIdentity()
    backbone: str | None = None
    data_source: str | None = None
    image_size: int | None = None


class Evaluation(BaseModel):
    """``evaluate/rows.json``."""

    model_config = ConfigDict(frozen=True)

    rows: tuple[Row, ...]
    context: EvaluationContext


class Sample(BaseModel):
    """One slice to look at.

    Attributes:
        case_id: the case.
        slice_index: number of the slice in it.
        object_name: what was segmented.
        box: x0, y0, x1, y1 of the prompt, in pixels of the image.
        dsc: model → Dice on this slice.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    case_id: str
    slice_index: int
    object_name: str
    box: tuple[float, float, float, float]
    dsc: dict[str, float | None] = {}


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What a stage left behind.

    Attributes:
        name: the stage.
        manifest: None where the stage has not ended, or keeps its record elsewhere.
        journal: lines of its ``metrics.jsonl``, figures that are no number left out.
    """

    name: str
    manifest: Manifest | None
    journal: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """A repetition of the run.

    Attributes:
        seed: its seed.
        rows: its models; empty where it does not count.
        problem: why it does not count; empty where it does.
    """

    seed: int
    rows: tuple[Row, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """All that a report tells about.

    Attributes:
        directory: the run folder.
        rows: the models, teacher first.
        context: of the evaluation.
        samples: slices to look at.
        arrays: name → array, of ``samples.npz``.
        stages: in the order in which they run.
        config_text: ``config.yaml`` as it is, None where there is none.
        repetitions: with other seeds, those that do not count included.
    """

    directory: Path
    rows: tuple[Row, ...]
    context: EvaluationContext
    samples: tuple[Sample, ...]
    arrays: Mapping[str, npt.NDArray[Any]]
    stages: tuple[StageRecord, ...]
    config_text: str | None
    repetitions: tuple[Repetition, ...] = ()


def parse_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Rows of ``rows.json`` or ``report.json`` as records, teacher first.

    Raises:
        ValueError: a row without ``model``, or a figure that is no number.
    """
    return models_in_order(TypeAdapter(tuple[Row, ...]).validate_python(finite(list(rows))))


def named_row(rows: Sequence[Row], model: str) -> Row | None:
    """Find the row of ``model``."""
    return next((row for row in rows if row.model == model), None)


def last_student(rows: Sequence[Row]) -> Row | None:
    """Find the student after the last stage that was trained with all labels or none."""
    for model in ("finetune", "memory", "encoder"):
        if (row := named_row(rows, model)) is not None:
            return row
    return None


def models_in_order(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Models with all labels in the order of the stages, then those with fewer labels."""

    def key(row: Row) -> tuple[bool, float, int]:
        place = _ORDER.index(row.family) if row.family in _ORDER else len(_ORDER)
        return "_" in row.model, -(row.label_fraction or 1.0), place

    return tuple(sorted(rows, key=key))


def finite(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """Replace each NaN and infinity, as a number or as `json_value` spells it, by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if value in ("nan", "inf", "-inf") else value
