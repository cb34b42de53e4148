"""SAM 2 networks with a Hiera image encoder: the official sizes and a small one for laptops."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig
from transformers.models.sam2_video.configuration_sam2_video import (
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
)

from efficient_medsam2.errors import NetworkConfigError

__all__ = [
    "IMAGE_SIZE_STEP",
    "SAM2_SIZES",
    "SMALL_NET_FRAMES",
    "Sam2Size",
    "SmallNetConfig",
    "new_model",
    "official_config",
    "small_config",
]

Sam2Size = Literal["t", "s", "b+", "l"]
"""Size letters of SAM 2.1, as the official configuration files spell them."""


def _trunk(
    width: int, heads: int, blocks: list[int], attend_globally: list[int], **other: list[int]
) -> dict[str, Any]:
    """Numbers of a Hiera trunk: width and heads double from stage to stage."""
    return {
        "hidden_size": width,
        "blocks_per_stage": blocks,
        "embed_dim_per_stage": [width << stage for stage in range(4)],
        "num_attention_heads": heads,
        "num_attention_heads_per_stage": [heads << stage for stage in range(4)],
        "window_size_per_stage": [8, 4, 14, 7],
        "global_attention_blocks": attend_globally,
        "window_positional_embedding_background_size": [7, 7],
        **other,
    }


SAM2_SIZES: dict[Sam2Size, dict[str, Any]] = {
    "t": _trunk(96, 1, [1, 2, 7, 2], [5, 7, 9]),
    "s": _trunk(96, 1, [1, 2, 11, 2], [7, 10, 13]),
    "b+": _trunk(
        112,
        2,
        [2, 3, 16, 3],
        [12, 16, 20],
        window_positional_embedding_background_size=[14, 14],
    ),
    "l": _trunk(144, 2, [2, 6, 36, 4], [23, 33, 43], window_size_per_stage=[8, 4, 16, 8]),
}
"""Hiera trunks of SAM 2.1 by size letter (facebookresearch/sam2, ``sam2.1_hiera_*.yaml``)."""

IMAGE_SIZE_STEP = 64
"""Input sides of the official networks are multiples of this: their mask prompts and memories
are pooled by 64 and 16 without a remainder."""


SMALL_NET_FRAMES = 8
"""Object pointers that a small network looks back to, and the frames its time code assumes."""


class SmallNetConfig(BaseModel):
    """A small SAM 2 network that a CPU can train.

    Attributes:
        image_size: input side in pixels, a multiple of 32.
        hidden_size: width of the neck, prompt encoder, decoder and memory attention; a multiple
            of 64, the memory's width, into which object pointers are cut.
        embed_dims: width of each Hiera stage.
        blocks: blocks of each Hiera stage.
        memory_layers: layers of the memory attention.
        memory_slices: prompted slice + remembered slices that the memory attention sees.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(default=128, ge=32, multiple_of=32)
    hidden_size: int = Field(default=128, ge=64, multiple_of=64)
    embed_dims: tuple[int, int, int, int] = (48, 96, 192, 384)
    blocks: tuple[int, int, int, int] = (1, 2, 3, 1)
    memory_layers: int = Field(default=2, ge=1)
    memory_slices: int = Field(default=4, ge=1)


def level_sizes(image_size: int) -> list[list[int]]:
    """Sides of the s4, s8 and s16 grids."""
    return [[image_size // stride] * 2 for stride in (4, 8, 16)]


def attention_window(side: int) -> int:
    """The largest even window (for pooling between stages) up to 10 that tiles a grid exactly."""
    fitting = [window for window in range(2, 11, 2) if side % window == 0]
    return max(fitting) if fitting else side


def official_config(size: Sam2Size = "t", image_size: int = 512) -> Sam2VideoConfig:
    """The configuration of SAM 2.1 at one size; ``t`` at 512 is MedSAM2.

    Args:
        size: one of :data:`SAM2_SIZES`.
        image_size: input side in pixels; SAM 2.1 was trained at 1024.

    Raises:
        NetworkConfigError: no such size, or a side that the network cannot take.
    """
    if size not in SAM2_SIZES:
        raise NetworkConfigError(
            f"teacher.size={size}: SAM 2.1 comes in the sizes {', '.join(SAM2_SIZES)}"
        )
    if image_size < IMAGE_SIZE_STEP or image_size % IMAGE_SIZE_STEP:
        raise NetworkConfigError(
            f"teacher.image_size={image_size}: SAM 2.1 takes images whose side is a multiple of "
            f"{IMAGE_SIZE_STEP}: 512 is MedSAM2's, 1024 SAM 2.1's own"
        )
    trunk = Sam2HieraDetConfig(image_size=[image_size, image_size], **SAM2_SIZES[size])
    vision = Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=trunk.embed_dim_per_stage[::-1],
        backbone_feature_sizes=level_sizes(image_size),
    )
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(image_size=image_size),
        image_size=image_size,
        memory_attention_rope_feat_sizes=[image_size // 16] * 2,
    )


def small_config(config: SmallNetConfig) -> Sam2VideoConfig:
    """The transformers configuration of a small network: same modules, fewer numbers."""
    size, hidden = config.image_size, config.hidden_size
    heads = [max(dim // 48, 1) for dim in config.embed_dims]
    first_global = sum(config.blocks[:2]) + 1
    trunk = Sam2HieraDetConfig(
        hidden_size=config.embed_dims[0],
        image_size=[size, size],
        blocks_per_stage=list(config.blocks),
        embed_dim_per_stage=list(config.embed_dims),
        num_attention_heads=heads[0],
        num_attention_heads_per_stage=heads,
        window_size_per_stage=[attention_window(size // stride) for stride in (4, 8, 16, 32)],
        global_attention_blocks=list(range(first_global, sum(config.blocks[:3]))),
        window_positional_embedding_background_size=[7, 7],
    )
    vision = Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=list(config.embed_dims)[::-1],
        backbone_feature_sizes=level_sizes(size),
        fpn_hidden_size=hidden,
    )
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=hidden, image_size=size),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=hidden,
            mlp_dim=4 * hidden,
            num_attention_heads=max(hidden // 32, 1),
            iou_head_hidden_dim=hidden,
            dynamic_multimask_via_stability=False,
        ),
        image_size=size,
        num_maskmem=config.memory_slices,
        max_object_pointers_in_encoder=SMALL_NET_FRAMES,
        multimask_output_in_sam=False,
        memory_attention_hidden_size=hidden,
        memory_attention_num_layers=config.memory_layers,
        memory_attention_feed_forward_hidden_size=4 * hidden,
        memory_attention_rope_feat_sizes=[size // 16] * 2,
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_encoder_hidden_size=hidden,
        mask_downsampler_embed_dim=hidden,
        memory_fuser_embed_dim=hidden,
        memory_fuser_intermediate_dim=4 * hidden,
    )


def new_model(config: Sam2VideoConfig) -> Sam2VideoModel:
    """A fresh network with the initialisation that transformers leaves undone.

    transformers draws the two Gaussian position buffers independently, so prompts and image
    would speak different coordinates, and zeroes the memory fuser's layer scale, so it would
    never learn fast. Both are set here.
    """
    model = Sam2VideoModel(config)
    image = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(image.data)
    for layer in model.memory_encoder.memory_fuser.layers:
        layer.scale.data.fill_(0.1)
    # An object is taken to be there until learned otherwise; else every memory starts empty.
    model.mask_decoder.pred_obj_score_head.proj_out.bias.data.fill_(2.0)
    return model
