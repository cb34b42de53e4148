"""Names of the official ``sam2`` state dict → names of transformers' ``Sam2VideoModel``."""

import re

import torch
from torch import Tensor

__all__ = ["from_official"]

_RULES: tuple[tuple[str, str], ...] = (
    (
        r"^image_encoder\.trunk\.patch_embed\.proj\.",
        "vision_encoder.backbone.patch_embed.projection.",
    ),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"(memory_fuser\.layers\.\d+)\.norm\.", r"\1.layer_norm."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
)

_THREE_LAYER_MLPS = (
    "mask_decoder.output_hypernetworks_mlps",
    "mask_decoder.iou_prediction_head",
    "mask_decoder.pred_obj_score_head",
    "object_pointer_proj",
)


def _rename_mlp(name: str) -> str:
    """``layers.k`` of an MLP → ``proj_in``, ``layers.j``, ``proj_out``."""
    if name.startswith(_THREE_LAYER_MLPS):
        places = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
        return re.sub(
            r"\.layers\.([012])\.(weight|bias)$", lambda m: f".{places[m[1]]}.{m[2]}", name
        )
    if ".mlp." in name:
        places = {"0": "proj_in", "1": "proj_out"}
        return re.sub(r"\.mlp\.layers\.([01])\.", lambda m: f".mlp.{places[m[1]]}.", name)
    return name


def _rename_downsampler(name: str) -> str:
    """``mask_downsampler.encoder.{3k, 3k+1, 12}`` → layer k's conv and norm, final conv."""
    found = re.match(r"^memory_encoder\.mask_downsampler\.encoder\.(\d+)\.(weight|bias)$", name)
    if not found:
        return name
    index, kind = int(found[1]), found[2]
    if index == 12:
        return f"memory_encoder.mask_downsampler.final_conv.{kind}"
    part = "conv" if index % 3 == 0 else "layer_norm"
    return f"memory_encoder.mask_downsampler.layers.{index // 3}.{part}.{kind}"


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict; shapes and values stay.

    The four point embeddings become one matrix, and the Gaussian matrix fills both the image's
    and the prompts' position code.
    """
    renamed: dict[str, Tensor] = {}
    points: dict[int, Tensor] = {}
    for name, value in state.items():
        point = re.match(r"^sam_prompt_encoder\.point_embeddings\.(\d)\.weight$", name)
        if point:
            points[int(point[1])] = value
            continue
        if name.endswith("pe_layer.positional_encoding_gaussian_matrix"):
            renamed["shared_image_embedding.positional_embedding"] = value
            renamed["prompt_encoder.shared_embedding.positional_embedding"] = value.clone()
            continue
        new = _rename_downsampler(name)
        for pattern, replacement in _RULES:
            new = re.sub(pattern, replacement, new)
        renamed[_rename_mlp(new)] = value
    if points:
        ordered = [points[index] for index in sorted(points)]
        renamed["prompt_encoder.point_embed.weight"] = torch.cat(ordered, dim=0)
    return renamed
