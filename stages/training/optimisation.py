"""The optimiser of every stage, and its learning rate over the steps."""

import math

import torch
from torch import nn

from stages.training.settings import LoopConfig

__all__ = ["learning_rate_at", "make_optimizer"]


def learning_rate_at(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine to ``final_learning_rate`` of the peak."""
    warm = int(config.warmup * config.steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(config.steps - warm, 1)
    low = config.final_learning_rate
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(module: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW over what requires a gradient; weight decay on matrices and kernels only."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
