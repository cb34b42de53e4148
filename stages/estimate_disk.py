"""The disk's share of a time sample: a temporary cache of one shard a row space."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cache import CacheIndex, CacheReader, CacheSpec, CacheWriter, CaseRow, PromptRow, SliceRow
from cache.encoding import encode
from cache.records import TrackRow
from cache.schema import RowSpace
from stages.estimate_clock import Clock, Cost

__all__ = ["SampleDisk"]

_MOST_BYTES = 64_000_000
"""Of a shard: a flush costs much the same for one row as for many, so it should be a large one."""


class SampleDisk:
    """A temporary cache, written as precompute writes.

    Args:
        path: its folder, to be made.
        spec: of the cache to be.
        counts: rows of the cache to be.

    Attributes:
        costs: row space → cost of a row.
    """

    def __init__(self, path: Path, spec: CacheSpec, counts: Mapping[RowSpace, int]) -> None:
        self._path = path
        self._spec = spec
        self._index = _index(
            slices=_rows(spec, "slices", counts),
            prompts=_rows(spec, "prompts", counts),
            tracks=_rows(spec, "tracks", counts),
        )
        self.costs: dict[RowSpace, Cost] = {}

    def write(self, space: RowSpace, made: Mapping[str, np.ndarray]) -> None:
        """Write the shard of a space and time it.

        Args:
            space: the row space.
            made: array name → some rows, not encoded, which are repeated; zeros stand for other
                arrays.
        """
        rows = self._index.counts()[space]
        if not rows:
            self.costs[space] = Cost(wall_s=0.0, cpu_s=0.0)
            return
        arrays: dict[str, np.ndarray] = {}
        for array in self._spec.arrays_of(space):
            if array.name in made:
                arrays |= encode(array, np.resize(made[array.name], (rows, *array.shape)))
            else:
                arrays.setdefault(array.name, np.zeros((rows, *array.shape), array.dtype))
        clock = Clock()
        with (
            CacheWriter.create_or_resume(self._path, self._spec, self._index) as writer,
            clock.over(rows),
        ):
            writer.write_shard(space, 0, arrays)
        self.costs[space] = clock.cost()

    def reader(self) -> CacheReader:
        """Opens the cache as far as it is written."""
        return CacheReader(self._path)


def _rows(spec: CacheSpec, space: RowSpace, counts: Mapping[RowSpace, int]) -> int:
    """Rows of one shard, fewer where it would be very large."""
    row_bytes = sum(array.row_bytes for array in spec.arrays_of(space))
    return min(counts[space], spec.rows_per_shard, _MOST_BYTES // max(row_bytes, 1) + 1)


def _index(*, slices: int, prompts: int, tracks: int) -> CacheIndex:
    """One case of so many slices; prompts and tracks go through them again and again."""
    name, box = "sample", ((1.0, 1.0), (2.0, 2.0))
    case = CaseRow(
        case_id=name,
        patient_id=name,
        split="train",
        modality="other",
        depth=slices,
        height=1,
        width=1,
        spacing_mm=(1.0, 1.0, 1.0),
    )
    return CacheIndex.from_rows(
        cases=[case],
        slices=[SliceRow(row=i, case_id=name, slice_index=i, view=0) for i in range(slices)],
        prompts=[
            PromptRow(
                row=i,
                case_id=name,
                slice_index=i % slices,
                view=0,
                object_id=1,
                kind="box",
                points=box,
                labels=(2, 3),
                slice_row=i % slices,
            )
            for i in range(prompts)
        ],
        tracks=[
            TrackRow(
                row=i,
                track=i // slices,
                case_id=name,
                object_id=1,
                prompted_slice=0,
                direction=1,
                step=i % slices,
                slice_index=i % slices,
                slice_row=i % slices,
                num_frames=max(slices, 2),
                kind="box",
                points=box,
                labels=(2, 3),
            )
            for i in range(tracks)
        ],
    )
