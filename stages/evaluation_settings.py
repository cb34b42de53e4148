"""Settings of the evaluation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["EvaluateConfig"]


class EvaluateConfig(BaseModel):
    """What is measured.

    Attributes:
        split: which cases.
        track_length: slices of a track around its prompted slice.
        nsd_tolerance_mm: of the normalised surface distance.
        samples: pictures kept for the report.
        limit: at most so many cases, evenly spread; None for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["train", "validation", "test"] = "test"
    track_length: int = Field(default=11, ge=2)
    nsd_tolerance_mm: float = Field(default=2.0, gt=0)
    samples: int = Field(default=6, ge=0)
    limit: int | None = Field(default=None, ge=1)
