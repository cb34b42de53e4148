"""A student's three levels without its pyramid's widest maps.

The pyramid adds the coarser level, doubled, to a 1x1 convolution of the backbone's map, and the
decoder's 1x1 convolutions then narrow the sums at strides 4 and 8 from C channels to C/8 and C/4.
All of this is linear, and a 1x1 convolution commutes with doubling by nearest neighbours: two 1x1
convolutions in a row are one, whose weight is the product of the two. So the maps of C channels at
strides 4 and 8, by far the largest of a student, are never made; values agree with those of the
modules in a row to rounding. The position codes that the modules make of each level are not asked
for here at all.

Letters: C width of the pyramid, B rows, H W rows and columns of a level.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam2VideoModel
from transformers.models.edgetam.modeling_edgetam import EdgeTamVisionNeck

from efficient_medsam2.networks.records import SliceFeatures

__all__ = ["has_student_levels", "student_levels"]

_STRIDE_16 = 2


def has_student_levels(model: Sam2VideoModel) -> bool:
    """Whether this network's pyramid is one of 1x1 convolutions, as a student's is."""
    neck = getattr(model.vision_encoder, "neck", None)
    return isinstance(neck, EdgeTamVisionNeck) and all(
        convolution.kernel_size == (1, 1) and convolution.stride == (1, 1)
        for convolution in neck.convs
    )


def student_levels(model: Sam2VideoModel, pixels_B3SS: Tensor) -> SliceFeatures:
    """Normalised pixels (B, 3, S, S) → what ``SliceRunner.encode`` gives.

    Args:
        model: of which ``has_student_levels`` is true.
        pixels_B3SS: of its image size.
    """
    neck, decoder = model.vision_encoder.neck, model.mask_decoder
    maps: list[Tensor] = list(model.vision_encoder.backbone(pixels_B3SS).last_hidden_state)
    s16 = _coarse(neck, maps, _STRIDE_16)
    return SliceFeatures(
        s4=_narrowed(neck, maps, 0, s16, decoder.conv_s0.weight, decoder.conv_s0.bias),
        s8=_narrowed(neck, maps, 1, s16, decoder.conv_s1.weight, decoder.conv_s1.bias),
        s16=s16,
    )


def _lateral(neck: EdgeTamVisionNeck, level: int) -> nn.Conv2d:
    convolution: nn.Conv2d = neck.convs[len(neck.convs) - 1 - level]
    return convolution


def _adds_coarser(neck: EdgeTamVisionNeck, level: int) -> bool:
    return level in neck.fpn_top_down_levels and level < len(neck.convs) - 1


def _doubled(maps_BCHW: Tensor) -> Tensor:
    return F.interpolate(maps_BCHW.float(), scale_factor=2.0, mode="nearest").to(maps_BCHW.dtype)


def _coarse(neck: EdgeTamVisionNeck, maps: list[Tensor], level: int) -> Tensor:
    """A level of the pyramid as it is, (B, C, H, W)."""
    lateral = _lateral(neck, level)
    own: Tensor = lateral(maps[level].to(lateral.weight.dtype))
    return own + _doubled(_coarse(neck, maps, level + 1)) if _adds_coarser(neck, level) else own


def _narrowed(
    neck: EdgeTamVisionNeck,
    maps: list[Tensor],
    level: int,
    s16: Tensor,
    narrow_NC11: Tensor,
    bias_N: Tensor | None,
) -> Tensor:
    """A level of the pyramid under a 1x1 convolution from C to N channels, (B, N, H, W)."""
    if level == _STRIDE_16:
        return F.conv2d(s16, narrow_NC11, bias_N)
    lateral = _lateral(neck, level)
    matrix = narrow_NC11.flatten(1)
    weight = (matrix @ lateral.weight.flatten(1))[:, :, None, None]
    if lateral.bias is not None:
        inner = matrix @ lateral.bias
        bias_N = inner if bias_N is None else inner + bias_N
    own = F.conv2d(maps[level].to(weight.dtype), weight, bias_N)
    if not _adds_coarser(neck, level):
        return own
    return own + _doubled(_narrowed(neck, maps, level + 1, s16, narrow_NC11, None))
