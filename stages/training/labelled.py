"""Which labels a stage may use, where only a fraction of them is taken to be known."""

import math
from dataclasses import dataclass

import numpy as np

from cache import CacheReader
from cache.dataset import select_tracks

__all__ = ["LabelledTracks", "labelled_rows", "labelled_tracks"]


def labelled_rows(reader: CacheReader, fraction: float, *, seed: int) -> np.ndarray:
    """Training slice rows whose labels may be used: a run of neighbours from every case.

    Someone who labels a tenth of a volume labels neighbouring slices, which is also what tracks
    need. A slice that is labelled is labelled on all of its views.
    """
    every = reader.index.select("slices", split="train")
    if fraction >= 1:
        return every
    rows = reader.index.select("slices", split="train", view=0)
    chosen = _run_of_neighbours(reader, rows, fraction, seed=seed)
    if len(rows) == len(every):
        return chosen
    table = reader.index.slices
    depth = int(table.slice_index.max()) + 1
    place = table.case_code.astype(np.int64) * depth + table.slice_index
    return every[np.isin(place[every], place[chosen])]


def _run_of_neighbours(
    reader: CacheReader, rows: np.ndarray, fraction: float, *, seed: int
) -> np.ndarray:
    codes = reader.index.slices.case_code[rows]
    generator = np.random.default_rng([seed, 21])
    chosen: list[np.ndarray] = []
    cases = np.unique(codes)
    if (np.bincount(codes)[cases] == 1).all():
        count = max(math.ceil(fraction * len(rows)), 1)
        return np.sort(generator.permutation(rows)[:count])
    for case in cases:
        own = rows[codes == case]
        count = max(math.ceil(fraction * len(own)), 1)
        start = int(generator.integers(len(own) - count + 1))
        chosen.append(own[start : start + count])
    return np.concatenate(chosen)


@dataclass(frozen=True, kw_only=True)
class LabelledTracks:
    """Tracks to learn from.

    Attributes:
        tracks: their numbers.
        length: steps that every one of them has at least.
    """

    tracks: np.ndarray
    length: int


def labelled_tracks(reader: CacheReader, rows: np.ndarray, *, length: int) -> LabelledTracks | None:
    """Training tracks whose prompted slice and the next one are labelled, or None without any.

    Args:
        reader: the cache.
        rows: slice rows whose labels may be used.
        length: steps that are wanted; fewer where no track has so many.
    """
    tracks = select_tracks(reader, split="train", minimum_length=2)
    table = reader.index.tracks
    first = table.first_rows[tracks]
    usable = np.isin(table.slice_row[first], rows)
    usable[usable] &= np.isin(table.slice_row[first[usable] + 1], rows)
    tracks = tracks[usable]
    if not len(tracks):
        return None
    length = min(length, int(table.lengths[tracks].max()))
    return LabelledTracks(tracks=tracks[table.lengths[tracks] >= length], length=length)
