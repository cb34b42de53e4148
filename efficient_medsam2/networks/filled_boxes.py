"""A box as a mask prompt: what networks trained from nothing learn faster from than two points.

Shape letters: B rows.
"""

import torch
from torch import Tensor

from efficient_medsam2.networks.records import Prompts

__all__ = ["filled_boxes"]

INSIDE_LOGIT = 10.0
"""Logit inside a filled box, and its negative outside: what ``SAM2Base`` gives a user's mask."""


def filled_boxes(prompts: Prompts, size: int, image_size: int) -> Tensor:
    """Logits (B, 1, size, size): +10 inside each row's box, -10 outside; 0 without a box.

    The smallest box still fills one cell.
    """
    scale = size / image_size
    if prompts.labels_BN.shape[1] < 2:
        return prompts.points_BN2.new_zeros(prompts.labels_BN.shape[0], 1, size, size)
    first, last = prompts.labels_BN[:, :2].unbind(1)
    has_box = (first == 2) & (last == 3)
    corners = prompts.points_BN2[:, :2] * scale
    centre = torch.arange(size, device=corners.device, dtype=corners.dtype) + 0.5
    low = corners[:, 0].floor()
    high = torch.maximum(corners[:, 1].ceil(), low + 1)
    inside_x = (centre >= low[:, :1]) & (centre <= high[:, :1])
    inside_y = (centre >= low[:, 1:]) & (centre <= high[:, 1:])
    inside = (inside_y[:, :, None] & inside_x[:, None, :]).unsqueeze(1)
    logits = torch.where(inside, INSIDE_LOGIT, -INSIDE_LOGIT)
    return logits * has_box[:, None, None, None]
