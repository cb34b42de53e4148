"""Index tables in memory: columns as numpy arrays, under 64 bytes a row.

Letters: N rows of the table, P points of all rows together, V distinct view affines,
T tracks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cache.records import Affine, PromptKind, PromptRow, SliceRow, TrackRow

__all__ = ["PROMPT_KINDS", "PointLists", "PromptTable", "SliceTable", "TrackTable", "columns_of"]

PROMPT_KINDS: tuple[PromptKind, ...] = ("box", "points", "mask", "recist")
"""Kinds by their code. Codes are stored: new kinds go to the end."""

_CORNERS = (2, 3)
"""Labels of the corners of a box."""

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class PointLists:
    """Point lists of different lengths, one a row.

    Attributes:
        offsets: int64 (N+1,): row ``i`` owns points ``offsets[i]:offsets[i + 1]``.
        points: float32 (P, 2): (x, y) in pixels of the network input.
        labels: int8 (P,).
    """

    offsets: Int64
    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int8]

    def row(self, row: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
        """Give points (n, 2) and labels (n,) of one row."""
        part = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return self.points[part], self.labels[part]

    def kind_codes(self) -> npt.NDArray[np.int8]:
        """The kind that each row's labels tell, int8 (N,): no point is a mask, a corner a box."""
        codes = np.full(len(self.offsets) - 1, PROMPT_KINDS.index("points"), dtype=np.int8)
        counts = np.diff(self.offsets)
        codes[counts == 0] = PROMPT_KINDS.index("mask")
        first = self.offsets[:-1][counts > 0]
        box = np.isin(self.labels[first], _CORNERS)
        codes[np.flatnonzero(counts > 0)[box]] = PROMPT_KINDS.index("box")
        return codes

    @classmethod
    def of(cls, rows: Iterable[PromptRow | TrackRow]) -> "PointLists":
        """Gather the lists of ``rows``.

        Raises:
            ValueError: a row has not one label a point, or a mask prompt has points.
        """
        counts = [0]
        points: list[tuple[float, float]] = []
        labels: list[int] = []
        for row in rows:
            if len(row.points) != len(row.labels):
                raise ValueError(
                    f"row {row.row} of case {row.case_id}: "
                    f"{len(row.points)} points but {len(row.labels)} labels"
                )
            counts.append(len(row.points))
            points.extend(row.points)
            labels.extend(row.labels)
        return cls(
            offsets=np.cumsum(counts, dtype=np.int64),
            points=np.asarray(points, dtype=np.float32).reshape(-1, 2),
            labels=np.asarray(labels, dtype=np.int8),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceTable:
    """The ``slices`` rows.

    Attributes:
        case_code: int32 (N,): position of the case in the table of cases.
        slice_index: int32 (N,): index along D.
        view: int16 (N,).
        affine_code: int32 (N,): position in ``affines``.
        affines: float64 (V, 6): the distinct view matrices.
    """

    case_code: Int32
    slice_index: Int32
    view: npt.NDArray[np.int16]
    affine_code: Int32
    affines: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.case_code)

    def affine(self, row: int) -> Affine:
        """Give the view's matrix of one row."""
        return cast(Affine, tuple(self.affines[self.affine_code[row]].tolist()))

    @cached_property
    def _sorted_keys(self) -> tuple[Int64, Int64]:
        keys = self._keys()
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    @cached_property
    def _key_factors(self) -> tuple[int, int]:
        return int(self.slice_index.max(initial=0)) + 1, int(self.view.max(initial=0)) + 1

    def _keys(self) -> Int64:
        slices, views = self._key_factors
        keys = self.case_code.astype(np.int64)  # then in place: the table may be large
        keys *= slices
        keys += self.slice_index
        keys *= views
        keys += self.view
        return keys

    def find(self, case_code: int, slice_index: int, view: int) -> int | None:
        """Give the row of a (case, slice, view), or ``None`` where there is none."""
        keys, order = self._sorted_keys
        slices, views = self._key_factors
        key = (case_code * slices + slice_index) * views + view
        position = int(np.searchsorted(keys, key))
        if position == len(keys) or keys[position] != key:
            return None
        row = int(order[position])
        same = self.slice_index[row] == slice_index and self.view[row] == view
        return row if same else None

    def duplicate(self) -> int | None:
        """Give a row whose (case, slice, view) an earlier row has already, if any."""
        keys = self._keys()
        if (keys[1:] > keys[:-1]).all():  # as rows usually are: nothing needs to be sorted
            return None
        keys, order = self._sorted_keys
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        return int(order[twice[0] + 1]) if len(twice) else None

    @classmethod
    def of(cls, rows: Iterable[SliceRow], case_codes: dict[str, int]) -> "SliceTable":
        """Make the table of ``rows``, whose cases have the given codes."""
        affines: dict[Affine, int] = {}
        cells = [
            (
                case_codes[row.case_id],
                row.slice_index,
                row.view,
                affines.setdefault(_plain_affine(row.affine), len(affines)),
            )
            for row in rows
        ]
        table = np.asarray(cells, dtype=np.int64).reshape(-1, 4)
        return cls(
            case_code=table[:, 0].astype(np.int32),
            slice_index=table[:, 1].astype(np.int32),
            view=table[:, 2].astype(np.int16),
            affine_code=table[:, 3].astype(np.int32),
            affines=np.asarray(list(affines), dtype=np.float64).reshape(-1, 6),
        )


def _plain_affine(values: Affine) -> Affine:
    if len(values) != 6:
        raise ValueError(f"a view's affine has 6 numbers, not {len(values)}: {values}")
    return cast(Affine, tuple(float(value) for value in values))


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptTable:
    """The ``prompts`` rows.

    Attributes:
        case_code, slice_index, object_id, slice_row: int32 (N,).
        view: int16 (N,).
        kind_code: int8 (N,): position in ``PROMPT_KINDS``.
        prompt: points and labels of each row.
    """

    case_code: Int32
    slice_index: Int32
    object_id: Int32
    slice_row: Int32
    view: npt.NDArray[np.int16]
    kind_code: npt.NDArray[np.int8]
    prompt: PointLists

    def __len__(self) -> int:
        return len(self.case_code)

    @classmethod
    def of(cls, rows: tuple[PromptRow, ...], case_codes: dict[str, int]) -> "PromptTable":
        """Make the table of ``rows``, whose cases have the given codes."""
        return cls(
            case_code=np.asarray([case_codes[row.case_id] for row in rows], dtype=np.int32),
            slice_index=np.asarray([row.slice_index for row in rows], dtype=np.int32),
            object_id=np.asarray([row.object_id for row in rows], dtype=np.int32),
            slice_row=np.asarray([row.slice_row for row in rows], dtype=np.int32),
            view=np.asarray([row.view for row in rows], dtype=np.int16),
            kind_code=np.asarray([PROMPT_KINDS.index(row.kind) for row in rows], dtype=np.int8),
            prompt=PointLists.of(rows),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrackTable:
    """The ``tracks`` rows: the steps of all tracks, track after track.

    Attributes:
        track, case_code, object_id, prompted_slice, step, slice_index, slice_row,
            num_frames: int32 (N,).
        direction: int8 (N,): +1 or -1.
        kind_code: int8 (N,): position in ``PROMPT_KINDS``; same on each row of a track.
        prompt: the track's prompt, on each of its rows.
    """

    track: Int32
    case_code: Int32
    object_id: Int32
    prompted_slice: Int32
    step: Int32
    slice_index: Int32
    slice_row: Int32
    num_frames: Int32
    direction: npt.NDArray[np.int8]
    kind_code: npt.NDArray[np.int8]
    prompt: PointLists

    def __len__(self) -> int:
        return len(self.track)

    @cached_property
    def first_rows(self) -> Int64:
        """Row of step 0 of each track, int64 (T,)."""
        return np.flatnonzero(self.step == 0).astype(np.int64)

    @cached_property
    def lengths(self) -> Int64:
        """Number of steps of each track, int64 (T,)."""
        return np.diff(np.append(self.first_rows, len(self)))

    @property
    def kinds_are_plain(self) -> bool:
        """Whether every row's kind is what its labels tell."""
        return bool(np.array_equal(self.kind_code, self.prompt.kind_codes()))

    @classmethod
    def of(cls, rows: tuple[TrackRow, ...], case_codes: dict[str, int]) -> "TrackTable":
        """Make the table of ``rows``, whose cases have the given codes."""
        return cls(
            track=np.asarray([row.track for row in rows], dtype=np.int32),
            case_code=np.asarray([case_codes[row.case_id] for row in rows], dtype=np.int32),
            object_id=np.asarray([row.object_id for row in rows], dtype=np.int32),
            prompted_slice=np.asarray([row.prompted_slice for row in rows], dtype=np.int32),
            step=np.asarray([row.step for row in rows], dtype=np.int32),
            slice_index=np.asarray([row.slice_index for row in rows], dtype=np.int32),
            slice_row=np.asarray([row.slice_row for row in rows], dtype=np.int32),
            num_frames=np.asarray([row.num_frames for row in rows], dtype=np.int32),
            direction=np.asarray([row.direction for row in rows], dtype=np.int8),
            kind_code=np.asarray([PROMPT_KINDS.index(row.kind) for row in rows], dtype=np.int8),
            prompt=PointLists.of(rows),
        )


def columns_of(table: SliceTable | PromptTable | TrackTable | PointLists) -> dict[str, Any]:
    """Give a table's columns by name, nested point lists as ``prompt.points`` and so on."""
    columns: dict[str, Any] = {}
    for field in fields(table):
        value = getattr(table, field.name)
        if isinstance(value, PointLists):
            nested = columns_of(value)
            columns.update({f"{field.name}.{name}": item for name, item in nested.items()})
        else:
            columns[field.name] = value
    return columns
