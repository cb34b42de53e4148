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
from stages.training.norms import BATCH_NORMS, still_norms

__all__ = ["Recompute", "ask", "encode", "recomputed"]

Recompute = Literal["no", "encoders", "all"]
"""What is made again: nothing, what the encoders of images and of memories make inside, or all."""

_PIXELS_ON_CPU = 4 * 512**2  # whose inner maps are there together, where rows stand alone
_PIXELS_ON_GPU = 16 * 512**2
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

P = ParamSpec("P")
R = TypeVar("R")


def encode(runner: SliceRunner, pixels_B3SS: Tensor, *, recompute: Recompute) -> SliceFeatures:
    """``runner.encode``, whose inner maps are made again for the gradient but with ``no``.

    Where statistics of the batch are taken or paths are dropped, block by block, so that at any
    time the inner maps of one block alone are there; else some rows after the others, each through
    the whole encoder.
    """
    if recompute == "no" or not torch.is_grad_enabled():
        return runner.encode(pixels_B3SS)
    encoder = runner.model.vision_encoder
    if _rows_stand_alone(encoder):
        at_once = _rows_at_once(runner, pixels_B3SS.device)
        return SliceFeatures.joined(
            [
                checkpoint(runner.encode, part, use_reentrant=False)
                for part in torch.split(pixels_B3SS, at_once)
            ]
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
    at_once = _rows_at_once(runner, slice_of_R.device)
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


def _rows_at_once(runner: SliceRunner, device: torch.device) -> int:
    """Slices of the runner's image size whose inner maps may be there together."""
    pixels = _PIXELS_ON_GPU if device.type == "cuda" else _PIXELS_ON_CPU
    return max(1, pixels // runner.image_size**2)


def _rows_stand_alone(module: nn.Module) -> bool:
    """Whether some rows after the others give what all give: none sees others or is drawn for."""
    return not any(
        isinstance(part, BATCH_NORMS)
        or getattr(part, "drop_prob", 0)  # timm's DropPath, DropBlock
        or (isinstance(part, _DROPOUTS) and part.p > 0)
        for part in module.modules()
        if part.training
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
