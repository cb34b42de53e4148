"""Batch normalisation of students that are trained on few, small batches.

A deployed student computes with the running statistics. They follow the last ten batches or so
while the weights still move, and with eight augmented slices a batch the validation DSC jumped by
tens of points. So they are measured anew before weights are judged or handed on ("precise" batch
norm, Wu and Johnson 2021), and stay as they are in stages that take over a trained encoder.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from efficient_medsam2.networks.runner import SliceRunner

__all__ = ["freeze_norms", "recalibrate_norms"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, _BATCH_NORMS)]  # type: ignore[misc]


def freeze_norms(module: nn.Module) -> None:
    """Keep the statistics of an encoder that is trained already: call it after ``train()``."""
    for norm in _norms(module):
        norm.eval()


@torch.no_grad()
def recalibrate_norms(runner: SliceRunner, pixels: Iterable[Tensor]) -> None:
    """Measure the running statistics of the image encoder anew, as plain means over batches.

    Args:
        runner: the student; its weights and every module's mode stay as they are.
        pixels: batches (B, 3, S, S) as the deployed student would see them.
    """
    norms = _norms(runner.model.vision_encoder)
    if not norms:
        return
    device = next(runner.model.parameters()).device
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in pixels:
        runner.encode(batch.to(device))
    for norm, (momentum, training) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.train(training)
