"""The index: identity → row.

Rows are found by (case, slice, view), never by position in a folder. The index is complete before
the first array row is written; what is written so far stands in the ledger.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cache.cases import CaseTable
from cache.durable import canonical_json
from cache.records import CaseRow, PromptRow, SliceRow, TrackRow
from cache.schema import RowSpace
from cache.tables import PROMPT_KINDS, PromptTable, SliceTable, TrackTable, columns_of

__all__ = ["CacheIndex"]

Int64 = npt.NDArray[np.int64]


class CacheIndex:
    """The four index tables, checked against each other.

    Args:
        cases: table of cases.
        slices, prompts, tracks: tables whose ``case_code`` points into ``cases``.

    Raises:
        ValueError: a (case, slice, view) is there twice, a prompt or track points to a slice row
            of another identity, or a track's rows are not steps 0, 1, 2, ...
    """

    def __init__(
        self, *, cases: CaseTable, slices: SliceTable, prompts: PromptTable, tracks: TrackTable
    ) -> None:
        self.cases = cases
        self.slices = slices
        self.prompts = prompts
        self.tracks = tracks
        self._check_slices()
        self._check_prompts()
        self._check_tracks()

    @classmethod
    def from_rows(
        cls,
        *,
        cases: Iterable[CaseRow],
        slices: Iterable[SliceRow],
        prompts: Iterable[PromptRow] = (),
        tracks: Iterable[TrackRow] = (),
    ) -> "CacheIndex":
        """Make an index of records.

        Args:
            cases: in any order.
            slices: in order of ``row``, from 0 without gaps.
            prompts: the same.
            tracks: the same.

        Raises:
            ValueError: as the class, or rows out of order.
            KeyError: a row of a case that is not in ``cases``.
        """
        table = CaseTable.of(cases)
        slice_rows, prompt_rows, track_rows = tuple(slices), tuple(prompts), tuple(tracks)
        _check_order(slice_rows)
        _check_order(prompt_rows)
        _check_order(track_rows)
        return cls(
            cases=table,
            slices=SliceTable.of(slice_rows, table.codes),
            prompts=PromptTable.of(prompt_rows, table.codes),
            tracks=TrackTable.of(track_rows, table.codes),
        )

    def counts(self) -> dict[RowSpace, int]:
        """Give the number of rows of each space."""
        return {
            "slices": len(self.slices),
            "prompts": len(self.prompts),
            "tracks": len(self.tracks),
        }

    @cached_property
    def content_sha256(self) -> str:
        """Digest over all tables' values: the same whichever library wrote the files.

        Kinds of tracks count where they say more than the tracks' labels do: an index written
        before tracks had a kind keeps its digest.
        """
        digest = hashlib.sha256()
        for record in self.cases.arrow.to_batches(max_chunksize=1024):
            digest.update(canonical_json(record.to_pylist()))
        for table in (self.slices, self.prompts, self.tracks):
            columns = columns_of(table)
            if isinstance(table, TrackTable) and table.kinds_are_plain:
                del columns["kind_code"]
            for name, values in columns.items():
                plain = np.ascontiguousarray(values)
                digest.update(f"{name} {plain.dtype.str} {plain.shape}".encode())
                digest.update(plain.tobytes())
        return digest.hexdigest()

    def find(self, case_id: str, slice_index: int, view: int = 0) -> int:
        """Give the row of a view of a slice.

        Raises:
            KeyError: the cache has no such case, slice or view.
        """
        code = self.cases.codes.get(case_id)
        row = None if code is None else self.slices.find(code, slice_index, view)
        if row is None:
            raise KeyError(f"no row for case {case_id!r}, slice {slice_index}, view {view}")
        return row

    def select(
        self,
        space: RowSpace = "slices",
        *,
        split: str | None = None,
        cases: Sequence[str] | None = None,
        view: int | None = None,
    ) -> Int64:
        """Give the rows of a space, ascending, int64 (n,).

        Args:
            space: which rows.
            split: only cases of this split.
            cases: only these cases.
            view: only this view of a slice (track rows: the view of their slice row).

        Raises:
            KeyError: an unknown split or case.
        """
        tables: dict[RowSpace, SliceTable | PromptTable | TrackTable] = {
            "slices": self.slices,
            "prompts": self.prompts,
            "tracks": self.tracks,
        }
        table = tables[space]
        wanted = np.zeros(len(self.cases), dtype=bool)
        wanted[self.cases.codes_of(split=split, cases=cases)] = True
        chosen = wanted[table.case_code]
        if view is not None:
            rows = np.arange(len(self.slices)) if space == "slices" else self._slice_rows(space)
            chosen &= self.slices.view[rows] == view
        return np.flatnonzero(chosen).astype(np.int64)

    def _slice_rows(self, space: RowSpace) -> npt.NDArray[np.int32]:
        return self.prompts.slice_row if space == "prompts" else self.tracks.slice_row

    def slice_row(self, row: int) -> SliceRow:
        """Give one row of ``slices`` as a record."""
        table = self.slices
        return SliceRow(
            row=row,
            case_id=self.cases.case_id(int(table.case_code[row])),
            slice_index=int(table.slice_index[row]),
            view=int(table.view[row]),
            affine=table.affine(row),
        )

    def prompt_row(self, row: int) -> PromptRow:
        """Give one row of ``prompts`` as a record."""
        table = self.prompts
        points, labels = table.prompt.row(row)
        return PromptRow(
            row=row,
            case_id=self.cases.case_id(int(table.case_code[row])),
            slice_index=int(table.slice_index[row]),
            view=int(table.view[row]),
            object_id=int(table.object_id[row]),
            kind=PROMPT_KINDS[int(table.kind_code[row])],
            points=tuple((float(x), float(y)) for x, y in points),
            labels=tuple(int(label) for label in labels),
            slice_row=int(table.slice_row[row]),
        )

    def track_row(self, row: int) -> TrackRow:
        """Give one row of ``tracks`` as a record."""
        table = self.tracks
        points, labels = table.prompt.row(row)
        return TrackRow(
            row=row,
            track=int(table.track[row]),
            case_id=self.cases.case_id(int(table.case_code[row])),
            object_id=int(table.object_id[row]),
            prompted_slice=int(table.prompted_slice[row]),
            direction=1 if table.direction[row] > 0 else -1,
            step=int(table.step[row]),
            slice_index=int(table.slice_index[row]),
            slice_row=int(table.slice_row[row]),
            num_frames=int(table.num_frames[row]),
            kind=PROMPT_KINDS[int(table.kind_code[row])],
            points=tuple((float(x), float(y)) for x, y in points),
            labels=tuple(int(label) for label in labels),
        )

    def _check_slices(self) -> None:
        row = self.slices.duplicate()
        if row is not None:
            twice = self.slice_row(row)
            raise ValueError(
                f"case {twice.case_id!r}, slice {twice.slice_index}, view {twice.view} "
                f"is there twice (again in row {row})"
            )

    def _check_prompts(self) -> None:
        table = self.prompts
        self._check_slice_rows("prompts", table.slice_row, table.case_code, table.slice_index)
        other_view = np.flatnonzero(self.slices.view[table.slice_row] != table.view)
        if len(other_view):
            raise ValueError(f"prompts row {other_view[0]} has the view of another slice row")

    def _check_tracks(self) -> None:
        table = self.tracks
        self._check_slice_rows("tracks", table.slice_row, table.case_code, table.slice_index)
        if not len(table):
            return
        if table.step[0] != 0:
            self._refuse_step(0)
        number = np.cumsum(table.step == 0) - 1
        expected = np.arange(len(table)) - table.first_rows[number]
        wrong = np.flatnonzero((number != table.track) | (expected != table.step))
        if len(wrong):
            self._refuse_step(int(wrong[0]))
        moved = (table.slice_index - table.prompted_slice) * table.direction.astype(np.int32)
        aside = np.flatnonzero((moved < table.step) | ((table.step == 0) & (moved != 0)))
        if len(aside) or not np.isin(table.direction, (1, -1)).all():
            row = int(aside[0]) if len(aside) else int(np.argmax(np.abs(table.direction) != 1))
            raise ValueError(
                f"tracks row {row}: slice {table.slice_index[row]} is not step {table.step[row]} "
                f"from slice {table.prompted_slice[row]} in direction {table.direction[row]}"
            )

    def _refuse_step(self, row: int) -> None:
        raise ValueError(
            f"tracks row {row} is track {self.tracks.track[row]} step {self.tracks.step[row]}: "
            "tracks are numbered from 0 and each is stored in order of its steps 0, 1, 2, ..."
        )

    def _check_slice_rows(
        self,
        space: RowSpace,
        slice_row: npt.NDArray[np.int32],
        case_code: npt.NDArray[np.int32],
        slice_index: npt.NDArray[np.int32],
    ) -> None:
        outside = np.flatnonzero((slice_row < 0) | (slice_row >= len(self.slices)))
        if len(outside):
            raise ValueError(
                f"{space} row {outside[0]} names slice row {slice_row[outside[0]]}, "
                f"but there are {len(self.slices)} slice rows"
            )
        other = np.flatnonzero(
            (self.slices.case_code[slice_row] != case_code)
            | (self.slices.slice_index[slice_row] != slice_index)
        )
        if len(other):
            raise ValueError(
                f"{space} row {other[0]} names slice row {slice_row[other[0]]}, "
                "which belongs to another case or slice"
            )


def _check_order(rows: Sequence[SliceRow | PromptRow | TrackRow]) -> None:
    for position, row in enumerate(rows):
        if row.row != position:
            raise ValueError(f"{type(row).__name__} {row.row} stands at place {position}")
