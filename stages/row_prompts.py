"""Which prompt is drawn on an object of a slice.

Every (case, slice, object, view) has a random stream of its own: no other row's prompts shift it.

Shape letters: S network input in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from efficient_medsam2.prompts import (
    CHALLENGE_SHIFT_PIXELS,
    SampledPrompt,
    challenge_boxes,
    jittered_boxes,
)
from efficient_medsam2.prompts_points import sample_points
from efficient_medsam2.prompts_recist import RecistMark, mark_of_mask, sample_recist
from stages.row_settings import Jitter, PromptConfig, TrackConfig
from stages.slice_objects import SliceObjects

__all__ = ["Target", "box_noise", "draw_kind", "draw_other", "moved_box", "stream", "target_on"]

Kind = Literal["box", "recist", "mask", "points"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """An object on one plane.

    Attributes:
        found: what is on the plane.
        place: which of that it is.
        mark: the user's own RECIST mark in network pixels, if there is one.
        pixel_xy: size of a network pixel along x and y in mm.
    """

    found: SliceObjects
    place: int
    mark: RecistMark | None
    pixel_xy: tuple[float, float]

    def recist(self) -> RecistMark:
        """The user's mark, or that of the mask, in network pixels."""
        if self.mark is not None:
            return self.mark
        mask, origin = self.found.window(self.place)
        mark = mark_of_mask(mask, pixel_xy=self.pixel_xy)
        return mark.mapped(lambda ends: ends + np.array(origin, dtype=np.float64))


def target_on(
    found: SliceObjects,
    place: int,
    marks: Mapping[int, RecistMark],
    *,
    pixel_xy: tuple[float, float],
) -> Target:
    """An object of a plane, with the user's mark on it where ``marks`` has one."""
    mark = marks.get(int(found.object_id[place]))
    return Target(found=found, place=place, mark=mark, pixel_xy=pixel_xy)


def stream(case_id: str, seed: int, *numbers: int) -> np.random.Generator:
    """The random stream of a place in a case."""
    name = int.from_bytes(case_id.encode()[-16:], "little")
    return np.random.default_rng([seed, name, *numbers])


def draw_kind(generator: np.random.Generator, config: PromptConfig | TrackConfig) -> Kind:
    """A kind of prompt by the shares of ``config``; points have what is left."""
    drawn, bound = generator.random(), 0.0
    kinds: tuple[tuple[Kind, float], ...] = (
        ("box", config.box_share),
        ("recist", config.recist_share),
        ("mask", config.mask_share),
    )
    for kind, share in kinds:
        bound += share
        if drawn < bound:
            return kind
    return "points"


def box_noise(generator: np.random.Generator, jitter: Jitter) -> list[float]:
    """Four numbers that move a box: of U(-1, 1), or 0 to 5 for the challenge's."""
    if jitter == "challenge":
        return [float(v) for v in generator.integers(CHALLENGE_SHIFT_PIXELS + 1, size=4)]
    noise: list[float] = generator.uniform(-1, 1, 4).tolist()
    return noise


def moved_box(
    box: tuple[int, int, int, int], noise: list[float], jitter: Jitter, size: int
) -> SampledPrompt:
    """A box prompt, its noise added."""
    boxes, noises = np.array([box], dtype=np.float32), np.array([noise])
    if jitter == "challenge":
        moved = challenge_boxes(boxes, noises, size=size)
    else:
        moved = jittered_boxes(boxes, noises, size=size, fraction=jitter)
    return SampledPrompt(
        kind="box", points_N2=moved.reshape(2, 2), labels_N=np.array([2, 3], dtype=np.int64)
    )


def draw_other(
    kind: Kind, target: Target, generator: np.random.Generator, config: PromptConfig
) -> SampledPrompt:
    """A prompt of any kind but a box."""
    if kind == "mask":
        return SampledPrompt(
            kind="mask",
            points_N2=np.zeros((0, 2), dtype=np.float32),
            labels_N=np.zeros(0, dtype=np.int64),
        )
    if kind == "recist":
        size = len(target.found.label_SS)
        return sample_recist(target.recist(), generator, size=size, form=config.recist_as)
    mask, origin = target.found.window(target.place)
    prompt = sample_points(
        mask, generator, most=config.max_points, negative_share=config.negative_share
    )
    points = prompt.points_N2 + np.array(origin, dtype=np.float32)
    return SampledPrompt(kind=prompt.kind, points_N2=points, labels_N=prompt.labels_N)
