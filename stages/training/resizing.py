"""From the teacher's grids to those of a student of another image size, and back.

Everything here leaves values as they are, bit for bit, where the two sizes are equal.

Shape letters: B rows, C channels, T the teacher's and S the student's network input in pixels.
"""

from typing import assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efficient_medsam2.images import Squash, squash_labels, squash_slices
from efficient_medsam2.networks.records import Prompts
from efficient_medsam2.networks.student import ResizeMode

__all__ = ["resize_images", "resize_labels", "resize_maps", "resize_prompts"]


def resize_images(image_BCTT: Tensor, size: int) -> Tensor:
    """uint8 images (B, 1 or 3, T, T) → (B, 1 or 3, S, S), as ``squash_slices`` squashes a slice.

    Pillow's bicubic filter, which is anti-aliased: the same bytes on every machine.
    """
    if image_BCTT.shape[-1] == size:
        return image_BCTT
    pictures = image_BCTT.numpy()
    flat = pictures[:, 0] if pictures.shape[1] == 1 else pictures.transpose(0, 2, 3, 1)
    return torch.from_numpy(squash_slices(flat, size))


def resize_labels(label_BTT: Tensor, size: int) -> Tensor:
    """Label maps (B, T, T) → (B, S, S): each pixel takes the label at its centre."""
    if label_BTT.shape[-1] == size:
        return label_BTT
    squashed = squash_labels(label_BTT.numpy(), size)
    return torch.from_numpy(squashed.astype(np.int32)).to(label_BTT.dtype)


def resize_maps(maps_BCHW: Tensor, side: int, mode: ResizeMode | None) -> Tensor:
    """Feature maps or logits (B, C, H, H) → (B, C, side, side).

    Args:
        maps_BCHW: of any float type; without channels or rows they stay empty.
        side: of the result.
        mode: how; None is right only where the side stays.
    """
    if maps_BCHW.shape[-1] == side:
        return maps_BCHW
    assert mode is not None, f"maps of side {maps_BCHW.shape[-1]} for a student's {side}"
    if maps_BCHW.numel() == 0:
        return maps_BCHW.new_zeros(*maps_BCHW.shape[:2], side, side)
    match mode:
        case "bilinear":
            return F.interpolate(
                maps_BCHW.float(),
                size=(side, side),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
        case "area":
            return F.interpolate(maps_BCHW.float(), size=(side, side), mode="area")
        case _:
            assert_never(mode)


def resize_prompts(
    prompts: Prompts, *, before: int, after: int, mode: ResizeMode | None = None
) -> Prompts:
    """Prompts on a network input of ``before`` pixels → on one of ``after`` pixels.

    Coordinates scale as those of a user's prompt do on the way to a network (``Squash``).

    Args:
        prompts: with or without a mask to refine.
        before: side of the input that they are on.
        after: side of the input that they are wanted on.
        mode: how a mask to refine is resized.
    """
    if before == after:
        return prompts
    squash = Squash(height=before, width=before, size=after)
    points = squash.points_to_network(prompts.points_BN2.cpu().numpy()).astype(np.float32)
    mask = prompts.mask_logits
    return Prompts(
        points_BN2=torch.from_numpy(points).to(prompts.points_BN2.device),
        labels_BN=prompts.labels_BN,
        mask_logits=None if mask is None else resize_maps(mask, after // 4, mode),
    )
