"""Names of transformers' ``Sam2VideoModel`` → names of the official ``sam2`` state dict.

The inverse of :mod:`efficient_medsam2.teachers.official`, value for value: what it writes, the
official code loads with its own configuration files.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from transformers import Sam2VideoModel

from efficient_medsam2.errors import NetworkConfigError
from efficient_medsam2.networks.hiera import SAM2_SIZES, Sam2Size, official_config
from efficient_medsam2.networks.runner import SliceRunner

__all__ = ["official_shapes", "save_official", "size_of_shapes", "to_official"]

_RULES: tuple[tuple[str, str], ...] = (
    (
        r"^vision_encoder\.backbone\.patch_embed\.projection\.",
        "image_encoder.trunk.patch_embed.proj.",
    ),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"^memory_attention\.layer_norm\.", "memory_attention.norm."),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"(\.fuser\.layers\.\d+)\.layer_norm\.", r"\1.norm."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"\.scale$", ".gamma"),
)

_THREE_LAYER_MLPS = (
    "sam_mask_decoder.output_hypernetworks_mlps",
    "sam_mask_decoder.iou_prediction_head",
    "sam_mask_decoder.pred_obj_score_head",
    "obj_ptr_proj",
)

_POINTS = "prompt_encoder.point_embed.weight"
_GAUSSIAN = "shared_image_embedding.positional_embedding"
_PROMPTS_GAUSSIAN = "prompt_encoder.shared_embedding.positional_embedding"


def _rename_mlp(name: str) -> str:
    """``proj_in``, ``layers.j``, ``proj_out`` of an MLP → ``layers.k``."""
    if name.startswith(_THREE_LAYER_MLPS):
        places = {"proj_in": "0", "layers.0": "1", "proj_out": "2"}
        return re.sub(
            r"\.(proj_in|layers\.0|proj_out)\.(weight|bias)$",
            lambda found: f".layers.{places[found[1]]}.{found[2]}",
            name,
        )
    return name.replace(".mlp.proj_in.", ".mlp.layers.0.").replace(
        ".mlp.proj_out.", ".mlp.layers.1."
    )


def _rename_downsampler(name: str) -> str:
    """Layer k's conv and norm, final conv → ``mask_downsampler.encoder.{3k, 3k+1, 12}``."""
    start = "memory_encoder.mask_downsampler."
    name = name.replace(f"{start}final_conv.", f"{start}encoder.12.")
    found = re.match(rf"^{re.escape(start)}layers\.(\d+)\.(conv|layer_norm)\.(.*)$", name)
    if not found:
        return name
    return f"{start}encoder.{3 * int(found[1]) + (found[2] == 'layer_norm')}.{found[3]}"


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of ``Sam2VideoModel``; shapes and values stay.

    The matrix of point embeddings becomes four, and of the image's and the prompts' position
    code, which are equal in every official network, the image's is kept.

    Raises:
        NetworkConfigError: the two position codes differ, so one matrix cannot stand for both.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == _GAUSSIAN:
            other = state.get(_PROMPTS_GAUSSIAN)
            if other is not None and not value.is_meta and not torch.equal(value, other):
                raise NetworkConfigError(
                    f"{_GAUSSIAN} and {_PROMPTS_GAUSSIAN} differ: the official network has one "
                    "position code for image and prompts, and cannot hold both"
                )
            continue
        if name == _PROMPTS_GAUSSIAN:
            renamed["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = value
            continue
        if name == _POINTS:
            for index in range(value.shape[0]):
                part = value[index : index + 1]
                renamed[f"sam_prompt_encoder.point_embeddings.{index}.weight"] = part
            continue
        new = _rename_downsampler(name)
        for pattern, replacement in _RULES:
            new = re.sub(pattern, replacement, new)
        renamed[_rename_mlp(new)] = value
    return renamed


@cache
def official_shapes(size: Sam2Size) -> dict[str, tuple[int, ...]]:
    """Official name → shape of every tensor of SAM 2.1 at one size, whatever its image size."""
    with torch.device("meta"):
        model = Sam2VideoModel(official_config(size))
    return {name: tuple(value.shape) for name, value in to_official(model.state_dict()).items()}


def size_of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Sam2Size | None:
    """The size of a state dict in the official naming; None where no official size fits.

    Told by the width of the first layer and the number of blocks of the trunk.
    """
    stem = shapes.get("image_encoder.trunk.patch_embed.proj.weight")
    blocks = sum(
        bool(re.match(r"^image_encoder\.trunk\.blocks\.\d+\.attn\.qkv\.weight$", name))
        for name in shapes
    )
    for size, numbers in SAM2_SIZES.items():
        wanted = (numbers["hidden_size"], 3, 7, 7)
        if stem == wanted and blocks == sum(numbers["blocks_per_stage"]):
            return size
    return None


def save_official(runner: SliceRunner, path: Path) -> Sam2Size:
    """Write a network as the official code reads it; the file appears whole or not at all.

    Args:
        runner: a network of one of SAM 2.1's sizes, such as a fine-tuned teacher. Its options
            have no place in the official format.
        path: ``.safetensors``: the bare state dict; ``.pt`` or ``.pth``: ``{"model": ...}``.

    Returns:
        Its size: the official configuration that loads the file.

    Raises:
        NetworkConfigError: another architecture, which no official configuration describes, or
            a path of another suffix.
    """
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise NetworkConfigError(
            f"{path}: the official formats are .pt, .pth and .safetensors; give one of them"
        )
    state = _official_state(runner)
    size = size_of_shapes({name: tuple(value.shape) for name, value in state.items()})
    assert size is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, partial, metadata={"format": "pt"})
    else:
        torch.save({"model": state}, partial)
    partial.replace(path)
    return size


def _official_state(runner: SliceRunner) -> dict[str, Tensor]:
    """The renamed weights, copied to the CPU, of a network that the official code knows."""
    trunk = runner.config.vision_config.backbone_config
    if trunk.model_type != "sam2_hiera_det_model":
        name = getattr(trunk, "architecture", None) or trunk.model_type
        raise NetworkConfigError(
            f"this network's image encoder is {name}, not SAM 2.1's Hiera: the official code has "
            "no such network. Its model folder is a transformers checkpoint already: "
            "Sam2VideoModel.from_pretrained(FOLDER)"
        )
    state = {
        name: value.detach().to("cpu").contiguous().clone()
        for name, value in to_official(runner.model.state_dict()).items()
    }
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    size = size_of_shapes(shapes)
    wanted = official_shapes(size) if size is not None else {}
    if shapes != wanted:
        differing = [name for name in (*shapes, *wanted) if shapes.get(name) != wanted.get(name)]
        raise NetworkConfigError(
            f"this network is of none of SAM 2.1's sizes ({', '.join(SAM2_SIZES)}): the first "
            f"difference is {differing[0]}, {shapes.get(differing[0])} here. The official "
            "configurations describe no such network; its model folder is a transformers "
            "checkpoint already: Sam2VideoModel.from_pretrained(FOLDER)"
        )
    return state
