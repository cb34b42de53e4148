"""What the memory attention reads: tokens of remembered slices and of their object pointers.

The order of tokens and codes is that of the official ``SAM2Base`` (facebookresearch/sam2).

Shape letters: B rows, C channels, H W rows and columns of the 1/16 grid, M tokens, P pointers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import get_1d_sine_pe

from efficient_medsam2.networks.records import MemoryEntry

__all__ = [
    "MemoryTokens",
    "frames_of_rows",
    "limit_by_limit",
    "memory_tokens",
    "pointer_limits",
    "same_pointers",
]


@dataclass(frozen=True, kw_only=True)
class MemoryTokens:
    """Keys and values of the memory attention.

    Attributes:
        tokens_MBC: (M, B, 64) memories slice by slice, then the pointers.
        codes_MBC: (M, B, 64) their position and time codes.
        pointers: how many of the M, at the end, belong to pointers.
    """

    tokens_MBC: Tensor
    codes_MBC: Tensor
    pointers: int


def memory_tokens(
    model: Sam2VideoModel,
    bank: Sequence[MemoryEntry],
    *,
    position: int,
    reverse: bool,
    num_frames: int | Sequence[int],
) -> MemoryTokens:
    """Select from the bank what a slice sees, and lay it out as tokens.

    A prompted slice takes the last temporal code, the slice ``k`` steps back code ``k - 1``.
    Prompted slices that are still to come give their memory but no pointer (``SAM2Base`` in
    evaluation, ``only_obj_ptrs_in_the_past_for_eval``).

    Args:
        model: whose codes and reach apply.
        bank: entries in any order, B rows each.
        position: index of the current slice in its case.
        reverse: whether the track runs towards lower indices.
        num_frames: frames of the sequence, of all rows or of each; scales the pointers' time code.

    Raises:
        ValueError: nothing in the bank is within reach of the slice, or its rows would see
            different pointers (see ``same_pointers``).
    """
    step = -1 if reverse else 1
    offsets = {entry.position: (position - entry.position) * step for entry in bank}
    prompted = [entry for entry in bank if entry.prompted]
    recent = {offsets[entry.position]: entry for entry in bank if not entry.prompted}

    reach = range(int(model.num_maskmem) - 1, 0, -1)
    memories = [(0, entry) for entry in prompted]
    memories += [(back, recent[back]) for back in reach if back in recent]
    if not memories:
        raise ValueError(
            f"slice {position}: no memory within reach among slices {sorted(offsets)}; "
            "prompt a slice first and follow it from there"
        )
    temporal = model.memory_temporal_positional_encoding
    shape = memories[0][1].memory.shape
    spatial = model.memory_encoder.position_encoding(shape, temporal.device, temporal.dtype)
    spatial_HWBC = spatial.flatten(2).permute(2, 0, 1)
    tokens = [entry.memory.flatten(2).permute(2, 0, 1) for _, entry in memories]
    codes = [(spatial_HWBC + temporal[back - 1]).expand(-1, shape[0], -1) for back, _ in memories]

    limits = pointer_limits(model, num_frames)
    if not same_pointers(bank, limits, position=position):
        raise ValueError(f"slice {position}: rows of {limits} frames see different pointers")
    pointers = [
        (offsets[entry.position], entry.object_pointer)
        for entry in prompted
        if offsets[entry.position] >= 0
    ]
    pointers += [
        (back, recent[back].object_pointer) for back in range(1, max(limits)) if back in recent
    ]
    count = 0
    if pointers:
        pointer_tokens, pointer_codes = _pointer_tokens(model, pointers, limits)
        tokens.append(pointer_tokens)
        codes.append(pointer_codes)
        count = pointer_tokens.shape[0]
    return MemoryTokens(tokens_MBC=torch.cat(tokens), codes_MBC=torch.cat(codes), pointers=count)


def pointer_limits(model: Sam2VideoModel, num_frames: int | Sequence[int]) -> tuple[int, ...]:
    """How many slices back pointers are seen, exclusive: one number, or one a row."""
    frames = (num_frames,) if isinstance(num_frames, int) else num_frames
    most = int(model.config.max_object_pointers_in_encoder)
    return tuple(min(int(number), most) for number in frames)


def same_pointers(bank: Sequence[MemoryEntry], limits: Sequence[int], *, position: int) -> bool:
    """Whether rows of these ``limits`` see the pointers of the same slices of ``bank``."""
    low, high = min(limits), max(limits)
    return not any(
        low <= abs(position - entry.position) < high for entry in bank if not entry.prompted
    )


def frames_of_rows(num_frames: int | Tensor, rows: int) -> int | list[int]:
    """The number of frames of all rows, or a list of each row's.

    Raises:
        ValueError: there are more or fewer numbers than rows.
    """
    if isinstance(num_frames, int):
        return num_frames
    frames: list[int] = num_frames.tolist()
    if len(frames) != rows:
        raise ValueError(f"num_frames has {len(frames)} rows, the features {rows}")
    return frames


def limit_by_limit(
    limits: Sequence[int], compute: Callable[[Tensor, int], Tensor], device: torch.device
) -> Tensor:
    """Rows of the same limit together, each part computed apart, put back in order."""
    of_rows = torch.tensor(limits)
    distinct = sorted(set(limits))
    chosen = [(of_rows == limit).nonzero()[:, 0].to(device) for limit in distinct]
    parts = [compute(rows, limit) for rows, limit in zip(chosen, distinct, strict=True)]
    return torch.cat(parts)[torch.cat(chosen).argsort()]


def _pointer_tokens(
    model: Sam2VideoModel, pointers: Sequence[tuple[int, Tensor]], limits: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Pointers (B, C) with their offsets → tokens and codes (P * C / 64, B, 64)."""
    pointers_PBC = torch.stack([pointer for _, pointer in pointers])
    count, rows, channels = pointers_PBC.shape
    width = int(model.mem_dim)
    offsets = torch.tensor(
        [offset for offset, _ in pointers], device=pointers_PBC.device, dtype=torch.float32
    )
    # One frame alone would divide by zero; its only pointer has offset 0 anyway.
    if len(set(limits)) == 1:
        times_PB = (offsets / max(limits[0] - 1, 1)).unsqueeze(1)
    else:
        spans = torch.tensor([max(limit - 1, 1) for limit in limits], device=offsets.device)
        times_PB = offsets.unsqueeze(1) / spans
    codes = get_1d_sine_pe(times_PB, dim=channels).to(pointers_PBC.dtype)
    projected = model.temporal_positional_encoding_projection_layer(codes)
    projected = projected.expand(-1, rows, width)
    splits = channels // width
    tokens = pointers_PBC.reshape(count, rows, splits, width).permute(0, 2, 1, 3).flatten(0, 1)
    return tokens, projected.repeat_interleave(splits, dim=0)
