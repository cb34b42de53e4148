"""The third pass: the teacher's propagation along every track, from its cached features.

A track always runs from its prompted slice, in one direction; the other direction is a track of
its own that is prompted again, with an empty memory: the official order (forward, reset, reverse).
Positions are counted from the prompted slice; only distances enter the memory's codes.

Shape letters: B tracks that are followed side by side, S network input in pixels.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache import CacheIndex, CacheReader
from cache.tables import TrackTable
from efficient_medsam2.networks.records import MemoryEntry, Prompts, SliceFeatures
from efficient_medsam2.networks.runner import SliceRunner
from stages.cache_calls import Made, TeacherCalls
from stages.cache_prompt_pass import CachedSlices, prompts_of, read_masks, read_slices
from stages.cache_shards import ShardAssembler

__all__ = ["TrackPass", "TrackPiece", "track_groups"]

_SHARDS_OF_ROWS = 2
"""Rows of tracks that are followed at a time, in shards; longer tracks are followed alone."""


@dataclass(frozen=True, kw_only=True)
class TrackPiece:
    """One step of tracks that run side by side, the longest first.

    Attributes:
        rows: (B,) track rows; as many as tracks are that long.
        wanted: (B,) bool: rows that are to be written.
        step: 0 on the prompted slice.
        slices: what they are on.
        num_frames: (B,) int64.
        prompts: B prompts on step 0.
        mask: (B, 1, S, S) bool on step 0 where the prompts are masks.
    """

    rows: np.ndarray
    wanted: np.ndarray
    step: int
    slices: CachedSlices
    num_frames: Tensor
    prompts: Prompts | None
    mask: Tensor | None


class TrackPass:
    """Follows each track of which a row is missing.

    Args:
        index: of the cache.
        open_reader: opens the cache; called in the reader's thread.
        calls: the teacher.
        runner: the teacher's runner.
        batch_size: B at most.
        rows_per_shard: of the cache.
    """

    description = "following tracks"

    def __init__(
        self,
        index: CacheIndex,
        open_reader: Callable[[], CacheReader],
        calls: TeacherCalls,
        runner: SliceRunner,
        *,
        batch_size: int,
        rows_per_shard: int,
    ) -> None:
        self._table = index.tracks
        self._open_reader = open_reader
        self._calls = calls
        self._runner = runner
        self._batch_size = batch_size
        self._rows = _SHARDS_OF_ROWS * rows_per_shard
        self._bank: list[MemoryEntry] = []

    def pieces(self, shards: ShardAssembler) -> Generator[TrackPiece, None, None]:
        """Steps of all groups of tracks, one after the other."""
        if not shards.missing:
            return
        reader = self._open_reader()
        first = min(rows.start for rows in shards.missing.values())
        last = max(rows.stop for rows in shards.missing.values())
        starts = self._table.first_rows
        for group in track_groups(self._table, batch_size=self._batch_size, rows=self._rows):
            ends = starts[group[-1]] + self._table.lengths[group[-1]]
            if ends > first and starts[group[0]] < last:
                yield from self._steps(reader, group, shards)

    def _steps(
        self, reader: CacheReader, group: np.ndarray, shards: ShardAssembler
    ) -> Iterator[TrackPiece]:
        table = self._table
        longest_first = group[np.argsort(-table.lengths[group], kind="stable")]
        starts, lengths = table.first_rows[longest_first], table.lengths[longest_first]
        last = self._last_wanted(starts, lengths, shards)
        for step in range(last + 1):
            rows = starts[lengths > step] + step
            slice_rows = table.slice_row[rows].astype(np.int64)
            prompts = prompts_of(table.prompt, rows) if step == 0 else None
            by_mask = prompts is not None and prompts.labels_BN.shape[1] == 0
            mask = read_masks(reader, slice_rows, table.object_id[rows]) if by_mask else None
            yield TrackPiece(
                rows=rows,
                wanted=shards.wants(rows),
                step=step,
                slices=read_slices(reader, slice_rows, self._calls),
                num_frames=torch.from_numpy(table.num_frames[rows].astype(np.int64)),
                prompts=prompts,
                mask=mask,
            )

    @staticmethod
    def _last_wanted(starts: np.ndarray, lengths: np.ndarray, shards: ShardAssembler) -> int:
        """The last step of which a row is missing; -1 where none is."""
        for step in range(int(lengths.max()) - 1, -1, -1):
            if shards.wants(starts[lengths > step] + step).any():
                return step
        return -1

    @torch.no_grad()
    def compute(self, piece: TrackPiece) -> Iterator[tuple[np.ndarray, Made]]:
        """Rows and their arrays; steps of a group come in order."""
        runner, calls = self._runner, self._calls
        with calls.autocast():
            features = SliceFeatures(**piece.slices.on_device(calls))
            mask = None if piece.mask is None else calls.send(piece.mask, torch.float32)
            if piece.prompts is not None:
                self._bank = []
                if mask is not None:
                    record = runner.mask_prompted(features, mask)
                else:
                    record = runner.prompted(features, piece.prompts.to(calls.device))
            else:
                self._forget(piece)
                record = runner.tracked(
                    features,
                    self._bank,
                    position=piece.step,
                    reverse=False,
                    num_frames=piece.num_frames,
                )
            entry = runner.remember(
                features,
                record,
                position=piece.step,
                prompted=piece.step == 0,
                full_mask_B1SS=mask,
            )
        self._bank.append(entry)
        if not piece.wanted.any():
            return
        arrays = (
            ("track_conditioned_s16", record.conditioned_s16),
            ("track_memory_s16", entry.memory),
            ("track_object_pointer", record.object_pointer),
            ("track_object_score", record.object_score),
            ("track_mask_logits", record.mask_logits[:, 0]),
            ("track_mask_iou", record.best_iou),
        )
        kept = torch.from_numpy(np.flatnonzero(piece.wanted)).to(calls.device)
        yield (
            piece.rows[piece.wanted],
            calls.back((name, values[kept]) for name, values in arrays),
        )

    def _forget(self, piece: TrackPiece) -> None:
        """Drop tracks that have ended, and slices that no later one looks at."""
        oldest = piece.step - self._runner.reach
        bank = [entry for entry in self._bank if entry.prompted or entry.position >= oldest]
        alive = torch.arange(len(piece.rows), device=self._calls.device)
        self._bank = [
            entry if len(entry.memory) == len(alive) else entry.take(alive) for entry in bank
        ]


def track_groups(table: TrackTable, *, batch_size: int, rows: int) -> Iterator[np.ndarray]:
    """Tracks that run side by side, the same every time.

    Neighbouring tracks of ``rows`` rows in all, or one that is longer, are put together by the
    number of points of their prompts: filling up would change the teacher's answer.

    Args:
        table: the tracks.
        batch_size: of a group at most.
        rows: bound of what is in memory at a time.
    """
    ends = table.first_rows + table.lengths
    start = 0
    while start < len(ends):
        bound = table.first_rows[start] + rows
        stop = max(int(np.searchsorted(ends, bound, side="right")), start + 1)
        tracks = np.arange(start, stop)
        first = table.first_rows[tracks]
        points = table.prompt.offsets[first + 1] - table.prompt.offsets[first]
        for count in np.unique(points):
            alike = tracks[points == count]
            for place in range(0, len(alike), batch_size):
                yield alike[place : place + batch_size]
        start = stop
