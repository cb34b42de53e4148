"""Figures of a model on a data set: boxes on slices, tracks through volumes, the box as answer.

Shape letters: D slices, H W rows and columns of the image, N objects on a slice.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from efficient_medsam2.images import Case, CaseSource, IntensityConfig, squash_labels, to_uint8
from efficient_medsam2.metrics import dsc, nsd
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1 import PromptedNetwork
from efficient_medsam2.predictor import VolumePredictor
from efficient_medsam2.prompts import box_of

__all__ = ["DataFigures", "Limits", "filled_boxes", "measure_data", "spread"]

Masks = npt.NDArray[np.bool_]
T = TypeVar("T")


class Limits(BaseModel):
    """How much of a data set is measured; what is left out is spread evenly.

    Attributes:
        cases: of a data set, at most.
        objects: of a case, at most.
        slices: of an object, at most, that are prompted each by itself.
        track_length: slices of a track around its prompted slice.
        smallest: objects below so many pixels of the network's input are not prompted.
        nsd_tolerance_mm: of the normalised surface Dice; in pixels on pictures.
        picture_side: NSD of larger pictures is that of every second, third, ... row and column, so
            that their longer side has at most so many pixels: else a tolerance of 2 pixels would
            mean little there, and counting surfaces would take most of the time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: int = Field(default=16, ge=1)
    objects: int = Field(default=8, ge=1)
    slices: int = Field(default=5, ge=1)
    track_length: int = Field(default=11, ge=2)
    smallest: int = Field(default=30, ge=1)
    nsd_tolerance_mm: float = Field(default=2.0, gt=0)
    picture_side: int = Field(default=512, ge=16)


class DataFigures(BaseModel):
    """What came of one data set.

    An object's figure is the mean over its slices, a case's over its objects, and each figure
    here the mean over cases.

    Attributes:
        cases: measured.
        cases_found: in the data set.
        objects: measured, over all cases.
        objects_too_small: left out, since no slice shows enough of them at the network's size.
        prompts: boxes answered.
        dsc: of the model's masks.
        nsd: of them, as evaluation counts it: a slice is one voxel thick and its two faces are
            surface too.
        box_dsc: of the prompted boxes themselves, filled.
        box_nsd: of them.
        tracks: objects followed through their volume.
        dsc_3d: of the followed masks; None without volumes, or for a network without memory.
        box_dsc_3d: of the prompted box, filled, on every slice of the track.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: int
    cases_found: int
    objects: int
    objects_too_small: int
    prompts: int
    dsc: float | None
    nsd: float | None
    box_dsc: float | None
    box_nsd: float | None
    tracks: int
    dsc_3d: float | None
    box_dsc_3d: float | None


_FIGURES = ("dsc", "nsd", "box_dsc", "box_nsd", "dsc_3d", "box_dsc_3d")


@dataclass
class _CaseScores:
    """Name of a figure → object → its values."""

    values: Mapping[str, dict[int, list[float]]] = field(
        default_factory=lambda: {name: defaultdict(list) for name in _FIGURES}
    )
    too_small: int = 0

    def add(self, object_id: int, **figures: float) -> None:
        for name, value in figures.items():
            self.values[name][object_id].append(value)

    def mean(self, name: str) -> float | None:
        objects = [float(np.mean(values)) for values in self.values[name].values()]
        return float(np.mean(objects)) if objects else None


def measure_data(
    sources: Sequence[CaseSource], runner: PromptedNetwork, limits: Limits
) -> DataFigures:
    """Prompt ``runner`` with tight boxes from the ground truth of a data set.

    Args:
        sources: its cases.
        runner: the network.
        limits: how much is measured.

    Raises:
        DataError: a case cannot be read.
    """
    chosen = spread(sources, limits.cases)
    scores = [_measure_case(source.load(), runner, limits) for source in chosen]
    return DataFigures(
        cases=len(chosen),
        cases_found=len(sources),
        objects=sum(len(case.values["dsc"]) for case in scores),
        objects_too_small=sum(case.too_small for case in scores),
        prompts=sum(len(each) for case in scores for each in case.values["dsc"].values()),
        tracks=sum(len(case.values["box_dsc_3d"]) for case in scores),
        **{name: _mean(case.mean(name) for case in scores) for name in _FIGURES},
    )


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most ``limit`` items, evenly spread from the first to the last; the same every time."""
    if len(items) <= limit:
        return list(items)
    places = np.linspace(0, len(items) - 1, limit).round().astype(int)
    return [items[place] for place in places.tolist()]


def filled_boxes(boxes_N4: npt.NDArray[np.float32], height: int, width: int) -> Masks:
    """Masks (N, H, W) of boxes (N, 4) as x0, y0, x1, y1, last pixels included."""
    x0, y0, x1, y1 = (boxes_N4[:, side, None] for side in range(4))
    rows, columns = np.arange(height), np.arange(width)
    inside: Masks = ((rows >= y0) & (rows <= y1))[:, :, None] & ((columns >= x0) & (columns <= x1))[
        :, None, :
    ]
    return inside


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _measure_case(case: Case, runner: PromptedNetwork, limits: Limits) -> _CaseScores:
    assert case.label is not None
    scores = _CaseScores()
    visible = _visible(case, runner.image_size, limits.smallest)
    scores.too_small = sum(not slices for slices in visible.values())
    seen = spread([(each, slices) for each, slices in visible.items() if slices], limits.objects)
    predictor = VolumePredictor(runner, to_uint8(case, IntensityConfig()))
    prompted: dict[int, list[int]] = defaultdict(list)
    for object_id, slices in seen:
        for slice_index in spread(slices, limits.slices):
            prompted[slice_index].append(object_id)
    for slice_index in sorted(prompted):
        _measure_slice(case, slice_index, prompted[slice_index], predictor, scores, limits)
    for object_id, slices in seen:
        if len(slices) > 1 and isinstance(runner, SliceRunner):
            _measure_track(case, object_id, slices, predictor, scores, limits)
    return scores


def _visible(case: Case, size: int, smallest: int) -> dict[int, list[int]]:
    """Object → slices that show enough of it at the network's size."""
    assert case.label is not None
    slices_of: dict[int, list[int]] = {object_id: [] for object_id in case.object_ids}
    for slice_index, plane in enumerate(squash_labels(case.label, size)):
        areas = np.bincount(plane.ravel())
        for object_id in np.flatnonzero(areas >= smallest).tolist():
            if object_id:
                slices_of[object_id].append(slice_index)
    return slices_of


def _measure_slice(
    case: Case,
    slice_index: int,
    objects: Sequence[int],
    predictor: VolumePredictor,
    scores: _CaseScores,
    limits: Limits,
) -> None:
    """Tight boxes on one slice, all objects at once."""
    assert case.label is not None
    label = case.label[slice_index]
    boxes_N4 = np.stack([box_of(label == object_id) for object_id in objects])
    answers = predictor.segment_boxes(slice_index, boxes_N4)
    # A picture has no physical size: NSD is then in pixels, as the challenge counts it.
    is_picture = len(case.label) == 1
    spacing_mm = None if is_picture else (1.0, *case.spacing_mm[1:])
    step = -(-max(label.shape) // limits.picture_side) if is_picture else 1
    for object_id, answer, box in zip(
        objects, answers, filled_boxes(boxes_N4, *label.shape), strict=True
    ):
        truth = label == object_id
        near = [
            nsd(
                mask[::step, ::step],
                truth[::step, ::step],
                spacing_mm=spacing_mm,
                tolerance_mm=limits.nsd_tolerance_mm,
            )
            for mask in (answer, box)
        ]
        scores.add(
            object_id, dsc=dsc(answer, truth), nsd=near[0], box_dsc=dsc(box, truth), box_nsd=near[1]
        )


def _measure_track(
    case: Case,
    object_id: int,
    slices: Sequence[int],
    predictor: VolumePredictor,
    scores: _CaseScores,
    limits: Limits,
) -> None:
    """One box on the object's middle slice, followed forwards and then backwards."""
    assert case.label is not None
    start = slices[len(slices) // 2]
    before = limits.track_length // 2
    first = max(start - before, 0)
    last = min(start + limits.track_length - before - 1, len(case.label) - 1)
    truth = case.label[first : last + 1] == object_id
    boxes_N4 = box_of(truth[start - first])[None]
    followed = predictor.follow_boxes(start, boxes_N4, slices=range(first, last + 1))[0]
    box = np.broadcast_to(filled_boxes(boxes_N4, *truth.shape[1:])[0], truth.shape)
    scores.add(object_id, dsc_3d=dsc(followed, truth), box_dsc_3d=dsc(box, truth))
