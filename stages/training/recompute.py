"""A student's forward pass with or without what its backward pass needs kept in memory.

Recomputed, a part keeps what goes in and comes out, and runs once more when its gradient is due
(Chen et al. 2016, "Training deep nets with sublinear memory cost"). Results stay the same: the
second run draws the same random numbers and leaves running statistics alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from efficient_medsam2.networks.records import Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from stages.training.norms import still_norms, takes_statistics

__all__ = ["Recompute", "ask", "encode", "recomputed"]

Recompute = Literal["no", "encoders", "all"]
"""What is made again: nothing, what the encoders of images and of memories make inside, or all."""

_PIXELS_AT_ONCE = 4 * 512**2  # whose inner maps are there together, where rows are independent

P = ParamSpec("P")
R = TypeVar("R")


def encode(runner: SliceRunner, pixels_B3SS: Tensor, *, recompute: Recompute) -> SliceFeatures:
    """``runner.encode``, whose inner maps are made again for the gradient but with ``no``.

    Where statistics of the batch are taken, block by block, so that at any time the inner maps of
    one block alone are there; else some rows after the others, each through the whole encoder.
    """
    if recompute == "no" or not torch.is_grad_enabled():
        return runner.encode(pixels_B3SS)
    encoder = runner.model.vision_encoder
    if not takes_statistics(encoder):
        at_once = max(1, _PIXELS_AT_ONCE // pixels_B3SS.shape[-1] ** 2)
        parts = [
            checkpoint(runner.encode, part, use_reentrant=False)
            for part in torch.split(pixels_B3SS, at_once)
        ]
        return SliceFeatures(
            **{
                level: torch.cat([getattr(part, level) for part in parts])
                for level in ("s4", "s8", "s16")
            }
        )
    with _blocks_recomputed(_blocks(encoder) or [encoder.backbone]):
        return runner.encode(pixels_B3SS)


def ask(
    runner: SliceRunner,
    features: SliceFeatures,
    prompts: Prompts,
    slice_of_R: Tensor,
    *,
    recompute: Recompute,
) -> SliceRecord:
    """``runner.prompted`` for prompts that share slices: R rows.

    With ``all`` some prompts after the others, each time made again for the gradient, so
    that the decoder's inner maps of all of them are never there together.

    Args:
        runner: the student.
        features: of the slices.
        prompts: R of them.
        slice_of_R: which slice each prompt is on.
        recompute: what is made again.
    """
    if recompute != "all" or not torch.is_grad_enabled():
        return _asked(runner, features, prompts, slice_of_R)
    at_once = max(1, _PIXELS_AT_ONCE // runner.image_size**2)
    rows = torch.arange(len(slice_of_R), device=slice_of_R.device)
    return SliceRecord.joined(
        [
            checkpoint(
                _asked,
                runner,
                features,
                prompts.take(some),
                slice_of_R[some],
                use_reentrant=False,
            )
            for some in torch.split(rows, at_once)
        ]
    )


def _asked(
    runner: SliceRunner, features: SliceFeatures, prompts: Prompts, slice_of: Tensor
) -> SliceRecord:
    return runner.prompted(features.take(slice_of), prompts)


def _blocks(module: nn.Module, *, in_a_row: bool = False) -> list[nn.Module]:
    """Give the outermost compound modules that stand in a sequence: residual blocks and such."""
    sequence = isinstance(module, nn.Sequential | nn.ModuleList)
    children = list(module.children())
    if in_a_row and children and not sequence:
        return [module]
    return [block for child in children for block in _blocks(child, in_a_row=sequence)]


@contextmanager
def _blocks_recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let blocks keep what goes in and comes out alone, in the forward passes of this context."""
    try:
        for block in blocks:
            block.forward = partial(_checkpointed, block, block.forward)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _checkpointed(
    block: nn.Module,
    forward: Callable[..., Any],
    *arguments: Any,  # noqa: ANN401 - whatever the block takes
    **named: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), still_norms(block)

    return checkpoint(
        partial(forward, **named), *arguments, use_reentrant=False, context_fn=contexts
    )


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
