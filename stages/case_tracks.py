"""The tracks of one case: which slices of an object are prompted, and how far each is followed."""

from array import array
from collections.abc import Mapping

import numpy as np

from efficient_medsam2.prompts import SampledPrompt
from efficient_medsam2.prompts_recist import RecistMark
from stages.case_labels import CaseLabels, Plane
from stages.row_columns import TrackColumns
from stages.row_prompts import (
    Target,
    box_noise,
    draw_kind,
    draw_other,
    moved_box,
    stream,
    target_on,
)
from stages.row_settings import PromptConfig, TrackConfig
from stages.slice_objects import SliceObjects, objects_on

__all__ = ["CaseTracks"]


class _Extent:
    """Where an object is large enough, one entry a slice, ascending."""

    def __init__(self) -> None:
        self.slices = array("i")
        self.areas = array("q")
        self.boxes = array("i")
        self.diameters_mm = array("d")
        self.marked = array("b")

    def box(self, slice_index: int) -> tuple[int, int, int, int]:
        """The object's box on one of its slices."""
        place = 4 * self.slices.index(slice_index)
        x0, y0, x1, y1 = self.boxes[place : place + 4]
        return x0, y0, x1, y1

    def chosen(self, config: TrackConfig) -> list[int]:
        """The slice that the rule chooses, then slices spread evenly over the object."""
        if config.per_object == 0:
            return []
        chosen = [self.slices[self._first(config)]]
        for place in range(1, config.per_object):
            share = (place - 0.5) / max(config.per_object - 1, 1)
            target = self.slices[round(share * (len(self.slices) - 1))]
            if target not in chosen:
                chosen.append(target)
        return chosen

    def _first(self, config: TrackConfig) -> int:
        if config.prompted_slice == "middle":
            return len(self.slices) // 2
        if config.prompted_slice == "largest":
            return int(np.argmax(self.areas))
        lengths = np.array(self.diameters_mm)
        marked = np.array(self.marked, dtype=bool)
        if marked.any():
            lengths[~marked] = -1
        return int(lengths.argmax())


class CaseTracks:
    """Collects where the objects are, then adds their tracks.

    Args:
        labels: the case.
        case_id: its name.
        case_code: its position in the table of cases.
        config: how tracks run.
        prompts: how their prompts are drawn.
        views: rows of each slice; tracks run on view 0.
    """

    def __init__(
        self,
        labels: CaseLabels,
        *,
        case_id: str,
        case_code: int,
        config: TrackConfig,
        prompts: PromptConfig,
        views: int,
    ) -> None:
        self._labels = labels
        self._case_id = case_id
        self._case_code = case_code
        self._config = config
        self._prompts = prompts
        self._views = views
        self._extents: dict[int, _Extent] = {}

    def note(
        self, index: int, found: SliceObjects, place: int, marks: Mapping[int, RecistMark]
    ) -> None:
        """Remember an object of a slice; slices come in ascending order.

        Args:
            index: the slice.
            found: what is on it.
            place: which of that.
            marks: the user's own marks on it.
        """
        object_id = int(found.object_id[place])
        extent = self._extents.setdefault(object_id, _Extent())
        extent.slices.append(index)
        extent.areas.append(int(found.area[place]))
        extent.boxes.extend(found.boxes_N4[place].tolist())
        if self._config.prompted_slice == "recist":
            mark = target_on(found, place, marks, pixel_xy=self._labels.pixel_xy).recist()
            extent.diameters_mm.append(mark.measured(self._labels.pixel_xy))
            extent.marked.append(object_id in marks)

    def add(self, tracks: TrackColumns, kept: range, first_row: int) -> None:
        """Add both directions from each prompted slice.

        A track goes on through slices where the object is not seen. One of a single step would
        have nothing to follow: it is left out.

        Args:
            tracks: where they go.
            kept: the slices that are stored.
            first_row: row of view 0 of the first of them.

        Raises:
            DataError: a file is damaged.
        """
        starts = [
            (object_id, start)
            for object_id, extent in sorted(self._extents.items())
            for start in extent.chosen(self._config)
        ]
        prompts = self._draw(starts)
        for object_id, start in starts:
            row = first_row + (start - kept.start) * self._views
            for direction in (1, -1):
                steps = self._steps(object_id, start, direction, kept)
                if len(steps) < 2:
                    continue
                stride = direction * self._views
                tracks.add(
                    steps,
                    range(row, row + stride * len(steps), stride),
                    prompts[object_id, start],
                    case_code=self._case_code,
                    object_id=object_id,
                    num_frames=max(self._labels.depth, 2),
                )

    def _steps(self, object_id: int, start: int, direction: int, kept: range) -> range:
        """The slices of a track: all that is stored, or to the object's end and a margin."""
        last = kept[-1] if direction > 0 else kept[0]
        if self._config.length is not None:
            seen, margin = self._extents[object_id].slices, self._config.margin
            last = min(last, seen[-1] + margin) if direction > 0 else max(last, seen[0] - margin)
        return range(start, last + direction, direction)[: self._config.length]

    def _draw(self, starts: list[tuple[int, int]]) -> dict[tuple[int, int], SampledPrompt]:
        """The prompt of each (object, prompted slice).

        Where a box will not do a slice is read again: in ascending order, which is cheapest.
        """
        jitter, size = self._prompts.jitter, self._labels.size
        drawn: dict[tuple[int, int], SampledPrompt] = {}
        plane: Plane | None = None
        found: SliceObjects | None = None
        for object_id, start in sorted(starts, key=lambda pair: (pair[1], pair[0])):
            generator = stream(self._case_id, self._prompts.seed + 1, start, object_id)
            kind = draw_kind(generator, self._config)
            if kind == "box":
                box = self._extents[object_id].box(start)
                noise = box_noise(generator, jitter)
                drawn[object_id, start] = moved_box(box, noise, jitter, size)
                continue
            if plane is None or found is None or plane[0] != start:
                plane = self._labels.plane(start)
                found = objects_on(plane[1])
            target = self._target(found, object_id, plane[2])
            drawn[object_id, start] = draw_other(kind, target, generator, self._prompts)
        return drawn

    def _target(
        self, found: SliceObjects, object_id: int, marks: Mapping[int, RecistMark]
    ) -> Target:
        place = int(np.searchsorted(found.object_id, object_id))
        return target_on(found, place, marks, pixel_xy=self._labels.pixel_xy)
