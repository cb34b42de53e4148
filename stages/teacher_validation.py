"""How good a teacher is while it trains: what picks its best weights.

Shape letters: D slices, N rows (an object on a slice), S input size.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efficient_medsam2.images.preprocess import to_network_input
from efficient_medsam2.metrics import dsc
from efficient_medsam2.networks.records import (
    Prompts,
    SliceFeatures,
    SliceRecord,
    boxes_to_prompts,
)
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.prompts import box_of
from stages.teacher_batches import visible_objects
from stages.training.windows import LabelledVolume

__all__ = ["validate_teacher"]


@torch.no_grad()
def validate_teacher(
    runner: SliceRunner, volumes: list[LabelledVolume], smallest: int
) -> dict[str, float]:
    """Mean DSC from tight boxes on every slice, and along tracks from each volume's middle slice.

    Args:
        runner: the teacher as it is now.
        volumes: held-out volumes.
        smallest: objects below so many pixels of a slice are not prompted.

    Returns:
        ``dsc``, ``dsc_3d`` where a middle slice shows an object, and their mean ``score``; a
        score of 0 where no slice shows one.
    """
    device = next(runner.model.parameters()).device
    flat: list[float] = []
    tracked: list[float] = []
    for volume in volumes:
        pixels, label = _squashed(volume, runner.image_size)
        rows = [
            (index, int(object_id))
            for index, each in enumerate(label)
            for object_id in visible_objects(each, smallest)
        ]
        if not rows:
            continue
        features = runner.encode(to_network_input(pixels.to(device)))
        masks = [label[index] == object_id for index, object_id in rows]
        boxes = torch.from_numpy(np.stack([box_of(mask) for mask in masks]))
        prompts = boxes_to_prompts(boxes.to(device))
        slice_of = torch.tensor([index for index, _ in rows], device=device)
        record = runner.prompted(features.take(slice_of), prompts)
        answers = _masks(record, runner.image_size)
        flat += [dsc(answer, mask) for answer, mask in zip(answers, masks, strict=True)]
        tracked += _tracked_dsc(runner, features, label, rows, prompts)
    if not flat:
        return {"dsc": 0.0, "score": 0.0}
    figures = {"dsc": float(np.mean(flat))}
    if tracked:
        figures["dsc_3d"] = float(np.mean(tracked))
    return figures | {"score": float(np.mean(list(figures.values())))}


def _squashed(volume: LabelledVolume, size: int) -> tuple[Tensor, np.ndarray]:
    """Image uint8 (D, 1, S, S) and label (D, S, S) of a volume."""
    image = torch.from_numpy(volume.image).unsqueeze(1).float()
    pixels = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
    label = torch.from_numpy(volume.label.astype(np.float32)).unsqueeze(1)
    scaled = F.interpolate(label, size=(size, size))[:, 0]
    return pixels.round().to(torch.uint8), scaled.numpy().astype(np.int64)


def _masks(record: SliceRecord, size: int) -> np.ndarray:
    logits = F.interpolate(record.mask_logits.float(), size=(size, size), mode="bilinear")
    masks: np.ndarray = (logits[:, 0] > 0).cpu().numpy()
    return masks


def _tracked_dsc(
    runner: SliceRunner,
    features: SliceFeatures,
    label_DSS: np.ndarray,
    rows: list[tuple[int, int]],
    prompts: Prompts,
) -> list[float]:
    """DSC of each object's 3D mask when tracked both ways from the middle slice.

    Args:
        runner: the teacher.
        features: of the D slices.
        label_DSS: their labels.
        rows: (slice, object) of each prompt.
        prompts: N prompts.
    """
    depth, size = label_DSS.shape[0], runner.image_size
    middle = depth // 2
    device = features.s16.device
    starts = [number for number, (index, _) in enumerate(rows) if index == middle]
    if not starts:
        return []
    prompt = prompts.take(torch.tensor(starts, device=device))

    def of_slice(index: int) -> SliceFeatures:
        return features.take(torch.full((len(starts),), index, device=device))

    predicted = np.zeros((len(starts), depth, size, size), dtype=bool)
    first = runner.prompted(of_slice(middle), prompt)
    predicted[:, middle] = _masks(first, size)
    memory = runner.remember(of_slice(middle), first, position=middle, prompted=True)
    for direction in (1, -1):
        bank = [memory]
        index = middle + direction
        while 0 <= index < depth:
            here = of_slice(index)
            record = runner.tracked(
                here, bank, position=index, reverse=direction < 0, num_frames=depth
            )
            predicted[:, index] = _masks(record, size)
            bank.append(runner.remember(here, record, position=index, prompted=False))
            index += direction
    return [
        dsc(predicted[order], label_DSS == rows[number][1]) for order, number in enumerate(starts)
    ]
