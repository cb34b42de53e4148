"""Settings of what the teacher is asked: views of slices, prompts on them, tracks."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from efficient_medsam2.prompts_recist import RecistForm

__all__ = ["Jitter", "PromptConfig", "TrackConfig", "ViewConfig"]

_NAMED_JITTER = {"medsam2": 0.1, "none": 0.0}


def _jitter(value: object) -> object:
    """MedSAM2's noise and none are fractions of the side; the challenge's noise is not."""
    if not isinstance(value, str) or value == "challenge":
        return value
    if value not in _NAMED_JITTER:
        raise ValueError(f"{value!r} is no jitter: medsam2, challenge, none, or a fraction")
    return _NAMED_JITTER[value]


Jitter = Annotated[
    Annotated[float, Field(ge=0)] | Literal["challenge"],
    BeforeValidator(_jitter),
]
"""Noise of a box: ``medsam2`` (0.1), ``none`` (0), a fraction of the side, or ``challenge``."""

Share = Annotated[float, Field(ge=0, le=1)]


class ViewConfig(BaseModel):
    """Geometric views of each slice that the teacher encodes, each a stored row of its own.

    View 0 is the slice itself. The others are drawn from (seed, case, slice, view) within the
    bounds below; what comes from outside the slice is black. Tracks run on view 0.

    Attributes:
        count: stored views of each slice, the identity included.
        flip: mirror each axis with probability 1/2.
        rotate_degrees: bound of the rotation about the centre, either way.
        scale: bound of the change in size: the factor lies in 1 - scale to 1 + scale.
        shift: bound of the shift along each axis, either way, as a fraction of the side.
        seed: of all views.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(default=1, ge=1, le=1024)
    flip: bool = True
    rotate_degrees: float = Field(default=15.0, ge=0, le=180)
    scale: float = Field(default=0.1, ge=0, le=0.5)
    shift: float = Field(default=0.1, ge=0, le=0.5)
    seed: int = Field(default=0, ge=0)

    def row_settings(self) -> dict[str, Any]:
        """Settings that decide what a cache holds: bounds of views only where there are any."""
        values = self.model_dump(mode="json")
        return values if self.count > 1 else {"count": 1}


class PromptConfig(BaseModel):
    """Prompts that the teacher answers on every (object, slice, view).

    The shares are probabilities; points have what the other kinds leave.

    Attributes:
        per_object: prompts of each object on each slice.
        box_share: of a box.
        recist_share: of a RECIST mark: the object's longest diameter on the slice, or the user's
            own mark where the file has one.
        mask_share: of the object's label as a mask prompt.
        jitter: noise of boxes: ``medsam2`` is U(±min(0.1 side, 20 px at 512)), a number another
            fraction of the side, ``challenge`` 0 to 5 px at 256 outward on each side, ``none``.
        max_points: a prompt of points has 1 to so many, the first of them on the object.
        negative_share: probability that a further point lies beside the object.
        recist_as: what a mark is turned into; see ``RecistForm``.
        seed: of all sampling; each (case, slice, object, view) has its own stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_object: int = Field(default=2, ge=0)
    box_share: Share = 0.75
    recist_share: Share = 0.0
    mask_share: Share = 0.0
    jitter: Jitter = 0.1
    max_points: int = Field(default=1, ge=1)
    negative_share: Share = 0.5
    recist_as: RecistForm = "points"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        _check_shares(
            box_share=self.box_share, recist_share=self.recist_share, mask_share=self.mask_share
        )
        return self

    def row_settings(self) -> dict[str, Any]:
        """Settings that decide what a cache holds."""
        return _told(
            self, ("recist_share", "mask_share", "max_points", "negative_share", "recist_as")
        )


class TrackConfig(BaseModel):
    """The teacher's propagations.

    The shares are probabilities of the prompt on the prompted slice; boxes have what the other
    kinds leave. MedSAM2 was trained with a mask and a box half of the time each: mask_share 0.5.

    Attributes:
        per_object: prompted slices of each object, the one that the rule chooses first and the
            others spread over the object.
        prompted_slice: the rule: ``largest`` area, ``middle`` of the object's slices, or
            ``recist``: the user's own mark, else the slice with the longest diameter.
        mask_share: of the object's label as a mask prompt.
        recist_share: of a RECIST mark, as ``PromptConfig.recist_as`` says.
        points_share: of points, as ``PromptConfig.max_points`` says.
        length: slices of a track in one direction, the prompted one included; null follows to
            the case's first and last stored slice, as MedSAM2's own inference does (every slice
            is stored with ``data.slices=all``).
        margin: slices beyond the object's end that a track of bounded length still visits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_object: int = Field(default=2, ge=0)
    prompted_slice: Literal["largest", "middle", "recist"] = "largest"
    mask_share: Share = 0.0
    recist_share: Share = 0.0
    points_share: Share = 0.0
    length: int | None = Field(default=6, ge=2)
    margin: int = Field(default=1, ge=0)

    @property
    def box_share(self) -> float:
        """Probability of a box."""
        return 1 - self.mask_share - self.recist_share - self.points_share

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        _check_shares(
            mask_share=self.mask_share,
            recist_share=self.recist_share,
            points_share=self.points_share,
        )
        return self

    def row_settings(self) -> dict[str, Any]:
        """Settings that decide what a cache holds."""
        return _told(self, ("prompted_slice", "mask_share", "recist_share", "points_share"))


def _check_shares(**shares: float) -> None:
    if sum(shares.values()) > 1 + 1e-9:
        named = " + ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ValueError(f"{named} is more than 1: shares are probabilities; lower one of them")


def _told(config: PromptConfig | TrackConfig, later: tuple[str, ...]) -> dict[str, Any]:
    """All settings but those of ``later`` at their default.

    Caches made before a setting existed do not name it, and were made with its default.
    """
    values = config.model_dump(mode="json")
    defaults = {name: field.default for name, field in type(config).model_fields.items()}
    return {
        name: value
        for name, value in values.items()
        if name not in later or value != defaults[name]
    }
