"""A user's binary mask as a network takes it.

Shape letters: B rows, S network input in pixels, s side of the low-res logits.
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["MASK_BIAS", "MASK_SCALE", "low_res_logits"]

MASK_SCALE, MASK_BIAS = 20.0, -10.0
"""Mask probabilities become logits, and enter the memory encoder, as ``p * 20 - 10`` (SAM2Base)."""


def low_res_logits(mask_B1SS: Tensor, side: int) -> Tensor:
    """Binary masks (B, 1, S, S) of a float type as logits (B, 1, s, s).

    -10 outside and 10 inside, antialiased to the low resolution (``SAM2Base``). With no points
    beside it this is the prompt of a mask on a single slice.
    """
    return F.interpolate(
        mask_B1SS * MASK_SCALE + MASK_BIAS,
        size=(side, side),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
