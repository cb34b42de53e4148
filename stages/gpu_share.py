"""How many workers of one machine have one GPU together: told by who starts them."""

import os

__all__ = ["GPU_SHARERS", "gpu_sharers"]

GPU_SHARERS = "EFFICIENT_MEDSAM2_GPU_SHARERS"
"""The environment variable that tells it to a worker."""


def gpu_sharers() -> int:
    """Processes that share this process's GPU, itself among them; 1 where nobody told."""
    return max(int(os.environ.get(GPU_SHARERS, "1")), 1)
