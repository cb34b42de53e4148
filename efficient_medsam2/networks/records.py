"""What goes into and comes out of one slice of a promptable network.

Shape letters: B rows ((image, object) pairs), C channels, N points, S input size in pixels,
M candidate masks. ``h, w`` = S/16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = [
    "BOX_LABELS",
    "IGNORED_LABEL",
    "MemoryEntry",
    "Prompts",
    "SliceFeatures",
    "SliceRecord",
    "boxes_to_prompts",
]

BOX_LABELS = (2, 3)
"""Point labels of a box's top-left and bottom-right corner (SAM's convention)."""


IGNORED_LABEL = -10
"""Label of a point that only fills a batch; the prompt encoder gives it a zero embedding."""


@dataclass(frozen=True, kw_only=True)
class SliceFeatures:
    """Exactly what the mask decoder and the memory consume of an image.

    Attributes:
        s4: (B, C/8, S/4, S/4), the stride-4 level after ``conv_s0``.
        s8: (B, C/4, S/8, S/8), the stride-8 level after ``conv_s1``.
        s16: (B, C, S/16, S/16), the raw stride-16 level (no memory, no embedding added).
    """

    s4: Tensor
    s8: Tensor
    s16: Tensor

    def take(self, rows: Tensor) -> "SliceFeatures":
        """Rows by index, repeats allowed: several objects of one image share its features."""
        return SliceFeatures(s4=self.s4[rows], s8=self.s8[rows], s16=self.s16[rows])

    @classmethod
    def joined(cls, parts: Sequence["SliceFeatures"]) -> "SliceFeatures":
        """Rows of several, one after the other."""
        return cls(
            s4=torch.cat([part.s4 for part in parts]),
            s8=torch.cat([part.s8 for part in parts]),
            s16=torch.cat([part.s16 for part in parts]),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "SliceFeatures":
        """Copy to a device, optionally to another dtype."""
        return SliceFeatures(
            s4=self.s4.to(device, dtype),
            s8=self.s8.to(device, dtype),
            s16=self.s16.to(device, dtype),
        )


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """One prompt per row, in pixels of the S x S network input.

    Attributes:
        points_BN2: (B, N, 2) as (x, y); a box is its two corners. N is 0 where a mask alone is
            given.
        labels_BN: (B, N) int64: 1 foreground, 0 background, 2 and 3 box corners,
            -10 padding, a token of zeros: it adds nothing of its own, but the decoder does attend
            to it, so an answer depends (slightly) on how many points its batch was filled to.
        mask_logits: (B, 1, S/4, S/4) logits of an earlier answer, refined by the points, or of
            a mask that is the whole prompt (see ``mask_prompts``).
    """

    points_BN2: Tensor
    labels_BN: Tensor
    mask_logits: Tensor | None = None

    def take(self, rows: Tensor) -> "Prompts":
        """Rows by index."""
        mask = None if self.mask_logits is None else self.mask_logits[rows]
        return Prompts(
            points_BN2=self.points_BN2[rows], labels_BN=self.labels_BN[rows], mask_logits=mask
        )

    def to(self, device: torch.device | str) -> "Prompts":
        """Copy to a device."""
        mask = None if self.mask_logits is None else self.mask_logits.to(device)
        return Prompts(
            points_BN2=self.points_BN2.to(device),
            labels_BN=self.labels_BN.to(device),
            mask_logits=mask,
        )


def boxes_to_prompts(boxes_B4: Tensor) -> Prompts:
    """Boxes (B, 4) as (x0, y0, x1, y1) in network pixels → prompts of two corner points."""
    labels = torch.tensor(BOX_LABELS, dtype=torch.int64, device=boxes_B4.device)
    return Prompts(
        points_BN2=boxes_B4.reshape(-1, 2, 2).float(),
        labels_BN=labels.expand(boxes_B4.shape[0], 2),
    )


@dataclass(frozen=True, kw_only=True)
class MemoryEntry:
    """What the memory bank keeps of one slice.

    Attributes:
        position: index of the slice in its case (or frame in its video).
        prompted: whether a user prompt conditioned it.
        memory: (B, 64, h, w) memory encoder output, the no-object embedding included.
        object_pointer: (B, C).
    """

    position: int
    prompted: bool
    memory: Tensor
    object_pointer: Tensor

    def take(self, rows: Tensor) -> "MemoryEntry":
        """Rows by index."""
        return replace(self, memory=self.memory[rows], object_pointer=self.object_pointer[rows])


@dataclass(frozen=True, kw_only=True)
class SliceRecord:
    """All that one slice gives: a distillation target and the student's tap have one name.

    Attributes:
        conditioned_s16: (B, C, h, w) features that entered the mask decoder: raw + no-memory
            embedding on a slice with a box or points, raw on one with a mask prompt, else the
            output of the memory attention.
        candidate_logits: (B, M, S/4, S/4) logits of every mask of the decoder.
        iou: (B, M) predicted IoU of each candidate.
        mask_logits: (B, 1, S/4, S/4) logits of the chosen mask; -1024 where absent.
        visible_logits: (B, 1, S/4, S/4) the same before absence is applied: what a loss reads.
        object_pointer: (B, C).
        object_score: (B, 1) logit that the object is on this slice.
    """

    conditioned_s16: Tensor
    candidate_logits: Tensor
    iou: Tensor
    mask_logits: Tensor
    visible_logits: Tensor
    object_pointer: Tensor
    object_score: Tensor

    def take(self, rows: Tensor) -> "SliceRecord":
        """Rows by index."""
        return SliceRecord(
            **{field.name: getattr(self, field.name)[rows] for field in fields(self)}
        )

    @classmethod
    def joined(cls, parts: Sequence["SliceRecord"]) -> "SliceRecord":
        """Rows of several records, one after the other; all have as many candidates M."""
        return cls(
            **{
                field.name: torch.cat([getattr(part, field.name) for part in parts])
                for field in fields(cls)
            }
        )

    @property
    def best_iou(self) -> Tensor:
        """(B, 1) predicted IoU of the chosen mask."""
        return self.iou.max(dim=1, keepdim=True).values
