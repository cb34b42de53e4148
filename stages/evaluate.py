"""Measure every model of a run on the test split, from raw files, through the deployed predictor.

The one later stage that does not read images from the cache: what is measured is what a user
gets. Results of a model whose weights did not change are taken over.
"""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import CacheReader, describe
from cache.address import place_of
from cache.durable import canonical_json, sha256_of_bytes, sha256_of_file
from cache.side_files import checked_file, checked_folder
from efficient_medsam2.errors import DataError
from efficient_medsam2.images import SplitReport
from efficient_medsam2.networks.cost import measure_cost
from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.networks.model_folder import load_network
from efficient_medsam2.networks.sam1 import PromptedNetwork, Sam1Runner
from efficient_medsam2.networks.timing import milliseconds_per_slice
from stages.cases import CaseHandle, DataConfig, open_dataset, seen_by_all, source_is_present
from stages.context import Artifact, StageContext
from stages.evaluation_cases import CaseTask, measure_cases, measure_here, measure_on_workers
from stages.evaluation_samples import SampleBook
from stages.evaluation_scores import Scores
from stages.evaluation_settings import EvaluateConfig
from stages.side_files import SPLITS_NAME, TEACHER_FOLDER

__all__ = ["EvaluateConfig", "run"]

TEACHER = "teacher"


def run(data: DataConfig, config: EvaluateConfig, context: StageContext) -> Artifact:
    """Measure the teacher and the student after each stage.

    Raises:
        DataError: the raw data are not there, or the split has no case.
        CacheCorruptError: the cache's teacher or splits are not what was written.
    """
    reader = CacheReader(context.cache, mirror=context.mirror)
    source = data if context.cluster is None else seen_by_all(data)
    handles, shared = _handles(source, config, context)
    folders = {TEACHER: checked_folder(context.cache, TEACHER_FOLDER)} | {
        name: folder / "model" for name, folder in context.inputs.items() if name != "precompute"
    }
    runners = {name: load_network(folder) for name, folder in folders.items()}
    device = _own_device(context)
    for runner in runners.values():
        runner.model.to(device)
    kept = context.directory / "models"
    kept.mkdir(exist_ok=True)
    keys = {
        name: _key(folder, data, config, reader, context.seed, device.type)
        for name, folder in folders.items()
    }
    known = {name: _known(kept / f"{name}.json", key) for name, key in keys.items()}
    todo = [name for name, row in known.items() if row is None]
    scores = {name: Scores() for name in todo}
    samples = SampleBook(config.samples)
    if context.cluster is None:
        measured = measure_here(handles, data, config, runners, todo, samples)
    else:
        weights = {name: _weights_sha256(folder) for name, folder in folders.items()}
        measured = measure_on_workers(
            context.cluster,
            [
                CaseTask(
                    handle=handle,
                    data=data,
                    config=config,
                    folders={name: (folders[name].absolute(), weights[name]) for name in folders},
                    scored=tuple(todo),
                    device=context.device,
                )
                for handle in handles
            ],
        )
    with context.progress.bar(total=len(handles), description="evaluating", unit="case") as bar:
        for done in measure_cases(measured, scores, samples):
            bar.update(done)
    rows = []
    for name, runner in runners.items():
        row = known[name] or scores[name].figures() | _costs(runner)
        (kept / f"{name}.json").write_text(json.dumps({"key": keys[name], "row": row}))
        rows.append({"model": name} | row)
    _add_retention(rows)
    document = {
        "rows": rows,
        "context": _circumstances(reader, data, config, rows, shared, handles, device, runners),
    }
    (context.directory / "rows.json").write_text(json.dumps(document, indent=1) + "\n")
    samples.write(context.directory)
    summary = {row["model"]: {key: row[key] for key in ("dsc", "dsc_3d", "nsd")} for row in rows}
    return Artifact(files=("rows.json", "samples.json", "samples.npz"), summary=summary)


def _own_device(context: StageContext) -> torch.device:
    """Where this process computes; one that only hands out tasks needs no GPU of its own."""
    if context.cluster is not None and not torch.cuda.is_available():
        return torch.device("cpu")
    return pick_device(context.device)


def _handles(
    data: DataConfig, config: EvaluateConfig, context: StageContext
) -> tuple[list[CaseHandle], bool]:
    """The split's cases as the cache has them, and whether the split borrows training cases.

    Cases that precompute left out belong to no split of the cache.
    """
    splits = SplitReport.read(checked_file(context.cache, SPLITS_NAME))
    wanted = splits.cases(config.split)
    if not wanted:
        raise DataError(
            f"{place_of(context.cache)}: no case of the cache is in split {config.split}. Measure "
            "another one: --set evaluate.split=validation"
        )
    if not source_is_present(data):
        raise DataError(
            f"{data.source}: the raw data are not here, and evaluation measures on them. Say where "
            "they are: --set data.source=FOLDER"
        )
    there = {handle.case_id: handle for handle in open_dataset(data).handles}
    missing = [case_id for case_id in wanted if case_id not in there]
    if missing:
        raise DataError(
            f"{data.source}: {len(missing)} of {len(wanted)} cases of split {config.split} are not "
            f"there, such as {missing[0]}. Evaluation reads the raw files: "
            "--set data.source=FOLDER"
        )
    handles = [there[case_id] for case_id in wanted]
    if config.limit is not None and len(handles) > config.limit:
        places = np.linspace(0, len(handles) - 1, config.limit).round().astype(int)
        handles = [handles[place] for place in places]
    return handles, config.split in splits.shared


def _costs(runner: PromptedNetwork) -> dict[str, Any]:
    cost = measure_cost(runner)
    return {
        "params": cost.params,
        "gflop": cost.prompted_gflop,
        "gflop_tracked": cost.tracked_gflop,
        "gmac": cost.prompted_gflop / 2,
        "ms_per_slice": milliseconds_per_slice(runner),
    }


def _key(
    folder: Path,
    data: DataConfig,
    config: EvaluateConfig,
    reader: CacheReader,
    seed: int,
    device: str,
) -> str:
    """Identity of one model's results: its weights, the data, what is measured."""
    parts = {
        "weights": _weights_sha256(folder),
        "data": data.row_settings(),
        "cases": reader.spec.data_sha256,
        "evaluate": config.model_dump(mode="json"),
        "seed": seed,
        "device": device,
    }
    return sha256_of_bytes(canonical_json(parts))


def _weights_sha256(folder: Path) -> str:
    return sha256_of_file(folder / "model.safetensors")


def _known(path: Path, key: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text())
    except json.JSONDecodeError:
        return None
    row: dict[str, Any] = kept["row"]
    return row if kept.get("key") == key else None


def _add_retention(rows: list[dict[str, Any]]) -> None:
    teacher = next(row for row in rows if row["model"] == TEACHER)
    for row in rows:
        row["retention"] = _share(row["dsc"], teacher["dsc"])
        row["retention_3d"] = _share(row["dsc_3d"], teacher["dsc_3d"])
        row["title"] = _title(row["model"])
        row["label_fraction"] = _fraction(row["model"])


def _title(model: str) -> str:
    stage, _, percent = model.partition("_")
    return f"{stage}, {percent.replace('p', '.')} % of labels" if percent else stage


def _share(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None


def _fraction(model: str) -> float | None:
    stage, _, percent = model.partition("_")
    if stage not in ("finetune", "baseline"):
        return None
    return float(percent.replace("p", ".")) / 100 if percent else 1.0


def _backbone(runners: Mapping[str, PromptedNetwork]) -> str | None:
    """The students' backbone, by timm's name."""
    for runner in runners.values():
        if isinstance(runner, Sam1Runner):
            continue
        backbone = runner.config.vision_config.backbone_config
        if hasattr(backbone, "architecture"):
            return str(backbone.architecture)
    return None


def _circumstances(
    reader: CacheReader,
    data: DataConfig,
    config: EvaluateConfig,
    rows: list[dict[str, Any]],
    shared: bool,
    handles: list[CaseHandle],
    device: torch.device,
    runners: Mapping[str, PromptedNetwork],
) -> dict[str, Any]:
    structures = rows[0]["per_structure"]
    info = describe(reader.path)
    return {
        "split": config.split,
        "shared_split": shared,
        "cases": len(handles),
        "objects": len(structures),
        "slices": sum(each["slices"] for each in structures.values()),
        "tracks": sum(each["tracks"] for each in structures.values()),
        "track_length": config.track_length,
        "nsd_tolerance_mm": config.nsd_tolerance_mm,
        "device": device.type,
        "cpu": platform.processor() or platform.machine(),
        "backbone": _backbone(runners),
        "threads": torch.get_num_threads(),
        "cache_bytes": info.array_bytes["total"],
        "cache_bytes_per_slice": sum(
            info.row_bytes[array.name] for array in reader.spec.arrays_of("slices")
        ),
        "teacher": {
            "name": reader.spec.teacher.name,
            "weights_sha256": reader.spec.teacher.weights_sha256,
        },
        "data_source": data.source,
        "image_size": reader.spec.preprocessing["image_size"],
    }
