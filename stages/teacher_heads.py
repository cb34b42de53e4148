"""Throw-away heads that give a teacher's encoder dense work from the first step.

Shape letters: N slices, S input size, H W rows and columns of a level, K kinds of structure.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficient_medsam2.networks.records import SliceFeatures

__all__ = ["DenseHeads"]

_OFFSETS = (1, 3)
"""Distances, in cells of a level, over which two pixels are asked whether they belong together."""


class DenseHeads(nn.Module):
    """One 1 x 1 convolution a level: borders, neighbours of one object, kinds of structure.

    Args:
        hidden: width of the stride-16 level; the finer ones have a quarter and an eighth of it.
        kinds: kinds of structure, background not counted.
    """

    def __init__(self, hidden: int, *, kinds: int) -> None:
        super().__init__()
        self._kinds = kinds
        channels = 1 + 2 * len(_OFFSETS) + kinds + 1
        self.levels = nn.ModuleList(
            nn.Conv2d(width, channels, kernel_size=1)
            for width in (hidden // 8, hidden // 4, hidden)
        )

    def forward(
        self, features: SliceFeatures, label_NSS: Tensor, kind_NSS: Tensor
    ) -> dict[str, Tensor]:
        """Means over levels and pixels of three cross-entropies.

        Args:
            features: of N slices.
            label_NSS: int64, which object each pixel is of.
            kind_NSS: int64, its kind; -1 where unknown.

        Returns:
            ``edge``, ``same`` and ``kind``; the last is 0 where no slice has kinds.
        """
        known = (kind_NSS >= 0).flatten(1).all(1)
        shares = F.one_hot(kind_NSS[known], self._kinds + 1).permute(0, 3, 1, 2).float()
        edges = _edges(label_NSS)
        terms: dict[str, list[Tensor]] = {"edge": [], "same": [], "kind": []}
        for head, level in zip(self.levels, (features.s4, features.s8, features.s16), strict=True):
            logits = head(level).float()
            edge, same, kind = logits.split([1, 2 * len(_OFFSETS), self._kinds + 1], dim=1)
            border = F.adaptive_max_pool2d(edges, edge.shape[-2:])
            terms["edge"].append(F.binary_cross_entropy_with_logits(edge[:, 0], border))
            terms["same"].append(_same_loss(same, label_NSS))
            if known.any():
                target = F.adaptive_avg_pool2d(shares, kind.shape[-2:])
                terms["kind"].append(F.cross_entropy(kind[known], target))
            else:
                terms["kind"].append(kind.sum() * 0)
        return {name: torch.stack(values).mean() for name, values in terms.items()}


def _edges(label_NSS: Tensor) -> Tensor:
    """(N, S, S) 1 on borders between labels."""
    edges = torch.zeros(label_NSS.shape, device=label_NSS.device)
    edges[:, 1:] += (label_NSS[:, 1:] != label_NSS[:, :-1]).float()
    edges[:, :, 1:] += (label_NSS[:, :, 1:] != label_NSS[:, :, :-1]).float()
    return edges.clamp(max=1)


def _same_loss(logits_NCHW: Tensor, label_NSS: Tensor) -> Tensor:
    """Cross-entropy of "the cell ``offset`` further down, or right, is of the same object"."""
    stride = label_NSS.shape[-1] // logits_NCHW.shape[-1]
    label = label_NSS[:, stride // 2 :: stride, stride // 2 :: stride]
    losses = []
    for place, offset in enumerate(_OFFSETS):
        down = (label[:, offset:] == label[:, :-offset]).float()
        right = (label[:, :, offset:] == label[:, :, :-offset]).float()
        downwards, sideways = logits_NCHW[:, 2 * place], logits_NCHW[:, 2 * place + 1]
        losses += [
            F.binary_cross_entropy_with_logits(downwards[:, :-offset], down),
            F.binary_cross_entropy_with_logits(sideways[:, :, :-offset], right),
        ]
    return torch.stack(losses).mean()
