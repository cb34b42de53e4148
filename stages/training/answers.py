"""Loss terms of answers: against labels, and against the teacher.

Shape letters: R rows, S network input in pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from efficient_medsam2.networks.records import IGNORED_LABEL, Prompts, SliceRecord
from stages.training.losses import (
    box_weight,
    iou_loss,
    logit_distillation,
    mask_loss,
    presence_loss,
    soft_dice_loss,
)

__all__ = ["click_on_error", "label_terms", "teacher_mask_term", "teacher_terms"]


def label_terms(
    record: SliceRecord, mask_RSS: Tensor, *, bce: float, dice: float
) -> dict[str, Tensor]:
    """``mask``, ``iou`` and ``presence`` terms of answers against labels.

    An absent object (empty mask) trains the presence alone.
    """
    present = mask_RSS.flatten(1).any(1)
    terms = {"presence": presence_loss(record.object_score[:, 0], present.float())}
    if not present.any():
        zero = record.visible_logits.sum() * 0 + record.iou.sum() * 0
        return terms | {"mask": zero, "iou": zero}
    logits = F.interpolate(
        record.visible_logits[present].float(),
        size=mask_RSS.shape[-2:],
        mode="bilinear",
        align_corners=False,
    )[:, 0]
    target = mask_RSS[present]
    terms["mask"] = mask_loss(logits, target, weight_BHW=box_weight(target), bce=bce, dice=dice)
    terms["iou"] = iou_loss(record.best_iou[present, 0], logits, target)
    return terms


def teacher_mask_term(record: SliceRecord, teacher: SliceRecord, *, weight: float = 5.0) -> Tensor:
    """EdgeSAM's mask loss: 5 * BCE + 5 * Dice against the teacher's mask, at low resolution."""
    target = (teacher.mask_logits[:, 0].float() > 0).float()
    return mask_loss(
        record.visible_logits[:, 0],
        target,
        weight_BHW=box_weight(target),
        bce=weight,
        dice=weight,
    )


def teacher_terms(
    record: SliceRecord,
    teacher_logits_R1HW: Tensor,
    teacher_score_R1: Tensor,
    *,
    temperature: float,
) -> dict[str, Tensor]:
    """``kl``, ``dice`` and ``presence`` of answers against cached ones.

    Where the teacher found no object its logits say nothing about a shape: only presence counts.
    """
    there = teacher_score_R1[:, 0] > 0
    terms = {"presence": presence_loss(record.object_score[:, 0], teacher_score_R1[:, 0].sigmoid())}
    if not there.any():
        zero = record.visible_logits.sum() * 0
        return terms | {"kl": zero, "dice": zero}
    student = record.visible_logits[there, 0]
    teacher = teacher_logits_R1HW[there, 0].float()
    terms["kl"] = logit_distillation(student, teacher, temperature=temperature)
    terms["dice"] = soft_dice_loss(student, teacher.sigmoid())
    return terms


def click_on_error(prompts: Prompts, student: SliceRecord, teacher: SliceRecord) -> Prompts:
    """Each prompt with one more point, drawn from where student and teacher differ.

    The student's answer comes along as the mask to refine (EdgeSAM's second iteration). Rows that
    agree everywhere get an ignored point.
    """
    answer, target = student.mask_logits[:, 0] > 0, teacher.mask_logits[:, 0] > 0
    wrong = answer != target
    rows, _, width = wrong.shape
    flat = wrong.flatten(1)
    some = flat.any(1)
    weights = torch.where(some[:, None], flat.float(), torch.ones_like(flat, dtype=torch.float32))
    place = torch.multinomial(weights, 1)[:, 0]
    stride = 4.0
    point = torch.stack([(place % width) + 0.5, (place // width) + 0.5], dim=1) * stride - 0.5
    label = target.flatten(1)[torch.arange(rows, device=place.device), place].long()
    label = torch.where(some, label, IGNORED_LABEL)
    return Prompts(
        points_BN2=torch.cat([prompts.points_BN2, point[:, None]], dim=1),
        labels_BN=torch.cat([prompts.labels_BN, label[:, None]], dim=1),
        mask_logits=student.mask_logits.detach().clamp(-32, 32),
    )
