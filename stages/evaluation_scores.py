"""Scores of models on cases: boxes on every slice, tracks through every object."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from efficient_medsam2.images import Case, squash_labels, to_uint8
from efficient_medsam2.metrics import dsc, nsd
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1 import PromptedNetwork
from efficient_medsam2.predictor import VolumePredictor
from efficient_medsam2.prompts import box_of
from stages.cases import CaseHandle, DataConfig
from stages.evaluation_samples import SampleBook
from stages.evaluation_settings import EvaluateConfig

__all__ = ["Scores", "measure_case"]


@dataclass
class Scores:
    """Scores of one model by structure."""

    dsc: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    nsd: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    dsc_3d: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def extend(self, other: "Scores") -> None:
        """Add another case's scores."""
        for mine, theirs in (
            (self.dsc, other.dsc),
            (self.nsd, other.nsd),
            (self.dsc_3d, other.dsc_3d),
        ):
            for structure, values in theirs.items():
                mine[structure].extend(values)

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


def measure_case(
    case: Case,
    handle: CaseHandle,
    data: DataConfig,
    config: EvaluateConfig,
    runners: Mapping[str, PromptedNetwork],
    scores: Mapping[str, Scores],
    samples: SampleBook,
) -> None:
    """Measure every model on one case and keep what the report shows of it.

    Args:
        case: the loaded case.
        handle: its name and its objects' names.
        data: how grey values are read.
        config: what is measured.
        runners: model → network.
        scores: model → where its scores go; a model that is not in it is only shown.
        samples: where pictures go.
    """
    assert case.label is not None
    image = to_uint8(case, data.intensity)
    predictors = {name: VolumePredictor(runner, image) for name, runner in runners.items()}
    size = next(iter(runners.values())).image_size
    small = squash_labels(case.label, size)
    visible = {
        object_id: [
            int(index)
            for index in np.flatnonzero(
                (small == object_id).reshape(len(small), -1).sum(1) >= data.smallest
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
            # A network without memory has no figure there, rather than a bad one.
            followed = {
                model: score
                for model, score in scores.items()
                if isinstance(runners[model], SliceRunner)
            }
            _measure_track(case, name, object_id, slices, predictors, followed, config)


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
