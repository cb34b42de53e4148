"""Settings of what the teacher is asked: views of slices, prompts on them, tracks."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PromptConfig", "TrackConfig", "ViewConfig"]


class ViewConfig(BaseModel):
    """Geometric views of each slice that the teacher encodes.

    Attributes:
        count: stored views of each slice, the identity included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(default=1, ge=1)


class PromptConfig(BaseModel):
    """Prompts that the teacher answers on every (object, slice).

    Attributes:
        per_object: prompts of each object on each slice.
        box_share: probability of a box; else a foreground point.
        jitter: box noise as a fraction of its side.
        seed: of all sampling; each (case, slice, object) has its own stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_object: int = Field(default=2, ge=0)
    box_share: float = Field(default=0.75, ge=0, le=1)
    jitter: float = Field(default=0.1, ge=0)
    seed: int = 0


class TrackConfig(BaseModel):
    """The teacher's propagations.

    Attributes:
        per_object: prompted slices of each object, the one with its largest area first.
        length: slices of a track in one direction, the prompted one included.
        margin: slices beyond the object's end that a track still visits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_object: int = Field(default=2, ge=0)
    length: int = Field(default=6, ge=2)
    margin: int = Field(default=1, ge=0)
