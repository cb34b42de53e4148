"""Where a network runs."""

import torch

from efficient_medsam2.errors import NetworkConfigError

__all__ = ["pick_device"]


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one, else the CPU.

    Raises:
        NetworkConfigError: ``cuda`` is asked for and there is none, or torch knows no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise NetworkConfigError(
            "run.device=cuda, but torch sees no GPU. Use --set run.device=auto, or check "
            "efficient-medsam2 doctor"
        )
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise NetworkConfigError(
            f"run.device={name!r} is no torch device: {error}. Use --set run.device=auto"
        ) from error
