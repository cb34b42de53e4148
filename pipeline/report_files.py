"""Reading a run folder for its report.

``evaluate/rows.json`` and ``evaluate/samples.*`` are written by `stages.evaluate`, the journals
by the training stages, the manifests by `pipeline.runner`.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from pipeline.artifacts import read_manifest
from pipeline.errors import ArtifactError
from pipeline.report_records import (
    Evaluation,
    Repetition,
    RunRecords,
    Sample,
    StageRecord,
    finite,
    models_in_order,
)
from pipeline.report_seeds import fits, seed_folders, with_seeds
from stages.training.journal import read_journal

__all__ = ["read_run"]

_STAGES = ("teacher", "precompute", "baseline", "encoder", "memory", "finetune", "evaluate")


def read_run(run_dir: Path) -> RunRecords:
    """Read everything a report needs.

    Raises:
        ArtifactError: no evaluation there, or a file that is damaged; names file and command.
    """
    folder = run_dir / "evaluate"
    evaluation = _validated(TypeAdapter(Evaluation), folder / "rows.json", run_dir)
    samples: tuple[Sample, ...] = ()
    arrays: Mapping[str, npt.NDArray[Any]] = {}
    if (folder / "samples.json").is_file():
        samples = _validated(TypeAdapter(tuple[Sample, ...]), folder / "samples.json", run_dir)
        if samples:
            arrays = _arrays(folder / "samples.npz", run_dir)
            _check_shapes(samples, arrays, folder / "samples.npz", run_dir)
    config = run_dir / "config.yaml"
    repetitions = _repetitions(run_dir)
    return RunRecords(
        directory=run_dir,
        rows=with_seeds(models_in_order(evaluation.rows), repetitions),
        context=evaluation.context,
        samples=samples,
        arrays=arrays,
        stages=_stages(run_dir),
        config_text=config.read_text(encoding="utf-8") if config.is_file() else None,
        repetitions=repetitions,
    )


def _repetitions(run_dir: Path) -> tuple[Repetition, ...]:
    found = []
    for seed, folder in seed_folders(run_dir).items():
        problem, rows = fits(run_dir, folder), ()
        if not problem:
            path = folder / "evaluate" / "rows.json"
            rows = _validated(TypeAdapter(Evaluation), path, folder).rows
        found.append(Repetition(seed=seed, rows=rows, problem=problem))
    return tuple(found)


def _stages(run_dir: Path) -> tuple[StageRecord, ...]:
    def place(name: str) -> tuple[int, str]:
        return _STAGES.index(name.partition("_")[0]), name

    names = [
        path.name
        for path in run_dir.iterdir()
        if path.is_dir() and path.name.partition("_")[0] in _STAGES
    ]
    return tuple(
        StageRecord(
            name=name,
            manifest=read_manifest(run_dir / name),
            journal=_journal(run_dir / name / "metrics.jsonl"),
        )
        for name in sorted(names, key=place)
    )


def _journal(path: Path) -> tuple[Mapping[str, float], ...]:
    lines = [
        {
            key: float(value)
            for key, value in line.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for line in read_journal(path)
    ]
    return tuple(line for line in lines if "step" in line)


def _validated(adapter: TypeAdapter[Any], path: Path, run_dir: Path) -> Any:  # noqa: ANN401
    try:
        return adapter.validate_python(finite(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. Make it: {_command(run_dir)}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}. {_mend(run_dir)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise ArtifactError(
            f"{path} is damaged: {where}: {first['msg']}. {_mend(run_dir)}"
        ) from error


def _arrays(path: Path, run_dir: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing. {_mend(run_dir)}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(f"{path} is damaged: {error}. {_mend(run_dir)}") from error


def _check_shapes(
    samples: Sequence[Sample], arrays: Mapping[str, npt.NDArray[Any]], path: Path, run_dir: Path
) -> None:
    """Every sample must have its image and truth, and masks of the image's size."""
    for index in range(len(samples)):
        for name in (f"image_{index}", f"truth_{index}"):
            if name not in arrays:
                raise ArtifactError(f"{path} is damaged: no array {name}. {_mend(run_dir)}")
        size = arrays[f"image_{index}"].shape[:2]
        for name, array in arrays.items():
            is_mask = name.startswith(("mask_", "truth_")) and name.endswith(f"_{index}")
            if is_mask and array.shape != size:
                raise ArtifactError(
                    f"{path} is damaged: {name} is {array.shape}, its image {size}. "
                    f"{_mend(run_dir)}"
                )


def _command(run_dir: Path) -> str:
    return f"efficient-medsam2 evaluate -c {run_dir / 'config.yaml'}"


def _mend(run_dir: Path) -> str:
    return f"Make it anew: efficient-medsam2 run -c {run_dir / 'config.yaml'} --force evaluate"
