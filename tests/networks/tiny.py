"""Small networks with random weights everywhere, so that no zero hides a missing term."""

import torch
from transformers import Sam2VideoConfig, Sam2VideoModel

from efficient_medsam2.networks.hiera import SmallNetConfig, new_model, small_config
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.records import MemoryEntry, SliceFeatures
from efficient_medsam2.networks.runner import SliceRunner

SIZE = 64
TINY = SmallNetConfig(
    image_size=SIZE,
    hidden_size=64,
    embed_dims=(8, 16, 24, 32),
    blocks=(1, 1, 1, 1),
    memory_layers=2,
    memory_slices=4,
)


def tiny_model(config: Sam2VideoConfig | None = None, *, seed: int = 0) -> Sam2VideoModel:
    model = new_model(config or small_config(TINY)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith(".bias"):
                value.copy_(0.1 * noise)
            elif value.ndim == 1:
                value.copy_(1 + 0.1 * noise)
            elif "embed" in name or "encoding" in name or "pointer" in name.split(".")[0]:
                value.copy_(0.5 * noise)
            else:
                value.copy_(noise * (value.shape[0] / value.numel()) ** 0.5)
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(3.0)
        model.mask_decoder.pred_obj_score_head.proj_out.weight.mul_(0.1)
    return model


def tiny_runner(options: RunnerOptions | None = None, *, seed: int = 0) -> SliceRunner:
    return SliceRunner(tiny_model(seed=seed), options)


def multimask_runner() -> SliceRunner:
    config = small_config(TINY)
    config.multimask_output_in_sam = True
    return SliceRunner(tiny_model(config))


def pixels(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def boxes(rows: int) -> torch.Tensor:
    return torch.tensor([[8.0 + row, 12, 40, 50 - row] for row in range(rows)])


def remembered(
    features: SliceFeatures, *, position: int, prompted: bool = False, seed: int | None = None
) -> MemoryEntry:
    """A bank entry of random content."""
    generator = torch.Generator().manual_seed(position if seed is None else seed)
    rows, channels = features.s16.shape[:2]
    return MemoryEntry(
        position=position,
        prompted=prompted,
        memory=torch.randn(rows, 64, SIZE // 16, SIZE // 16, generator=generator),
        object_pointer=torch.randn(rows, channels, generator=generator),
    )
