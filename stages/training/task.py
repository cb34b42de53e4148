"""What a stage hands to the training loop, and what it gets back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

__all__ = ["TrainingResult", "TrainingTask"]

BatchT = TypeVar("BatchT")


def _undivided(batch: Any) -> Sequence[Any]:  # noqa: ANN401 - whatever the task makes
    return [batch]


@dataclass(frozen=True, kw_only=True)
class TrainingTask(Generic[BatchT]):
    """A stage's share of the loop.

    Attributes:
        module: what is trained. ``module(part)`` gives the loss terms by name, the sum to
            minimise under ``loss``; those of a batch are the sums over its parts. Parameters
            without ``requires_grad`` stay as they are.
        make_batch: batch number → batch, a pure function; it runs in a background thread.
        parts: batch → what goes through the module, one after the other: the gradients of a part
            are there before the next one starts, so no more than one part's inner maps are kept.
            At least one; the batch itself where not given.
        validate: figures of the module as it is now, such as DSC on the validation split.
        best_by: the figure (higher is better) that picks the weights to hand on; without it the
            last weights are handed on.
        may_keep_start: whether the weights from before the first step may be the best, as they
            may for a stage that takes over a trained student.
    """

    module: nn.Module
    make_batch: Callable[[int], BatchT]
    parts: Callable[[BatchT], Sequence[Any]] = _undivided
    validate: Callable[[], dict[str, float]] | None = None
    best_by: str | None = None
    may_keep_start: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training run ended.

    Attributes:
        steps: optimiser steps done.
        final: loss terms of the last logged window.
        validation: figures of the weights handed on.
        best_step: the step of those weights.
        started_at: figures before the first step, where the task validates.
    """

    steps: int
    final: dict[str, float]
    validation: dict[str, float]
    best_step: int
    started_at: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """As JSON values, for the stage's manifest."""
        return {
            "steps": self.steps,
            "loss": self.final.get("loss"),
            "losses": self.final,
            "validation": self.validation,
            "validation_before": self.started_at,
            "best_step": self.best_step,
        }
