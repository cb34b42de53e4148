"""A SAM 1 network as small as it gets, with random weights everywhere."""

import torch
from transformers import SamConfig, SamModel

from efficient_medsam2.networks.sam1 import Sam1Runner

SIZE = 64
WIDTH = 64


def tiny_sam1_config():
    return SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "window_size": 2,
            "global_attn_indexes": [1],
            "num_pos_feats": WIDTH // 2,
        },
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIZE},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 128,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": WIDTH,
            "layer_norm_eps": 1e-5,
        },
    )


def tiny_sam1(seed=0):
    with torch.random.fork_rng(devices=[]):
        model = SamModel(tiny_sam1_config()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "positional_embedding" in name:
                value.copy_(noise)
            elif "token" in name or "embed" in name.split(".")[-2]:
                value.copy_(0.5 * noise)
            elif name.endswith(".bias"):
                value.copy_(0.1 * noise)
            elif value.ndim == 1:
                value.copy_(1 + 0.1 * noise)
            else:
                value.copy_(noise * (value.shape[0] / value.numel()) ** 0.5)
    return model


def tiny_sam1_runner(seed=0):
    return Sam1Runner(tiny_sam1(seed))


def random_image(rows, seed=0):
    """(rows, 1, SIZE, SIZE) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)
