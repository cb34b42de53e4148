"""Losses as pure functions, in float32.

Shape letters: B rows, C channels, H W rows and columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "box_weight",
    "feature_loss",
    "iou_loss",
    "logit_distillation",
    "mask_loss",
    "presence_loss",
    "soft_dice_loss",
]


_TINY = 1e-8


def soft_dice_loss(logits_BHW: Tensor, target_BHW: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - soft Dice, mean over rows (Milletari et al. 2016). ``target`` in [0, 1]."""
    probability = logits_BHW.float().sigmoid()
    target = target_BHW.float()
    overlap = (probability * target).flatten(1).sum(1)
    total = probability.flatten(1).sum(1) + target.flatten(1).sum(1)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def mask_loss(
    logits_BHW: Tensor,
    target_BHW: Tensor,
    *,
    weight_BHW: Tensor | None = None,
    bce: float = 1.0,
    dice: float = 1.0,
) -> Tensor:
    """``bce`` * binary cross-entropy + ``dice`` * soft Dice, mean over rows and pixels.

    Args:
        logits_BHW: predicted logits.
        target_BHW: probabilities or 0/1, same shape.
        weight_BHW: weight of each pixel in the cross-entropy; normalised per row.
        bce: weight of the cross-entropy.
        dice: weight of the Dice term.
    """
    pixels = F.binary_cross_entropy_with_logits(
        logits_BHW.float(), target_BHW.float(), reduction="none"
    )
    if weight_BHW is None:
        cross = pixels.mean()
    else:
        weighted = (pixels * weight_BHW).flatten(1).sum(1)
        cross = (weighted / weight_BHW.flatten(1).sum(1)).mean()
    return bce * cross + dice * soft_dice_loss(logits_BHW, target_BHW)


def box_weight(target_BHW: Tensor, *, pad: float = 0.25, outside: float = 0.1) -> Tensor:
    """1 inside each mask's padded bounding box, ``outside`` elsewhere; 1 where a mask is empty.

    Most pixels of a slice are far from a small object and easy; this keeps them from drowning it.
    """
    target = target_BHW > 0.5
    height, width = target.shape[1:]

    def span(line_BL: Tensor) -> tuple[Tensor, Tensor]:
        length = line_BL.shape[1]
        index = torch.arange(length, device=line_BL.device)
        first = torch.where(line_BL, index, length).min(1).values
        last = torch.where(line_BL, index, -1).max(1).values
        reach = ((last - first + 1) * pad).clamp(min=2)
        return first - reach, last + reach

    rows = torch.arange(height, device=target.device)
    columns = torch.arange(width, device=target.device)
    top, bottom = span(target.any(2))
    left, right = span(target.any(1))
    inside_rows = (rows >= top[:, None]) & (rows <= bottom[:, None])
    inside_columns = (columns >= left[:, None]) & (columns <= right[:, None])
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    inside |= ~target.flatten(1).any(1)[:, None, None]
    weight: Tensor = torch.where(inside, 1.0, outside)
    return weight


def feature_loss(student_BCHW: Tensor, teacher_BCHW: Tensor, sigma_C: Tensor) -> Tensor:
    """MSE in units of the teacher's channel deviations + (1 - cosine over channels).

    Args:
        student_BCHW: the student's features at one level.
        teacher_BCHW: the cached features.
        sigma_C: (C,) standard deviation per channel from the cache's statistics.
    """
    student, teacher = student_BCHW.float(), teacher_BCHW.float()
    # Deviations and norms are divided by once they are sums: no map is made for it.
    squared_C = F.mse_loss(student, teacher, reduction="none").mean(dim=(0, 2, 3))
    squared = (squared_C / sigma_C.clamp(min=1e-6).square()).mean()
    product = (student * teacher).sum(1)
    norms = student.norm(dim=1).clamp(min=_TINY) * teacher.norm(dim=1).clamp(min=_TINY)
    loss: Tensor = squared + (1 - (product / norms).mean())
    return loss


def logit_distillation(
    student_BHW: Tensor, teacher_BHW: Tensor, *, temperature: float = 4.0
) -> Tensor:
    """KL between the per-pixel Bernoullis at a temperature, times its square (Hinton et al. 2015).

    Zero where student and teacher agree.
    """
    target = (teacher_BHW.float() / temperature).sigmoid()
    logits = student_BHW.float() / temperature
    cross = F.binary_cross_entropy_with_logits(logits, target)
    entropy = torch.special.entr(target) + torch.special.entr(1 - target)
    loss: Tensor = (cross - entropy.mean()) * temperature**2
    return loss


def iou_loss(predicted_B: Tensor, logits_BHW: Tensor, target_BHW: Tensor) -> Tensor:
    """L1 between the predicted and the true IoU of each row's mask (SAM)."""
    mask, truth = logits_BHW.detach() > 0, target_BHW > 0.5
    inter = (mask & truth).flatten(1).sum(1).float()
    union = (mask | truth).flatten(1).sum(1).float()
    true_iou = torch.where(union > 0, inter / union.clamp(min=1), 1.0)
    return (predicted_B.float() - true_iou).abs().mean()


def presence_loss(score_B: Tensor, present_B: Tensor) -> Tensor:
    """Cross-entropy of the object score logit."""
    loss: Tensor = F.binary_cross_entropy_with_logits(score_B.float(), present_B.float())
    return loss
