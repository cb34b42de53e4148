"""Settings that every training stage has."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LoopConfig"]


class LoopConfig(BaseModel):
    """One training run.

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
