"""The rows of one case: its slices, prompts and tracks, from its labels read chunk by chunk.

Shape letters: S network input in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficient_medsam2.images.slices import CaseSlices
from efficient_medsam2.images.views import (
    IDENTITY_VIEW,
    ViewAffine,
    draw_view,
    warp_label,
    warp_points,
)
from efficient_medsam2.prompts_recist import RecistMark
from stages.case_labels import CaseLabels
from stages.case_tracks import CaseTracks
from stages.cases import DataConfig
from stages.row_columns import PromptColumns, SliceColumns, TrackColumns
from stages.row_prompts import box_noise, draw_kind, draw_other, stream, target_on
from stages.row_settings import PromptConfig, TrackConfig, ViewConfig
from stages.slice_objects import SliceObjects, objects_on

__all__ = ["CaseRows", "RowSettings", "view_affine"]


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What decides the rows of a case.

    Attributes:
        data: which slices are kept, and which objects are large enough.
        views, prompts, tracks: see their classes.
        size: S.
    """

    data: DataConfig
    views: ViewConfig
    prompts: PromptConfig
    tracks: TrackConfig
    size: int

    @property
    def marks_matter(self) -> bool:
        """Whether a user's RECIST marks are looked for."""
        shares = self.prompts.recist_share + self.tracks.recist_share
        return shares > 0 or self.tracks.prompted_slice == "recist"


class CaseRows:
    """Decides and adds the rows of one open case.

    Args:
        opened: the case.
        case_id: its name.
        case_code: its position in the table of cases.
        settings: what decides its rows.
    """

    def __init__(
        self, opened: CaseSlices, *, case_id: str, case_code: int, settings: RowSettings
    ) -> None:
        self._labels = CaseLabels(opened, size=settings.size, marked=settings.marks_matter)
        self._case_id = case_id
        self._case_code = case_code
        self._settings = settings
        self._tracks = CaseTracks(
            self._labels,
            case_id=case_id,
            case_code=case_code,
            config=settings.tracks,
            prompts=settings.prompts,
            views=settings.views.count,
        )
        self._labelled: tuple[int, int] | None = None

    def add(self, slices: SliceColumns, prompts: PromptColumns, tracks: TrackColumns) -> None:
        """Read the case's labels and add its rows.

        Raises:
            DataError: a file is damaged.
        """
        settings = self._settings
        for index, label_SS, marks in self._labels.planes():
            self._look(prompts, index, label_SS, marks)
        kept = self._kept()
        first_row = len(slices)
        for index in kept:
            slices.add(self._case_code, index, [self._affine(index, view) for view in self._views])
        prompts.settle(
            self._case_code,
            first_row=first_row,
            first_slice=kept.start,
            views=settings.views.count,
            jitter=settings.prompts.jitter,
            size=settings.size,
        )
        self._tracks.add(tracks, kept, first_row)

    @property
    def _views(self) -> range:
        return range(self._settings.views.count)

    def _affine(self, index: int, view: int) -> ViewAffine:
        return view_affine(self._settings.views, self._case_id, index, view, self._settings.size)

    def _kept(self) -> range:
        """The slices that are stored."""
        depth, margin = self._labels.depth, self._settings.data.margin
        if self._settings.data.slices == "all":
            return range(depth)
        if self._labelled is None:
            return range(0)
        first, last = self._labelled
        return range(max(first - margin, 0), min(last + margin, depth - 1) + 1)

    def _look(
        self,
        prompts: PromptColumns,
        index: int,
        label_SS: npt.NDArray[np.uint16],
        marks: Mapping[int, RecistMark],
    ) -> None:
        """Note what is on a slice, and draw the prompts on each of its views."""
        found = objects_on(label_SS)
        if len(found.object_id) == 0:
            return
        self._labelled = (index if self._labelled is None else self._labelled[0], index)
        for place in self._large(found):
            self._tracks.note(index, found, place, marks)
        if self._settings.prompts.per_object == 0:
            return
        self._prompt(prompts, index, 0, found, marks)
        for view in self._views[1:]:
            affine = self._affine(index, view)
            seen = objects_on(warp_label(label_SS, affine))
            turned = {key: _turned(mark, affine) for key, mark in marks.items()}
            self._prompt(prompts, index, view, seen, turned)

    def _large(self, found: SliceObjects) -> list[int]:
        """Places of the objects that are large enough."""
        large: list[int] = np.flatnonzero(found.area >= self._settings.data.smallest).tolist()
        return large

    def _prompt(
        self,
        prompts: PromptColumns,
        index: int,
        view: int,
        found: SliceObjects,
        marks: Mapping[int, RecistMark],
    ) -> None:
        config = self._settings.prompts
        for place in self._large(found):
            object_id = int(found.object_id[place])
            where = (index, object_id, view) if view else (index, object_id)
            generator = stream(self._case_id, config.seed, *where)
            for _ in range(config.per_object):
                kind = draw_kind(generator, config)
                if kind == "box":
                    box = found.boxes_N4[place].tolist()
                    noise = box_noise(generator, config.jitter)
                    prompts.add_box((index, view, object_id), box, noise)
                else:
                    target = target_on(found, place, marks, pixel_xy=self._labels.pixel_xy)
                    prompt = draw_other(kind, target, generator, config)
                    prompts.add((index, view, object_id), prompt)


def view_affine(
    config: ViewConfig, case_id: str, slice_index: int, view: int, size: int
) -> ViewAffine:
    """The matrix of a view of a slice: a function of these arguments alone."""
    if view == 0:
        return IDENTITY_VIEW
    return draw_view(
        stream(case_id, config.seed, slice_index, view, 0, 1),
        size=size,
        flip=config.flip,
        rotate_degrees=config.rotate_degrees,
        scale=config.scale,
        shift=config.shift,
    )


def _turned(mark: RecistMark, affine: ViewAffine) -> RecistMark:
    return mark.mapped(lambda ends: warp_points(ends, affine))
