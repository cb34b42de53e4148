"""The results of an ablation as a JSON file, and their means over seeds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts import write_atomically
from pipeline.errors import ArtifactError

__all__ = [
    "METRICS",
    "AblationResults",
    "CombinationResults",
    "FactorRecord",
    "Failure",
    "ModelFigures",
    "SeedResults",
    "read_results",
    "write_results",
]

METRICS = ("dsc", "dsc_3d", "nsd", "retention", "retention_3d")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFigures(BaseModel):
    """Figures of one model with one seed, as its row of ``evaluate/rows.json`` has them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    label_fraction: float | None = None
    dsc: float | None = None
    dsc_3d: float | None = None
    nsd: float | None = None
    retention: float | None = None
    retention_3d: float | None = None
    gflop: float | None = None
    params: int | None = None

    @property
    def family(self) -> str:
        """``baseline`` of ``baseline_10``."""
        return self.model.partition("_")[0]


class SeedResults(_Record):
    """What one seed gave: the run folder (relative to the ablation's) and the models in it."""

    seed: int
    folder: str
    rows: tuple[ModelFigures, ...]


class CombinationResults(_Record):
    """One combination of values: key → label of the value; and what each seed gave."""

    values: dict[str, str]
    runs: tuple[SeedResults, ...]

    def models(self) -> tuple[str, ...]:
        """Names of its models, in the order of the evaluation."""
        return tuple(dict.fromkeys(row.model for run in self.runs for row in run.rows))

    def figures(self, model: str, metric: str) -> tuple[float, ...]:
        """One figure of ``model`` for each seed that has it."""
        rows = [row for run in self.runs for row in run.rows if row.model == model]
        values = [getattr(row, metric) for row in rows]
        return tuple(value for value in values if value is not None)


class FactorRecord(_Record):
    """A key that was varied: label → the YAML text of each value (None: the config's own)."""

    key: str
    values: dict[str, str | None]


class Failure(_Record):
    """A run that ended in an error."""

    values: dict[str, str]
    seed: int
    error: str


class AblationResults(_Record):
    """All that an ablation found.

    Attributes:
        kind: tells this file from other JSON files.
        schema_version: of this record.
        title: for people.
        command: what was typed.
        factors: what was varied.
        seeds: with which seeds.
        started_utc: when it began, ISO 8601.
        finished_utc: when this file was written.
        wall_s: seconds of work, over all continuations.
        stage_seconds: artifact in the store → seconds its stage took.
        stage_uses: stages of all runs together.
        versions: library → version.
        context: on what was measured, from the first evaluation.
        combinations: the figures.
        failures: runs that ended in an error.
        complete: whether every combination has every seed.
    """

    kind: Literal["ablation"] = "ablation"
    schema_version: Literal[1] = 1
    title: str
    command: str
    factors: tuple[FactorRecord, ...]
    seeds: tuple[int, ...]
    started_utc: str
    finished_utc: str
    wall_s: float
    stage_seconds: dict[str, float]
    stage_uses: int
    versions: dict[str, str]
    context: dict[str, Any]
    combinations: tuple[CombinationResults, ...]
    failures: tuple[Failure, ...] = ()
    complete: bool

    def measured(self) -> Iterator[CombinationResults]:
        """Combinations that have a figure."""
        return (each for each in self.combinations if any(run.rows for run in each.runs))


def write_results(path: Path, results: AblationResults) -> None:
    """Write ``path`` completely or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results.model_dump(mode="json"), indent=1, allow_nan=False)
    write_atomically(path, text + "\n")


def read_results(path: Path) -> AblationResults | None:
    """Read a results file; None for a JSON file of another kind.

    Raises:
        ArtifactError: no JSON, or a damaged record.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or data.get("kind") != "ablation":
        return None
    try:
        return AblationResults.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path} is damaged: {where}: {first['msg']}. Make it anew: {data.get('command', '')}"
        ) from error
