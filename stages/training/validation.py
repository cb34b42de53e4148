"""How good a student is on the validation split of the cache: what picks its best weights."""

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cache import CacheReader
from cache.dataset import ShuffledRows, read_slices, read_tracks, select_tracks
from efficient_medsam2.images import to_network_input
from efficient_medsam2.metrics import dsc
from efficient_medsam2.networks.records import Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.prompts import SampledPrompt, box_of, stack_prompts
from stages.training.norms import recalibrate_norms
from stages.training.resizing import resize_images, resize_labels, resize_prompts
from stages.training.student import smallest_object
from stages.training.tracking import Start, follow_windows, prompted_by_mask

__all__ = ["cache_validation", "recalibrate_on_cache"]

_ROWS_AT_ONCE = 16
_TRACK_SLICES_AT_ONCE = 96
_CALIBRATED_AT_ONCE, _CALIBRATION_BATCHES = 32, 8


def cache_validation(
    reader: CacheReader,
    runner: SliceRunner,
    *,
    limit: int = 64,
    recalibrate: bool = False,
) -> Callable[[], dict[str, float]] | None:
    """A function that measures the runner as it is at the moment of the call.

    Args:
        reader: the cache.
        runner: the network, which the caller puts into ``eval`` mode.
        limit: at most so many slices and tracks, evenly spread.
        recalibrate: measure the encoder's batch statistics on training slices first.

    Returns:
        A function that gives ``dsc`` (tight boxes), ``dsc_3d`` (tracks, where the split has any)
        and their mean ``score``; None where the validation split is empty.
    """
    if "validation" not in reader.index.cases.splits:
        return None
    smallest = smallest_object(reader)
    rows = _spread(reader.index.select("slices", split="validation", view=0), limit)
    tracks = _spread(select_tracks(reader, split="validation", minimum_length=2), limit)
    if not len(rows):
        return None

    @torch.no_grad()
    def measure() -> dict[str, float]:
        if recalibrate:
            recalibrate_on_cache(reader, runner)
        flat = _boxes(reader, runner, rows, smallest)
        if not flat:
            return {"dsc": 0.0, "score": 0.0}
        figures = {"dsc": float(np.mean(flat))}
        followed = _tracks(reader, runner, tracks)
        if followed:
            figures["dsc_3d"] = float(np.mean(followed))
        return figures | {"score": float(np.mean(list(figures.values())))}

    return measure


def recalibrate_on_cache(reader: CacheReader, runner: SliceRunner) -> None:
    """Measure the encoder's batch statistics on training slices of the cache.

    Batches are shuffled: neighbouring slices look alike, and statistics within such a batch are
    far from those of the data.
    """
    rows = reader.index.select("slices", split="train", view=0)
    order = ShuffledRows(rows, min(_CALIBRATED_AT_ONCE, len(rows)), seed=0)
    recalibrate_norms(
        runner,
        (
            _pixels(runner, read_slices(reader, order.batch(number), levels=()).image)
            for number in range(_CALIBRATION_BATCHES)
        ),
    )


def _pixels(runner: SliceRunner, image_BCTT: Tensor) -> Tensor:
    """Cached images as this network's input, on its device."""
    device = next(runner.model.parameters()).device
    return to_network_input(resize_images(image_BCTT, runner.image_size).to(device))


def _spread(rows: np.ndarray, limit: int) -> np.ndarray:
    if len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]


def _masks(record: SliceRecord, size: int) -> np.ndarray:
    logits = F.interpolate(
        record.mask_logits.float(), size=(size, size), mode="bilinear", align_corners=False
    )
    masks: np.ndarray = (logits[:, 0] > 0).cpu().numpy()
    return masks


class _Encoded(Sequence[SliceFeatures]):
    """Features of each step of T tracks, encoded when they are asked for: one step's at a time."""

    def __init__(self, runner: SliceRunner, image_TLCSS: Tensor) -> None:
        self._runner = runner
        self._image = image_TLCSS

    def __len__(self) -> int:
        return self._image.shape[1]

    @overload
    def __getitem__(self, step: int) -> SliceFeatures: ...

    @overload
    def __getitem__(self, step: slice) -> Sequence[SliceFeatures]: ...

    def __getitem__(self, step: int | slice) -> SliceFeatures | Sequence[SliceFeatures]:
        if isinstance(step, slice):
            return _Encoded(self._runner, self._image[:, step])
        if not 0 <= step < len(self):
            raise IndexError(step)
        return self._runner.encode(_pixels(self._runner, self._image[:, step]))


def _boxes(
    reader: CacheReader, runner: SliceRunner, rows: np.ndarray, smallest: int
) -> list[float]:
    device = next(runner.model.parameters()).device
    scores: list[float] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        batch = read_slices(reader, rows[start : start + _ROWS_AT_ONCE], levels=())
        found: list[tuple[int, np.ndarray]] = []
        for index, label in enumerate(batch.label.numpy()):
            for object_id in np.unique(label[label > 0]):
                mask = label == object_id
                if mask.sum() >= smallest:
                    found.append((index, mask))
        if not found:
            continue
        prompts = stack_prompts(
            [
                SampledPrompt(
                    kind="box",
                    points_N2=box_of(mask).reshape(2, 2),
                    labels_N=np.array([2, 3], dtype=np.int64),
                )
                for _, mask in found
            ]
        )
        prompts = resize_prompts(prompts, before=batch.label.shape[-1], after=runner.image_size)
        features = runner.encode(_pixels(runner, batch.image))
        slice_of = torch.tensor([index for index, _ in found], device=device)
        record = runner.prompted(features.take(slice_of), prompts.to(device))
        answers = _masks(record, batch.label.shape[-1])
        scores += [dsc(answer, mask) for answer, (_, mask) in zip(answers, found, strict=True)]
    return scores


def _tracks(reader: CacheReader, runner: SliceRunner, tracks: np.ndarray) -> list[float]:
    """DSC of each track's stack of masks against the labels, tracks of one length at a time."""
    device = next(runner.model.parameters()).device
    lengths = reader.index.tracks.lengths[tracks]
    scores: list[float] = []
    for length in np.unique(lengths).tolist():
        same = tracks[lengths == length]
        at_once = max(1, min(_ROWS_AT_ONCE, _TRACK_SLICES_AT_ONCE // length))
        for start in range(0, len(same), at_once):
            batch = read_tracks(reader, same[start : start + at_once], length=length)
            count = len(batch.tracks)
            size = batch.label.shape[-1]
            prompts = resize_prompts(
                Prompts(points_BN2=batch.points, labels_BN=batch.labels),
                before=size,
                after=runner.image_size,
            )
            first = resize_labels(batch.label[:, 0], runner.image_size)
            records, _ = follow_windows(
                runner,
                _Encoded(runner, batch.image),
                Start(
                    prompts=prompts.to(device),
                    masks_T1SS=(first == batch.object_id[:, None, None]).float().unsqueeze(1),
                    by_mask=prompted_by_mask(batch),
                ),
                num_frames=batch.num_frames,
            )
            answers = np.stack([_masks(record, size) for record in records], axis=1)
            truth = (batch.label == batch.object_id[:, None, None, None]).numpy()
            scores += [dsc(answers[row], truth[row]) for row in range(count)]
    return scores
