"""How good a teacher is while it trains: what picks its best weights.

Shape letters: D slices, N rows (an object on a slice), S input size.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efficient_medsam2.images.preprocess import squash_labels, squash_slices, to_network_input
from efficient_medsam2.metrics import dsc
from efficient_medsam2.networks.records import SliceFeatures, SliceRecord, boxes_to_prompts
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.prompts import box_of
from stages.teacher_data import KINDS
from stages.training.windows import LabelledVolume, visible_objects

__all__ = ["TRACK_LENGTH", "validate_teacher"]

TRACK_LENGTH = 11
"""Slices of a track around its prompted one: what the evaluation measures by default."""

Scores = dict[tuple[int, int], list[float]]
"""(kind, label) → DSC of each row; (0, 0) where a volume's objects have no kinds."""


@torch.no_grad()
def validate_teacher(
    runner: SliceRunner, volumes: list[LabelledVolume], smallest: int
) -> dict[str, float]:
    """DSC from tight boxes on every slice, and along tracks from each object's middle slice.

    Args:
        runner: the teacher as it is now.
        volumes: held-out volumes.
        smallest: objects below so many pixels of a slice are not prompted.

    Returns:
        ``dsc`` and ``dsc_3d``, means over structures of each structure's mean, the latter where
        an object is on two slices or more; both by kind of structure (``dsc_cerebellum``), where
        there are kinds; and ``score``, the mean of the two means over all rows alike, because a
        structure that the volumes show on three slices says little: what picks weights must not
        hang on it. A score of 0 where no slice shows an object.
    """
    flat: Scores = defaultdict(list)
    tracked: Scores = defaultdict(list)
    for volume in volumes:
        _measure(runner, volume, smallest, flat, tracked)
    if not flat:
        return {"dsc": 0.0, "score": 0.0}
    figures = {"dsc": _macro(flat)}
    means = [_over_rows(flat)]
    if tracked:
        figures["dsc_3d"] = _macro(tracked)
        means.append(_over_rows(tracked))
    figures["score"] = float(np.mean(means))
    return figures | _by_kind("dsc", flat) | _by_kind("dsc_3d", tracked)


def _measure(
    runner: SliceRunner,
    volume: LabelledVolume,
    smallest: int,
    flat: Scores,
    tracked: Scores,
) -> None:
    """Add one volume's scores."""
    device = next(runner.model.parameters()).device
    label = squash_labels(volume.label, runner.image_size).astype(np.int64)
    rows = [
        (index, int(object_id))
        for index, each in enumerate(label)
        for object_id in visible_objects(each, smallest)
    ]
    if not rows:
        return
    pixels = torch.from_numpy(squash_slices(volume.image, runner.image_size))
    features = runner.encode(to_network_input(pixels.to(device)))
    masks = [label[index] == object_id for index, object_id in rows]
    slice_of = torch.tensor([index for index, _ in rows], device=device)
    prompts = boxes_to_prompts(_boxes(masks).to(device))
    answers = _masks(runner.prompted(features.take(slice_of), prompts), runner.image_size)
    slices_of: dict[int, list[int]] = defaultdict(list)
    for answer, mask, (index, object_id) in zip(answers, masks, rows, strict=True):
        flat[_structure(volume, object_id)].append(dsc(answer, mask))
        slices_of[object_id].append(index)
    for object_id, slices in slices_of.items():
        if len(slices) > 1:
            score = _tracked_dsc(runner, features, label == object_id, slices[len(slices) // 2])
            tracked[_structure(volume, object_id)].append(score)


def _structure(volume: LabelledVolume, object_id: int) -> tuple[int, int]:
    return (volume.kinds[object_id], object_id) if volume.kinds else (0, 0)


def _macro(scores: Mapping[tuple[int, int], Sequence[float]]) -> float:
    return float(np.mean([np.mean(values) for values in scores.values()]))


def _over_rows(scores: Mapping[tuple[int, int], Sequence[float]]) -> float:
    return float(np.mean([value for values in scores.values() for value in values]))


def _by_kind(prefix: str, scores: Mapping[tuple[int, int], Sequence[float]]) -> dict[str, float]:
    figures = {}
    for name, number in KINDS.items():
        values = [value for (kind, _), each in scores.items() if kind == number for value in each]
        if values:
            figures[f"{prefix}_{name}"] = float(np.mean(values))
    return figures


def _boxes(masks: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack([box_of(mask) for mask in masks]))


def _masks(record: SliceRecord, size: int) -> np.ndarray:
    logits = F.interpolate(record.mask_logits.float(), size=(size, size), mode="bilinear")
    masks: np.ndarray = (logits[:, 0] > 0).cpu().numpy()
    return masks


def _tracked_dsc(
    runner: SliceRunner, features: SliceFeatures, mask_DSS: np.ndarray, start: int
) -> float:
    """DSC of an object's 3D mask when followed both ways from one prompted slice."""
    device = features.s16.device
    before = TRACK_LENGTH // 2
    first = max(start - before, 0)
    last = min(start + TRACK_LENGTH - before - 1, len(mask_DSS) - 1)

    def of_slice(index: int) -> SliceFeatures:
        return features.take(torch.tensor([index], device=device))

    predicted = np.zeros((last + 1 - first, *mask_DSS.shape[1:]), dtype=bool)
    prompt = boxes_to_prompts(_boxes([mask_DSS[start]]).to(device))
    answer = runner.prompted(of_slice(start), prompt)
    predicted[start - first] = _masks(answer, runner.image_size)[0]
    memory = runner.remember(of_slice(start), answer, position=start, prompted=True)
    for path in (range(start + 1, last + 1), range(start - 1, first - 1, -1)):
        bank = [memory]
        for index in path:
            here = of_slice(index)
            record = runner.tracked(
                here, bank, position=index, reverse=index < start, num_frames=len(mask_DSS)
            )
            predicted[index - first] = _masks(record, runner.image_size)[0]
            bank.append(runner.remember(here, record, position=index, prompted=False))
    return dsc(predicted, mask_DSS[first : last + 1])
