"""What a network costs: parameters and floating-point operations of one slice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from efficient_medsam2.networks.records import Prompts, boxes_to_prompts
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1 import PromptedNetwork

__all__ = ["NetworkCost", "measure_cost"]


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """Cost of one network; FLOP = 2 x MAC.

    Attributes:
        params: number of parameters.
        prompted_gflop: encoder + prompt encoder + mask decoder + memory encoder of one slice.
        tracked_gflop: encoder + memory attention with a full bank + decoder + memory encoder;
            None for a network without memory.
    """

    params: int
    prompted_gflop: float
    tracked_gflop: float | None


def measure_cost(runner: PromptedNetwork) -> NetworkCost:
    """Count by running one row through the network (torch's own FLOP counter)."""
    size = runner.image_size
    device = next(runner.model.parameters()).device
    pixels = torch.zeros(1, 3, size, size, device=device)
    prompts = boxes_to_prompts(torch.tensor([[0.25, 0.25, 0.75, 0.75]], device=device) * size)
    with _without_gradients(runner.model):
        return _counted(runner, pixels, prompts)


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """Let parameters ask for none; under ``no_grad`` the counter's module hooks would trip."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _counted(runner: PromptedNetwork, pixels: Tensor, prompts: Prompts) -> NetworkCost:
    with FlopCounterMode(display=False) as prompted:
        features = runner.encode(pixels)
        record = runner.prompted(features, prompts)
        if isinstance(runner, SliceRunner):
            entry = runner.remember(features, record, position=0, prompted=True)
    params = sum(parameter.numel() for parameter in runner.model.parameters())
    prompted_gflop = prompted.get_total_flops() / 1e9
    if not isinstance(runner, SliceRunner):
        return NetworkCost(params=params, prompted_gflop=prompted_gflop, tracked_gflop=None)
    slices = int(runner.model.num_maskmem)
    bank = [entry]
    bank += [
        runner.remember(features, record, position=position, prompted=False)
        for position in range(1, slices)
    ]
    with FlopCounterMode(display=False) as tracked:
        features = runner.encode(pixels)
        record = runner.tracked(
            features, bank, position=slices, reverse=False, num_frames=slices + 1
        )
        runner.remember(features, record, position=slices, prompted=False)
    return NetworkCost(
        params=params,
        prompted_gflop=prompted_gflop,
        tracked_gflop=tracked.get_total_flops() / 1e9,
    )
