"""A student's forward pass with or without what its backward pass needs kept in memory.

Recomputed, a part keeps what goes in and comes out, and runs once more when its gradient is due
(Chen et al. 2016, "Training deep nets with sublinear memory cost"). Results stay the same: the
second run draws the same random numbers and leaves running statistics alone.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from efficient_medsam2.networks.records import SliceFeatures
from efficient_medsam2.networks.runner import SliceRunner
from stages.training.norms import still_norms

__all__ = ["encode", "recomputed"]

P = ParamSpec("P")
R = TypeVar("R")


def encode(runner: SliceRunner, pixels_B3SS: Tensor, *, recompute: bool) -> SliceFeatures:
    """``runner.encode``; with ``recompute`` the encoder's maps are made again for the gradient."""
    if not recompute or not torch.is_grad_enabled():
        return runner.encode(pixels_B3SS)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), still_norms(runner.model.vision_encoder)

    features: SliceFeatures = checkpoint(
        runner.encode, pixels_B3SS, use_reentrant=False, context_fn=contexts
    )
    return features


def recomputed(function: Callable[P, R], *, recompute: bool) -> Callable[P, R]:
    """The function, or one that gives the same and runs it again for the gradient.

    It must not have running statistics.
    """
    if not recompute:
        return function

    def run(*arguments: P.args, **named: P.kwargs) -> R:
        if not torch.is_grad_enabled():
            return function(*arguments, **named)
        result: R = checkpoint(partial(function, *arguments, **named), use_reentrant=False)
        return result

    return run
