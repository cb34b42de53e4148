"""A model on data that it never saw, prompted with tight boxes drawn from the ground truth.

    python -m benchmarks.zero_shot [--model FOLDER] [--data NAME=FOLDER ...] [--json FILE]

Of each data set: DSC and NSD from a box on each slice; where cases are volumes, DSC of objects
that are followed from a box on their middle slice, forwards and then backwards (MedSAM2's way).
Beside each figure stands what the filled box scores when it is taken for the answer (followed: the
box on every slice), which asks nothing of a model.

Without ``--data`` the sample data in ``shared/data`` beside the checkout are measured, as far as
they are there. Larger sets are cut down evenly and always in the same way; ``--help`` says to what.
The shipped teacher saw generated volumes and the MNI152 brain alone; of another model only its
owner knows what it never saw.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
import torch
from pydantic import BaseModel, ConfigDict

from benchmarks.measured_model import (
    SHIPPED_TEACHER,
    MeasuredModel,
    as_typed,
    measured_model,
    shown,
)
from benchmarks.zero_shot_scores import DataFigures, Limits, measure_data
from efficient_medsam2.images import find_cases
from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.networks.model_folder import load_network
from pipeline.artifacts import library_versions, write_atomically

__all__ = [
    "DEFAULT_DATA",
    "HEADS",
    "DataRow",
    "ZeroShotResults",
    "measure_all",
    "read_results",
    "table_cells",
]

DEFAULT_DATA = {
    "CT lesions": ("ct_lesion_npz",),
    "MR hippocampus": ("msd_hippocampus",),
    "MR heart, cine (1 mm assumed)": ("acdc_npz",),
    "endoscopy, polyps": ("polyp/TestDataset",),
    "ultrasound, breast (BUSI)": ("busi",),
    "ultrasound, breast (BUS-UC)": ("bus_uc",),
    "dermoscopy (ISIC 2017)": ("isic2017",),
    "dermoscopy (HAM10000)": ("ham10000",),
    "X-ray, lungs": ("covid_cxr",),
    "microscopy, nuclei": ("dsb2018",),
    "microscopy, white blood cells": ("wbc/dataset1", "wbc/dataset2"),
}
"""Name → folders below ``shared/data``. The heart volumes came without their voxel size."""

HEADS = (
    "data",
    "cases",
    "objects",
    "DSC",
    "box's",
    "NSD",
    "box's",
    "tracks",
    "DSC 3D",
    "box's",
)
"""Heads of the table's columns."""

_SAMPLE_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


class DataRow(BaseModel):
    """One data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    folders: tuple[str, ...]
    figures: DataFigures


class ZeroShotResults(BaseModel):
    """All that was measured.

    Attributes:
        kind: tells this file from other JSON files.
        command: what was typed.
        model: whose figures these are.
        limits: how much of each data set was measured.
        rows: the data sets.
        absent: data sets that are not here.
        seconds: that it took.
        threads: of torch.
        finished_utc: ISO 8601.
        versions: library → version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["zero_shot"] = "zero_shot"
    command: str
    model: MeasuredModel
    limits: Limits
    rows: tuple[DataRow, ...]
    absent: tuple[str, ...]
    seconds: float
    threads: int
    finished_utc: str
    versions: dict[str, str]


def measure_all(
    model: Path,
    data: Mapping[str, Sequence[Path]],
    limits: Limits,
    *,
    absent: Sequence[str] = (),
    command: str,
    device: str = "auto",
    tell: Callable[[DataRow], None] = lambda row: None,
) -> ZeroShotResults:
    """Measure the model in a folder on every data set.

    Args:
        model: the model's folder.
        data: name → its folders.
        limits: how much of each is measured.
        absent: names of data sets that are not here, for the record.
        command: what was typed, for the record.
        device: ``auto``, ``cpu`` or ``cuda``.
        tell: is given each row when it is done.

    Raises:
        DataError: a data set cannot be used.
        WeightsError: the folder holds no model.
    """
    runner = load_network(model)
    runner.model.to(pick_device(device))
    started = time.monotonic()
    rows = []
    for name, folders in data.items():
        sources = [source for folder in folders for source in find_cases(folder)]
        row = DataRow(
            name=name,
            folders=tuple(shown(folder) for folder in folders),
            figures=measure_data(sources, runner, limits),
        )
        tell(row)
        rows.append(row)
    return ZeroShotResults(
        command=command,
        model=measured_model(model),
        limits=limits,
        rows=tuple(rows),
        absent=tuple(absent),
        seconds=round(time.monotonic() - started, 1),
        threads=torch.get_num_threads(),
        finished_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(),
    )


def read_results(path: Path) -> ZeroShotResults:
    """Read what ``--json`` wrote.

    Raises:
        ValueError: it is not such a file.
    """
    return ZeroShotResults.model_validate_json(path.read_text(encoding="utf-8"))


def table_cells(row: DataRow) -> tuple[str, ...]:
    """One line of the table, as :data:`HEADS` names it; ``–`` where nothing was measured."""
    found = row.figures
    return (
        row.name,
        str(found.cases)
        if found.cases == found.cases_found
        else f"{found.cases} of {found.cases_found}",
        str(found.objects),
        *(_number(value) for value in (found.dsc, found.box_dsc, found.nsd, found.box_nsd)),
        str(found.tracks) if found.tracks else "–",
        *(_number(value) for value in (found.dsc_3d, found.box_dsc_3d)),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    name, *others = cells
    return f"{name:30}" + "".join(f"{cell:>9}" for cell in others)


def _named_folders(pairs: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """``NAME=FOLDER`` pairs; a name given twice has both folders."""
    data: dict[str, tuple[Path, ...]] = {}
    for pair in pairs:
        name, found, folder = pair.partition("=")
        if not (name and found and folder):
            raise click.BadParameter(f"{pair!r} is not NAME=FOLDER", param_hint="--data")
        if not Path(folder).exists():
            raise click.BadParameter(f"{folder} does not exist", param_hint="--data")
        data[name] = (*data.get(name, ()), Path(folder))
    return data


def _sample_data() -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...]]:
    """The sample data that are here, and the names of those that are not."""
    places = {
        name: tuple(_SAMPLE_DATA / folder for folder in folders)
        for name, folders in DEFAULT_DATA.items()
    }
    here = {name: each for name, each in places.items() if all(p.is_dir() for p in each)}
    return here, tuple(name for name in places if name not in here)


def _limit(name: str) -> int:
    default = Limits.model_fields[name].default
    assert isinstance(default, int)
    return default


@click.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=SHIPPED_TEACHER,
    help="Folder of the model; the shipped teacher where none is given.",
)
@click.option("--data", "pairs", multiple=True, metavar="NAME=FOLDER", help="A data set; repeat.")
@click.option("--cases", default=_limit("cases"), show_default=True, help="Of a data set, at most.")
@click.option("--objects", default=_limit("objects"), show_default=True, help="Of a case, at most.")
@click.option("--slices", default=_limit("slices"), show_default=True, help="Prompted, an object.")
@click.option(
    "--track-length", default=_limit("track_length"), show_default=True, help="Slices of a track."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures here.")
def main(
    model: Path,
    pairs: tuple[str, ...],
    cases: int,
    objects: int,
    slices: int,
    track_length: int,
    device: str,
    json_file: Path | None,
) -> None:
    """Measure a model on data that it never saw."""
    limits = Limits(cases=cases, objects=objects, slices=slices, track_length=track_length)
    data, absent = (_named_folders(pairs), ()) if pairs else _sample_data()
    for name in absent:
        click.echo(f"not here: {name} ({', '.join(DEFAULT_DATA[name])})", err=True)
    if not data:
        raise click.ClickException(
            f"there are no sample data in {shown(_SAMPLE_DATA)}: name some with --data NAME=FOLDER"
        )
    click.echo(_line(HEADS))
    results = measure_all(
        model,
        data,
        limits,
        absent=absent,
        command=as_typed("benchmarks.zero_shot"),
        device=device,
        tell=lambda row: click.echo(_line(table_cells(row))),
    )
    click.echo(f"{results.seconds:.0f} s on {results.threads} threads")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json_file, results.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
