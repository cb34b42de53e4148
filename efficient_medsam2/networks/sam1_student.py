"""Students of a SAM 1 teacher (MedSAM): SAM 2's shape with SAM 1's prompt encoder and decoder.

A SAM 2 decoder differs from SAM 1's in a few places, so this start is near the teacher and not
equal to it, and the decoder has to be trained:

- an object-score token takes part in the self-attention of tokens; it starts as the mean of the
  mask tokens, which disturbs least of what was tried;
- a box is followed by a padding token, which SAM 1 appends to points alone;
- the IoU head ends in a sigmoid where SAM 1's is linear: its last layer is scaled so that the
  sigmoid's tangent at 0.5 is SAM 1's line;
- strides 4 and 8 are added while upscaling: their 1x1 convolutions start at zero.

How far from it, on eight tiny networks of random weights, from the same embedding: for a point
the logits differ by 0.24 of their norm (median) and 93 % of the mask's pixels agree; for a box by
0.76 and 76 %, nearly all of it the padding token's doing. A random network weighs all tokens
alike, so a trained one should be nearer.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig, SamConfig
from transformers.models.sam2_video.configuration_sam2_video import (
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
)

from efficient_medsam2.networks.student import StudentConfig, build_student

__all__ = ["build_sam1_student", "heads_of_sam1", "sam2_frame"]

FRESH = (
    "mask_decoder.conv_s",
    "mask_decoder.pred_obj_score_head.",
    "mask_downsample.",
    "memory_attention.",
    "memory_encoder.",
    "memory_temporal_positional_encoding",
    "no_memory_embedding",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "object_pointer_proj.",
    "occlusion_spatial_embedding_parameter",
    "temporal_positional_encoding_projection_layer.",
)
"""What SAM 1 has not: the head of the object score, the high-resolution levels and the memory."""

_RULES: tuple[tuple[str, str], ...] = (
    (r"\.out_proj\.", ".o_proj."),
    (r"\.mlp\.lin1\.", ".mlp.proj_in."),
    (r"\.mlp\.lin2\.", ".mlp.proj_out."),
)

_IOU_OUT = "mask_decoder.iou_prediction_head.proj_out."


def sam2_frame(teacher: SamConfig, config: StudentConfig) -> Sam2VideoConfig:
    """The configuration of a SAM 2 network into which SAM 1's heads fit.

    One mask a prompt, as MedSAM; the memory is as large as the student's.
    """
    heads, prompts = teacher.mask_decoder_config, teacher.prompt_encoder_config
    size, width = int(teacher.vision_config.image_size), int(heads.hidden_size)
    return Sam2VideoConfig(
        vision_config=Sam2VisionConfig(fpn_hidden_size=width),
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(
            hidden_size=width, image_size=size, mask_input_channels=prompts.mask_input_channels
        ),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=width,
            mlp_dim=heads.mlp_dim,
            num_attention_heads=heads.num_attention_heads,
            attention_downsample_rate=heads.attention_downsample_rate,
            iou_head_hidden_dim=heads.iou_head_hidden_dim,
            iou_head_depth=heads.iou_head_depth,
            num_multimask_outputs=heads.num_multimask_outputs,
            dynamic_multimask_via_stability=False,
        ),
        image_size=size,
        num_maskmem=config.memory_slices,
        multimask_output_in_sam=False,
        memory_attention_hidden_size=width,
        memory_attention_num_layers=config.memory_layers,
        memory_attention_feed_forward_hidden_size=8 * width,
        memory_attention_rope_feat_sizes=[size // 16] * 2,
        memory_encoder_hidden_size=width,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=4 * width,
    )


def heads_of_sam1(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SAM 1's prompt encoder and mask decoder under the names of ``Sam2VideoModel``.

    Args:
        state: of a transformers ``SamModel``; its image encoder is not read.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(("vision_encoder.", "prompt_encoder.point_embed.")):
            continue
        new = name
        for pattern, replacement in _RULES:
            new = re.sub(pattern, replacement, new)
        renamed[new] = value
    kinds = [state[f"prompt_encoder.point_embed.{kind}.weight"] for kind in range(4)]
    renamed["prompt_encoder.point_embed.weight"] = torch.cat(kinds)
    tokens = state["mask_decoder.mask_tokens.weight"]
    renamed["mask_decoder.obj_score_token.weight"] = tokens.mean(0, keepdim=True)
    # sigmoid(4 x - 2) has the value 0.5 and the slope 1 where x is 0.5.
    renamed[f"{_IOU_OUT}weight"] = renamed[f"{_IOU_OUT}weight"] * 4
    renamed[f"{_IOU_OUT}bias"] = renamed[f"{_IOU_OUT}bias"] * 4 - 2
    return renamed


def build_sam1_student(
    config: StudentConfig, teacher: SamConfig, teacher_state: Mapping[str, Tensor], *, seed: int
) -> Sam2VideoModel:
    """A student whose decoder starts as a SAM 1 teacher's; its memory starts fresh.

    Args:
        config: of the student.
        teacher: the teacher's configuration.
        teacher_state: the teacher's weights, of a transformers ``SamModel``.
        seed: of the initialisation; the global random state is left as it was.

    Raises:
        NetworkConfigError: see ``build_student``.
        WeightsError: timm's weights are wanted and cannot be had.
    """
    student = build_student(
        config, sam2_frame(teacher, config), heads_of_sam1(teacher_state), seed=seed, fresh=FRESH
    )
    with torch.no_grad():
        for convolution in (student.mask_decoder.conv_s0, student.mask_decoder.conv_s1):
            convolution.weight.zero_()
            convolution.bias.zero_()
        student.no_memory_embedding.zero_()
    return student
