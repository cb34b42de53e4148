"""Names of the official ``segment_anything`` state dict → names of transformers' ``SamModel``."""

import re

from torch import Tensor

__all__ = ["from_segment_anything"]

_RULES: tuple[tuple[str, str], ...] = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^vision_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^vision_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^vision_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^vision_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
)

_MLP_PLACES = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
_MLP = re.compile(
    r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))"
    r"\.layers\.([012])\.(weight|bias)$"
)


def from_segment_anything(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict; shapes and values stay.

    The Gaussian matrix fills both the image's and the prompts' position code.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix":
            renamed["shared_image_embedding.positional_embedding"] = value
            renamed["prompt_encoder.shared_embedding.positional_embedding"] = value.clone()
            continue
        new = _MLP.sub(lambda m: f"{m[1]}.{_MLP_PLACES[m[2]]}.{m[3]}", name)
        for pattern, replacement in _RULES:
            new = re.sub(pattern, replacement, new)
        renamed[new] = value
    return renamed
