"""Memory attention: a slice's features look at what was remembered of other slices.

A student may see squares of remembered cells as one token each (EfficientTAM, Xiong et al. 2024,
arXiv 2411.18933, pools keys and values so): with squares of four the cross-attention, the widest
computation of a tracked slice, has a quarter of its keys. A pooled token stands at the middle of
its cells, and its weight is that of so many cells, so that where memories are smooth the result is
near that of the whole attention, with the same weights.

Shape letters: B rows, N cells of the slice, M tokens, C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import (
    Sam2VideoRoPEAttention,
    rotate_pairwise,
)

from efficient_medsam2.networks.memory_tokens import MemoryTokens

__all__ = ["attend", "attend_pooled"]


def attend(
    model: Sam2VideoModel, features_NBC: Tensor, position_NBC: Tensor, seen: MemoryTokens
) -> Tensor:
    """The memory attention as ``Sam2VideoModel`` has it, every cell a key: (B, N, C)."""
    output: Tensor = model.memory_attention(
        current_vision_features=features_NBC,
        current_vision_position_embeddings=position_NBC,
        memory=seen.tokens_MBC,
        memory_posision_embeddings=seen.codes_MBC,
        num_object_pointer_tokens=seen.pointers,
    )
    return output[0]


def attend_pooled(
    model: Sam2VideoModel,
    features_NBC: Tensor,
    position_NBC: Tensor,
    seen: MemoryTokens,
    *,
    pool: int,
) -> Tensor:
    """The same with tokens that each stand for a square of cells: (B, N, C).

    Args:
        model: whose memory attention it is.
        features_NBC: raw stride-16 features of the slice.
        position_NBC: their position code.
        seen: memories pooled with ``pool``, then pointers, which are not pooled.
        pool: side of a square in cells; 1 gives what ``attend`` gives.
    """
    attention = model.memory_attention
    output = (features_NBC + 0.1 * position_NBC).transpose(0, 1).unsqueeze(1)
    keys = seen.tokens_MBC.transpose(0, 1)
    codes = seen.codes_MBC.transpose(0, 1)
    rotation = attention.rotary_emb(output, attention.position_ids)
    middles = _middles(attention.position_ids, pool)
    rotation_of_keys = attention.rotary_emb(output, middles)
    # A square counts as often as it has cells.
    weights = keys.new_zeros(keys.shape[1])
    weights[: keys.shape[1] - seen.pointers] = math.log(pool**2)
    for layer in attention.layers:
        query = layer.layer_norm1(output)
        query, _ = layer.self_attn(query, query, query, position_embeddings=rotation)
        output = output + layer.dropout1(query)
        crossed = _crossed(
            layer.cross_attn_image,
            layer.layer_norm2(output),
            keys=keys + codes,
            values=keys,
            rotation=rotation,
            rotation_of_keys=rotation_of_keys,
            pointers=seen.pointers,
            weights=weights,
        )
        output = output + layer.dropout2(crossed)
        query = layer.activation(layer.linear1(layer.layer_norm3(output)))
        output = output + layer.dropout3(layer.linear2(layer.dropout(query)))
    normed: Tensor = attention.layer_norm(output)
    return normed.squeeze(1)


def _middles(positions_N2: Tensor, pool: int) -> Tensor:
    """Positions of the cells of a square grid → those of the middles of its squares of cells."""
    side = math.isqrt(positions_N2.shape[0])
    grid_HW2 = positions_N2.float().view(side, side, 2)
    return F.avg_pool2d(grid_HW2.permute(2, 0, 1), pool).flatten(1).T


def _crossed(
    module: Sam2VideoRoPEAttention,
    queries_B1NC: Tensor,
    *,
    keys: Tensor,
    values: Tensor,
    rotation: tuple[Tensor, Tensor],
    rotation_of_keys: tuple[Tensor, Tensor],
    pointers: int,
    weights: Tensor,
) -> Tensor:
    """Cross-attention, (B, 1, N, C); ``weights`` (M,) are added to each key's logits."""
    rows = queries_B1NC.shape[0]
    heads, width = module.num_attention_heads, module.head_dim

    def split(tokens: Tensor) -> Tensor:
        return tokens.reshape(rows, -1, heads, width).transpose(1, 2)

    query = _rotated(split(module.q_proj(queries_B1NC)), rotation)
    key, value = split(module.k_proj(keys)), split(module.v_proj(values))
    spatial = key.shape[2] - pointers
    repeats = spatial // rotation_of_keys[0].shape[-2]
    cos, sin = (part.repeat(1, repeats, 1) for part in rotation_of_keys)
    key = torch.cat([_rotated(key[:, :, :spatial], (cos, sin)), key[:, :, spatial:]], dim=2)
    mixed = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=weights.to(query.dtype).expand(rows, 1, query.shape[2], -1),
        scale=module.scaling,
    )
    output: Tensor = module.o_proj(mixed.transpose(1, 2).reshape(rows, 1, -1, heads * width))
    return output


def _rotated(tokens: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position codes on tokens (B, heads, M, C), in float32 as the official code."""
    cos, sin = rotation
    wide = tokens.float()
    turned: Tensor = wide * cos + rotate_pairwise(wide) * sin
    return turned.type_as(tokens)
