"""How long one slice takes on this machine."""

import statistics
import time

import torch

from efficient_medsam2.networks.records import boxes_to_prompts
from efficient_medsam2.networks.sam1 import PromptedNetwork

__all__ = ["milliseconds_per_slice"]


@torch.no_grad()
def milliseconds_per_slice(runner: PromptedNetwork, *, rounds: int = 9) -> float:
    """Median wall time in ms of encoder + one box prompt on one slice, after a warm-up.

    An absolute time of a shared CPU means little; compare models measured in the same process.
    """
    device = next(runner.model.parameters()).device
    size = runner.image_size
    pixels = torch.zeros(1, 3, size, size, device=device)
    prompts = boxes_to_prompts(torch.tensor([[0.25, 0.25, 0.75, 0.75]], device=device) * size)
    times = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        runner.prompted(runner.encode(pixels), prompts)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:]) * 1000
