"""Rows of an index as growing columns: a few dozen bytes a row, no object for each.

Letters: N rows, P points of all rows together, V distinct view affines.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.tables import PROMPT_KINDS, PointLists, PromptTable, SliceTable, TrackTable
from efficient_medsam2.images.views import IDENTITY_VIEW, ViewAffine
from efficient_medsam2.prompts import SampledPrompt, challenge_boxes, jittered_boxes
from stages.row_settings import Jitter

__all__ = ["PromptColumns", "SliceColumns", "TrackColumns"]

_CODES = {
    "box": PROMPT_KINDS.index("box"),
    "point": PROMPT_KINDS.index("points"),
    "mask": PROMPT_KINDS.index("mask"),
    "recist": PROMPT_KINDS.index("recist"),
}


class _Columns:
    """Columns that can be cut back to an earlier length, when a case turns out to be bad."""

    def sizes(self) -> dict[str, int]:
        """Length of every column."""
        return {name: len(item) for name, item in vars(self).items() if isinstance(item, array)}

    def cut(self, sizes: dict[str, int]) -> None:
        """Drop what was added since ``sizes`` was taken."""
        for name, size in sizes.items():
            del getattr(self, name)[size:]


class SliceColumns(_Columns):
    """Slice rows, in order of case, slice and view."""

    def __init__(self) -> None:
        self._case_code = array("i")
        self._slice_index = array("i")
        self._view = array("h")
        self._affine = array("d")

    def __len__(self) -> int:
        return len(self._case_code)

    def add(self, case_code: int, slice_index: int, affines: Sequence[ViewAffine]) -> None:
        """Add all views of a slice: their matrices, the identity's first."""
        for view, affine in enumerate(affines):
            self._case_code.append(case_code)
            self._slice_index.append(slice_index)
            self._view.append(view)
            if len(affines) > 1:
                self._affine.extend(affine)

    def table(self) -> SliceTable:
        """All rows."""
        affines = np.array([IDENTITY_VIEW] * min(len(self), 1), dtype=np.float64).reshape(-1, 6)
        codes = np.zeros(len(self), dtype=np.int32)
        if len(self._affine):
            every = np.frombuffer(self._affine, dtype=np.float64).reshape(-1, 6)
            distinct, first, code = np.unique(every, axis=0, return_index=True, return_inverse=True)
            order = np.argsort(first, kind="stable")  # of first appearance, as a reread index has
            affines, codes = distinct[order], np.argsort(order)[code.reshape(-1)].astype(np.int32)
        return SliceTable(
            case_code=_int32(self._case_code),
            slice_index=_int32(self._slice_index),
            view=np.array(self._view, dtype=np.int16),
            affine_code=codes,
            affines=affines,
        )


class _PointColumns(_Columns):
    """Point lists, one a row."""

    def __init__(self) -> None:
        self._counts = array("i")
        self._points = array("f")
        self._labels = array("b")

    def _add_points(self, points: Sequence[float], labels: Sequence[int], times: int = 1) -> None:
        self._counts.extend([len(labels)] * times)
        self._points.extend([*points] * times)
        self._labels.extend([*labels] * times)

    def _lists(self) -> PointLists:
        return PointLists(
            offsets=np.cumsum([0, *self._counts], dtype=np.int64),
            points=np.array(self._points, dtype=np.float32).reshape(-1, 2),
            labels=np.array(self._labels, dtype=np.int8),
        )


class PromptColumns(_PointColumns):
    """Prompt rows, in order of case, slice, view and object."""

    def __init__(self) -> None:
        super().__init__()
        self._case_code = array("i")
        self._slice_index = array("i")
        self._view = array("h")
        self._object_id = array("i")
        self._kind_code = array("b")
        self._slice_row = array("i")
        self._noisy = array("q")
        self._noise = array("d")

    def __len__(self) -> int:
        return len(self._slice_index)

    def add_box(
        self,
        place: tuple[int, int, int],
        box: Sequence[float],
        noise: Sequence[float],
    ) -> None:
        """Add a tight box whose noise ``settle`` adds, for all boxes of a case at once.

        Args:
            place: slice, view and object.
            box: x0, y0, x1, y1.
            noise: a number for each, of U(-1, 1), or 0 to 5 for the challenge's.
        """
        self._noisy.append(len(self._labels))
        self._noise.extend(noise)
        self._add(place, "box")
        self._add_points(box, (2, 3))

    def add(self, place: tuple[int, int, int], prompt: SampledPrompt) -> None:
        """Add a prompt as it is; ``place`` is its slice, view and object."""
        self._add(place, prompt.kind)
        self._add_points(prompt.points_N2.ravel().tolist(), prompt.labels_N.tolist())

    def settle(
        self,
        case_code: int,
        *,
        first_row: int,
        first_slice: int,
        views: int,
        jitter: Jitter,
        size: int,
    ) -> None:
        """Finish the rows of a case, now that its slice rows are known.

        Args:
            case_code: position of the case in the table of cases.
            first_row: row of view 0 of its first stored slice.
            first_slice: that slice.
            views: rows of each slice.
            jitter: which noise the boxes get.
            size: S, the side of the network's input.
        """
        added = len(self) - len(self._case_code)
        self._case_code.extend([case_code] * added)
        if added:
            own = slice(len(self) - added, None)
            slices = np.array(self._slice_index[own], dtype=np.int32)
            view = np.array(self._view[own], dtype=np.int32)
            rows = first_row + (slices - first_slice) * views + view
            self._slice_row.frombytes(rows.astype(np.int32).tobytes())
        if len(self._noisy):
            points = np.frombuffer(self._points, dtype=np.float32).reshape(-1, 2)
            corners = np.array(self._noisy, dtype=np.int64)[:, None] + np.arange(2)
            noise = np.array(self._noise, dtype=np.float64).reshape(-1, 4)
            boxes = points[corners].reshape(-1, 4)
            if jitter == "challenge":
                moved = challenge_boxes(boxes, noise, size=size)
            else:
                moved = jittered_boxes(boxes, noise, size=size, fraction=jitter)
            points[corners] = moved.reshape(-1, 2, 2)
        del self._noisy[:], self._noise[:]

    def table(self) -> PromptTable:
        """All rows."""
        return PromptTable(
            case_code=_int32(self._case_code),
            slice_index=_int32(self._slice_index),
            object_id=_int32(self._object_id),
            slice_row=_int32(self._slice_row),
            view=np.array(self._view, dtype=np.int16),
            kind_code=np.array(self._kind_code, dtype=np.int8),
            prompt=self._lists(),
        )

    def _add(self, place: tuple[int, int, int], kind: str) -> None:
        slice_index, view, object_id = place
        self._slice_index.append(slice_index)
        self._view.append(view)
        self._object_id.append(object_id)
        self._kind_code.append(_CODES[kind])


class TrackColumns(_PointColumns):
    """Track rows: the steps of all tracks, track after track."""

    def __init__(self) -> None:
        super().__init__()
        self._lengths = array("i")
        self._case_code = array("i")
        self._object_id = array("i")
        self._prompted_slice = array("i")
        self._direction = array("b")
        self._step = array("i")
        self._slice_index = array("i")
        self._slice_row = array("i")
        self._num_frames = array("i")
        self._kind_code = array("b")

    def __len__(self) -> int:
        return len(self._case_code)

    def add(
        self,
        slices: range,
        rows: range,
        prompt: SampledPrompt,
        *,
        case_code: int,
        object_id: int,
        num_frames: int,
    ) -> None:
        """Add a track.

        Args:
            slices: the slices it visits, at least two, the prompted one first.
            rows: their slice rows.
            prompt: on the first of them.
            case_code: position of the case in the table of cases.
            object_id: the object that is followed.
            num_frames: for the pointers' time code.
        """
        steps = len(slices)
        self._lengths.append(steps)
        self._case_code.extend([case_code] * steps)
        self._object_id.extend([object_id] * steps)
        self._prompted_slice.extend([slices[0]] * steps)
        self._direction.extend([slices.step] * steps)
        self._step.extend(range(steps))
        self._slice_index.extend(slices)
        self._slice_row.extend(rows)
        self._num_frames.extend([num_frames] * steps)
        self._kind_code.extend([_CODES[prompt.kind]] * steps)
        self._add_points(prompt.points_N2.ravel().tolist(), prompt.labels_N.tolist(), steps)

    def table(self) -> TrackTable:
        """All rows."""
        lengths = np.array(self._lengths, dtype=np.int64)
        return TrackTable(
            track=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            case_code=_int32(self._case_code),
            object_id=_int32(self._object_id),
            prompted_slice=_int32(self._prompted_slice),
            step=_int32(self._step),
            slice_index=_int32(self._slice_index),
            slice_row=_int32(self._slice_row),
            num_frames=_int32(self._num_frames),
            direction=np.array(self._direction, dtype=np.int8),
            kind_code=np.array(self._kind_code, dtype=np.int8),
            prompt=self._lists(),
        )


def _int32(column: Any) -> npt.NDArray[np.int32]:  # noqa: ANN401 - array.array
    return np.array(column, dtype=np.int32)
