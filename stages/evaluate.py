"""Measure every model of a run on the test split, from raw files, through the deployed predictor.

The one later stage that does not read images from the cache: what is measured is what a user
gets. Results of a model whose weights did not change are taken over.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from cache import CacheReader, describe
from cache.durable import canonical_json, sha256_of_bytes, sha256_of_file
from efficient_medsam2.errors import DataError
from efficient_medsam2.images import Case, SplitReport, squash_labels, to_uint8
from efficient_medsam2.metrics import dsc, nsd
from efficient_medsam2.networks.cost import measure_cost
from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.networks.model_folder import load_runner
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.timing import milliseconds_per_slice
from efficient_medsam2.predictor import VolumePredictor
from efficient_medsam2.prompts import box_of
from stages.cases import CaseHandle, DataConfig, open_dataset
from stages.context import Artifact, StageContext
from stages.evaluation_samples import SampleBook

__all__ = ["EvaluateConfig", "run"]

TEACHER = "teacher"


class EvaluateConfig(BaseModel):
    """What is measured.

    Attributes:
        split: which cases.
        smallest: objects below so many pixels of the network's input are not counted on a slice.
        track_length: slices of a track around its prompted slice.
        nsd_tolerance_mm: of the normalised surface distance.
        samples: pictures kept for the report.
        limit: at most so many cases, evenly spread; None for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["train", "validation", "test"] = "test"
    smallest: int = Field(default=30, ge=1)
    track_length: int = Field(default=11, ge=2)
    nsd_tolerance_mm: float = Field(default=2.0, gt=0)
    samples: int = Field(default=6, ge=0)
    limit: int | None = Field(default=None, ge=1)


@dataclass
class Scores:
    """Scores of one model by structure."""

    dsc: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    nsd: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    dsc_3d: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def figures(self) -> dict[str, Any]:
        """Macro means over structures, and the structures' own means."""
        structures = {
            name: {
                "dsc": float(np.mean(self.dsc[name])),
                "nsd": float(np.mean(self.nsd[name])),
                "dsc_3d": float(np.mean(self.dsc_3d[name])) if self.dsc_3d.get(name) else None,
                "slices": len(self.dsc[name]),
                "tracks": len(self.dsc_3d.get(name, [])),
            }
            for name in sorted(self.dsc)
        }
        return {
            "dsc": _macro(self.dsc),
            "nsd": _macro(self.nsd),
            "dsc_3d": _macro(self.dsc_3d),
            "per_structure": structures,
        }


def _macro(by_structure: Mapping[str, list[float]]) -> float | None:
    means = [float(np.mean(values)) for values in by_structure.values() if values]
    return float(np.mean(means)) if means else None


def run(data: DataConfig, config: EvaluateConfig, context: StageContext) -> Artifact:
    """Measure the teacher and the student after each stage.

    Raises:
        DataError: the raw data are not there, or the split has no case.
    """
    reader = CacheReader(context.cache)
    handles, shared = _handles(data, config, context)
    folders = {TEACHER: context.cache / "teacher"} | {
        name: folder / "model" for name, folder in context.inputs.items() if name != "precompute"
    }
    runners = {name: load_runner(folder) for name, folder in folders.items()}
    device = pick_device(context.device)
    for runner in runners.values():
        runner.model.to(device)
    kept = context.directory / "models"
    kept.mkdir(exist_ok=True)
    keys = {
        name: _key(folder, data, config, reader, context.seed) for name, folder in folders.items()
    }
    known = {name: _known(kept / f"{name}.json", key) for name, key in keys.items()}
    todo = [name for name, row in known.items() if row is None]
    scores = {name: Scores() for name in todo}
    samples = SampleBook(config.samples)
    with context.progress.bar(total=len(handles), description="evaluating", unit="case") as bar:
        for handle in handles:
            case = handle.load()
            _measure_case(case, handle, data, config, runners, scores, samples)
            bar.update(1)
    rows = []
    for name, runner in runners.items():
        row = known[name] or scores[name].figures() | _costs(runner)
        (kept / f"{name}.json").write_text(json.dumps({"key": keys[name], "row": row}))
        rows.append({"model": name} | row)
    _add_retention(rows)
    document = {
        "rows": rows,
        "context": _circumstances(reader, data, config, rows, shared, handles, device),
    }
    (context.directory / "rows.json").write_text(json.dumps(document, indent=1) + "\n")
    samples.write(context.directory)
    summary = {row["model"]: {key: row[key] for key in ("dsc", "dsc_3d", "nsd")} for row in rows}
    return Artifact(files=("rows.json", "samples.json", "samples.npz"), summary=summary)


def _handles(
    data: DataConfig, config: EvaluateConfig, context: StageContext
) -> tuple[list[CaseHandle], bool]:
    splits = SplitReport.read(context.cache / "splits.json")
    wanted = set(splits.cases(config.split))
    dataset = open_dataset(data)
    handles = [handle for handle in dataset.handles if handle.case_id in wanted]
    if not handles:
        raise DataError(
            f"{data.source}: none of the cases of split {config.split} is there. Evaluation reads "
            "the raw files: --set data.source=FOLDER"
        )
    if config.limit is not None and len(handles) > config.limit:
        places = np.linspace(0, len(handles) - 1, config.limit).round().astype(int)
        handles = [handles[place] for place in places]
    return handles, config.split in splits.shared


def _measure_case(
    case: Case,
    handle: CaseHandle,
    data: DataConfig,
    config: EvaluateConfig,
    runners: Mapping[str, SliceRunner],
    scores: Mapping[str, Scores],
    samples: SampleBook,
) -> None:
    assert case.label is not None
    image = to_uint8(case, data.intensity)
    predictors = {name: VolumePredictor(runner, image) for name, runner in runners.items()}
    size = next(iter(runners.values())).image_size
    small = squash_labels(case.label, size)
    visible = {
        object_id: [
            int(index)
            for index in np.flatnonzero(
                (small == object_id).reshape(len(small), -1).sum(1) >= config.smallest
            )
        ]
        for object_id in case.object_ids
    }
    for slice_index in range(case.label.shape[0]):
        here = [object_id for object_id, slices in visible.items() if slice_index in slices]
        if here:
            _measure_slice(
                case, image, handle, slice_index, here, predictors, scores, samples, config
            )
    for object_id, slices in visible.items():
        if len(slices) > 1:
            name = _structure(handle, object_id)
            _measure_track(case, name, object_id, slices, predictors, scores, config)


def _structure(handle: CaseHandle, object_id: int) -> str:
    return handle.object_names.get(object_id, str(object_id))


def _measure_slice(
    case: Case,
    image: np.ndarray,
    handle: CaseHandle,
    slice_index: int,
    objects: list[int],
    predictors: Mapping[str, VolumePredictor],
    scores: Mapping[str, Scores],
    samples: SampleBook,
    config: EvaluateConfig,
) -> None:
    """Tight boxes on one slice, all objects at once."""
    assert case.label is not None
    truths = [case.label[slice_index] == object_id for object_id in objects]
    boxes = np.stack([box_of(truth) for truth in truths])
    # A picture has no physical size: NSD is then in pixels, as the challenge counts it.
    spacing = (1.0, *case.spacing_mm[1:]) if case.label.shape[0] > 1 else None
    wanted = [samples.wants(handle.case_id, slice_index, object_id) for object_id in objects]
    for name, predictor in predictors.items():
        if name not in scores and not any(wanted):
            continue
        masks = predictor.segment_boxes(slice_index, boxes)
        for mask, truth, object_id, keep, box in zip(
            masks, truths, objects, wanted, boxes, strict=True
        ):
            structure = _structure(handle, object_id)
            score = dsc(mask, truth)
            if name in scores:
                scores[name].dsc[structure].append(score)
                scores[name].nsd[structure].append(
                    nsd(
                        mask,
                        truth,
                        spacing_mm=spacing,
                        tolerance_mm=config.nsd_tolerance_mm,
                    )
                )
            if keep:
                samples.add(
                    name,
                    image=image[slice_index],
                    truth=truth,
                    mask=mask,
                    score=score,
                    box=box,
                    key=(handle.case_id, slice_index, object_id),
                    object_name=structure,
                    features=predictor.features(slice_index),
                )


def _measure_track(
    case: Case,
    structure: str,
    object_id: int,
    slices: list[int],
    predictors: Mapping[str, VolumePredictor],
    scores: Mapping[str, Scores],
    config: EvaluateConfig,
) -> None:
    """One prompt on the middle slice of the object, followed both ways."""
    assert case.label is not None
    start = slices[len(slices) // 2]
    before = config.track_length // 2
    first = max(start - before, 0)
    last = min(start + config.track_length - before - 1, case.label.shape[0] - 1)
    window = range(first, last + 1)
    truth = case.label[first : last + 1] == object_id
    box = box_of(case.label[start] == object_id)[None]
    for name, score in scores.items():
        masks = predictors[name].follow_boxes(start, box, slices=window)
        score.dsc_3d[structure].append(dsc(masks[0], truth))


def _costs(runner: SliceRunner) -> dict[str, Any]:
    cost = measure_cost(runner)
    return {
        "params": cost.params,
        "gflop": cost.prompted_gflop,
        "gflop_tracked": cost.tracked_gflop,
        "gmac": cost.prompted_gflop / 2,
        "ms_per_slice": milliseconds_per_slice(runner),
    }


def _key(
    folder: Path, data: DataConfig, config: EvaluateConfig, reader: CacheReader, seed: int
) -> str:
    """Identity of one model's results: its weights, the data, what is measured."""
    parts = {
        "weights": sha256_of_file(folder / "model.safetensors"),
        "data": data.row_settings(),
        "cases": reader.spec.data_sha256,
        "evaluate": config.model_dump(mode="json"),
        "seed": seed,
    }
    return sha256_of_bytes(canonical_json(parts))


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


def _circumstances(
    reader: CacheReader,
    data: DataConfig,
    config: EvaluateConfig,
    rows: list[dict[str, Any]],
    shared: bool,
    handles: list[CaseHandle],
    device: torch.device,
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
