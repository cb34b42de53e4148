"""The shipped teacher on what its recipe can be judged by: validation and test slabs, phantoms.

    python -m benchmarks.teacher_slabs [--model FOLDER] [--json FILE]

Each part is measured as the evaluation of a run measures its split, by the same code: from tight
boxes on every slice, and along tracks of 11 slices from each object's middle slice.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
from pydantic import BaseModel, ConfigDict

from benchmarks.measured_model import SHIPPED_TEACHER, MeasuredModel, as_typed, measured_model
from efficient_medsam2.networks.cost import measure_cost
from efficient_medsam2.networks.model_folder import load_runner
from efficient_medsam2.networks.runner import SliceRunner
from pipeline.artifacts import library_versions, write_atomically
from stages.cases import CaseHandle, DataConfig, open_dataset
from stages.evaluation_samples import SampleBook
from stages.evaluation_scores import Scores, measure_case
from stages.evaluation_settings import EvaluateConfig

__all__ = [
    "PARTS",
    "SlabPart",
    "SlabResults",
    "StructureFigures",
    "measure_part",
    "measure_slabs",
    "read_results",
]

PARTS = ("validation slabs", "test slabs", "phantom")
"""The MNI152 brain's slabs by split, and all slabs of the phantom, of which none is trained on."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StructureFigures(_Record):
    """One structure's means; ``dsc_3d`` is None where no volume shows it on two slices."""

    dsc: float
    nsd: float
    dsc_3d: float | None
    slices: int
    tracks: int


class SlabPart(_Record):
    """One part; figures are means over structures of each structure's mean."""

    name: str
    slabs: tuple[str, ...]
    dsc: float
    nsd: float
    dsc_3d: float | None
    per_structure: dict[str, StructureFigures]


class SlabResults(_Record):
    """All that was measured.

    Attributes:
        kind: tells this file from other JSON files.
        command: what was typed.
        model: whose figures these are.
        image_size: side of the network's input in pixels.
        params: of the network.
        gflop: of a prompted slice.
        gflop_tracked: of a followed slice.
        parts: the figures.
        finished_utc: ISO 8601.
        versions: library → version.
    """

    kind: Literal["teacher_slabs"] = "teacher_slabs"
    command: str
    model: MeasuredModel
    image_size: int
    params: int
    gflop: float
    gflop_tracked: float | None
    parts: tuple[SlabPart, ...]
    finished_utc: str
    versions: dict[str, str]


def measure_slabs(
    model: Path,
    *,
    parts: Sequence[str] = PARTS,
    command: str,
    tell: Callable[[SlabPart], None] = lambda part: None,
) -> SlabResults:
    """Measure the model in a folder.

    Args:
        model: the model's folder.
        parts: which of :data:`PARTS`.
        command: what was typed, for the record.
        tell: is given each part when it is done.

    Raises:
        MissingExtraError: nilearn, which holds the MNI152 brain, is not installed.
        WeightsError: the folder holds no model.
    """
    runner = load_runner(model)
    measured = []
    for name in parts:
        part = _measure(name, runner)
        tell(part)
        measured.append(part)
    cost = measure_cost(runner)
    return SlabResults(
        command=command,
        model=measured_model(model),
        image_size=runner.image_size,
        params=cost.params,
        gflop=cost.prompted_gflop,
        gflop_tracked=cost.tracked_gflop,
        parts=tuple(measured),
        finished_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(),
    )


def measure_part(
    name: str, handles: Sequence[CaseHandle], data: DataConfig, runner: SliceRunner
) -> SlabPart:
    """Measure slabs as the evaluation of a run does.

    Args:
        name: what to call them.
        handles: the slabs.
        data: how they are read.
        runner: the network.
    """
    scores, config = Scores(), EvaluateConfig(samples=0)
    for handle in handles:
        measure_case(
            handle.load(),
            handle,
            data,
            config,
            {"teacher": runner},
            {"teacher": scores},
            SampleBook(0),
        )
    slabs = tuple(handle.case_id for handle in handles)
    return SlabPart.model_validate({"name": name, "slabs": slabs, **scores.figures()})


def read_results(path: Path) -> SlabResults:
    """Read what ``--json`` wrote.

    Raises:
        ValueError: it is not such a file.
    """
    return SlabResults.model_validate_json(path.read_text(encoding="utf-8"))


def _measure(name: str, runner: SliceRunner) -> SlabPart:
    if name == "phantom":
        data = DataConfig(source="phantom")
        return measure_part(name, open_dataset(data).handles, data, runner)
    data = DataConfig(source="mni152")
    split = name.removesuffix(" slabs")
    handles = [handle for handle in open_dataset(data).handles if handle.split == split]
    return measure_part(name, handles, data, runner)


def _tell(part: SlabPart) -> None:
    rows: dict[str, SlabPart | StructureFigures] = {"all, macro": part, **part.per_structure}
    click.echo(f"{part.name:26}{'DSC':>9}{'NSD':>9}{'DSC 3D':>9}")
    for name, row in rows.items():
        in_3d = "–" if row.dsc_3d is None else f"{row.dsc_3d:.3f}"
        click.echo(f"  {name:24}{row.dsc:9.3f}{row.nsd:9.3f}{in_3d:>9}")


@click.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=SHIPPED_TEACHER,
    help="Folder of the model; the shipped teacher where none is given.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures here.")
def main(model: Path, json_file: Path | None) -> None:
    """Measure a teacher on slabs of the MNI152 brain and on the phantom."""
    results = measure_slabs(model, command=as_typed("benchmarks.teacher_slabs"), tell=_tell)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json_file, results.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
