"""Settings that every training stage has."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["LoopConfig", "StudentLoopConfig"]

_CHANGE = (
    "affine|crop|cutmix|deformation|elastic|flips?|hflip|mirror|mixup|mosaic|perspective|resize|"
    "rot90|rotat(?:e|ion)|scale|shear|shift|translat(?:e|ion)|transpose|vflip|warp|zoom"
)
_BESIDE = (
    "and|augment(?:ation)?|degrees|horizontal|limit|p|prob(?:ability)?|random|range|share|vertical"
)
_GEOMETRIC = re.compile(rf"(?:(?:{_BESIDE})_)*(?:{_CHANGE})(?:_(?:{_CHANGE}|{_BESIDE}))*")
"""Names of keys that ask for another geometry: such words alone, in any order."""


def _geometric_keys(block: Mapping[str, Any], known: frozenset[str]) -> Iterator[str]:
    """Keys of a block, and of mappings inside it, that ask for another geometry."""
    for key, value in block.items():
        if key not in known and _GEOMETRIC.fullmatch(str(key)):
            yield key
        elif isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in _geometric_keys(value, frozenset()))


class LoopConfig(BaseModel):
    """One training run.

    The student's input may be augmented photometrically alone: keys that ask for another geometry
    are refused with the reason.

    Attributes:
        steps: optimiser steps.
        batch_size: rows per step.
        learning_rate: peak of the schedule.
        final_learning_rate: end of the cosine, as a fraction of the peak.
        warmup: share of the steps that raise the learning rate linearly.
        weight_decay: of AdamW, on matrices only.
        clip_norm: bound of the gradient's norm.
        precision: ``no`` is float32; ``bf16`` and ``fp16`` are autocast on a GPU.
        accumulate: batches per optimiser step.
        log_every: steps between two lines of ``metrics.jsonl``.
        validate_every: steps between two validations; 0 = only at the end.
        checkpoint_seconds: at most this much work is lost by a kill.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    final_learning_rate: float = Field(default=0.01, ge=0, le=1)
    warmup: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=5.0, gt=0)
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: int = Field(default=1, ge=1)
    log_every: int = Field(default=10, ge=1)
    validate_every: int = Field(default=0, ge=0)
    checkpoint_seconds: float = Field(default=15.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _refuse_geometry(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic's raw input
        if not isinstance(data, Mapping):
            return data
        asked = list(_geometric_keys(data, frozenset(cls.model_fields)))
        if asked:
            raise ValueError(
                f"{', '.join(asked)}: geometric augmentation of a student's input is refused. A "
                "cached feature belongs to the geometry of its image: a mirrored image against "
                "an unmirrored feature agrees to a cosine of 0.87 only. Let the teacher encode "
                "such views: --set precompute.views.count=4. Photometric augmentation, `augment`, "
                "is free"
            )
        return data


class StudentLoopConfig(LoopConfig):
    """One training run of a student.

    Attributes:
        at_once: slices of a batch that go through the student together. What it computes of one
            part of a batch is gone before the next part, so memory hangs on this and not on the
            batch; a large GPU may be faster with more. Batch norms that are trained take their
            statistics of a part; else the result is the same but for rounding.
    """

    at_once: int = Field(default=3, ge=1)
