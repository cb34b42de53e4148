"""Batches of cached rows as torch tensors.

Letters: B batch, L steps of a track, C channels, S side of the network input, N points of a
prompt; h, w = S/16; H, W of a level = S/4, S/8 or S/16.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cache.prefetch import Prefetcher, prefetch
from cache.reader import CacheReader
from cache.shuffle import ShuffledRows
from cache.stored import Stored, read_stored

__all__ = [
    "ALL_LEVELS",
    "PADDING_LABEL",
    "Levels",
    "Prefetcher",
    "ShuffledRows",
    "SliceBatch",
    "SliceDataset",
    "TrackBatch",
    "prefetch",
    "read_slices",
    "read_tracks",
    "select_tracks",
]

ALL_LEVELS: tuple[str, ...] = ("s4", "s8", "s16")

PADDING_LABEL = -10
"""Label of points that fill up shorter prompts of a batch: a token of zeros.

SAM 2's own "not a point", -1, is a learned embedding: the decoder attends to it, so the same
prompt would be another one in a batch with longer prompts.
"""

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """Feature maps (B, C, H, W) as they are stored; ``None`` where not asked for.

    Attributes:
        s4, s8, s16: features at stride 4, 8 and 16.
    """

    s4: Stored | None = None
    s8: Stored | None = None
    s16: Stored | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceBatch:
    """Stored slices.

    Attributes:
        rows: int64 (B,): rows in the ``slices`` arrays.
        image: uint8 (B, C, S, S).
        label: int32 (B, S, S), 0 is background.
        features: the teacher's features of these images.
    """

    rows: Tensor
    image: Tensor
    label: Tensor
    features: Levels


@dataclass(frozen=True, kw_only=True, eq=False)
class TrackBatch:
    """The first L steps of stored tracks.

    Maps are as they are stored: ``cache.stored.to_stored`` makes numbers of them on a device.

    Attributes:
        tracks: int64 (B,): numbers of the tracks.
        slice_rows: int64 (B, L): rows in the ``slices`` arrays.
        image: uint8 (B, L, C, S, S).
        label: int32 (B, L, S, S): all objects; compare with ``object_id``.
        features_s16: (B, L, C, h, w) raw features, or ``None`` where not asked for.
        conditioned_s16: (B, L, C, h, w): features after memory attention.
        memory_s16: (B, L, Cm, h, w): the memory that the teacher wrote of this step.
        object_pointer: float32 (B, L, C).
        object_score: float32 (B, L, 1): logit that the object is on the slice.
        mask_logits: (B, L, S/4, S/4).
        mask_iou: float32 (B, L, 1): the teacher's own estimate.
        object_id: int64 (B,).
        direction: int64 (B,): +1 or -1.
        num_frames: int64 (B,): length that the teacher's pointer time code was given.
        kind: int64 (B,): what was prompted, as a position in ``cache.tables.PROMPT_KINDS``; the
            prompt of a ``mask`` row is ``label[:, 0] == object_id`` and it has no points.
        points: float32 (B, N, 2): (x, y) in pixels of the network input; N of the longest prompt.
        labels: int64 (B, N): ``PADDING_LABEL`` where a prompt has fewer points.
    """

    tracks: Tensor
    slice_rows: Tensor
    image: Tensor
    label: Tensor
    features_s16: Stored | None
    conditioned_s16: Stored
    memory_s16: Stored
    object_pointer: Tensor
    object_score: Tensor
    mask_logits: Stored
    mask_iou: Tensor
    object_id: Tensor
    direction: Tensor
    num_frames: Tensor
    kind: Tensor
    points: Tensor
    labels: Tensor


def read_slices(
    reader: CacheReader, rows: npt.ArrayLike, *, levels: Sequence[str] = ALL_LEVELS
) -> SliceBatch:
    """Read a batch of slices.

    Args:
        reader: the open cache.
        rows: (B,) row numbers, in any order.
        levels: which feature levels to read.

    Raises:
        ValueError: an unknown level or row.
        CacheError: a row is not written or damaged; see ``CacheReader.read``.
    """
    unknown = [level for level in levels if level not in ALL_LEVELS]
    if unknown:
        raise ValueError(f"unknown levels {unknown}; levels are {list(ALL_LEVELS)}")
    features = {level: read_stored(reader, f"features_{level}", rows) for level in levels}
    return SliceBatch(
        rows=torch.from_numpy(np.array(rows, dtype=np.int64)),
        image=_tensor(reader.read("image", rows)),
        label=_tensor(reader.read("label", rows).astype(np.int32)),
        features=Levels(**features),
    )


def select_tracks(
    reader: CacheReader, *, split: str | None = None, minimum_length: int = 1
) -> Int64:
    """Give the numbers of the tracks of a split that have at least ``minimum_length`` steps.

    Args:
        reader: the open cache.
        split: only cases of this split; all where ``None``.
        minimum_length: steps, the prompted one included.

    Raises:
        KeyError: an unknown split.
    """
    table = reader.index.tracks
    wanted = np.zeros(len(reader.index.cases), dtype=bool)
    wanted[reader.index.cases.codes_of(split=split)] = True
    chosen = wanted[table.case_code[table.first_rows]] & (table.lengths >= minimum_length)
    return np.flatnonzero(chosen).astype(np.int64)


def read_tracks(
    reader: CacheReader,
    tracks: npt.ArrayLike,
    *,
    length: int,
    features: bool = False,
) -> TrackBatch:
    """Read the first ``length`` steps of each track, from the prompted slice on.

    Args:
        reader: the open cache.
        tracks: (B,) track numbers, as ``select_tracks`` gives them.
        length: L, at least 1.
        features: read the raw stride-16 features too.

    Raises:
        ValueError: an unknown track, or one with fewer steps.
        CacheError: a row is not written or damaged; see ``CacheReader.read``.
    """
    table = reader.index.tracks
    numbers = np.array(tracks, dtype=np.int64).reshape(-1)
    first = _first_rows(reader, numbers, length)
    rows = first[:, None] + np.arange(length)
    slice_rows = table.slice_row[rows].astype(np.int64)

    def column(values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(values[first].astype(np.int64))

    points, labels = _padded_prompts([table.prompt.row(int(row)) for row in first])
    return TrackBatch(
        tracks=torch.from_numpy(numbers),
        slice_rows=torch.from_numpy(slice_rows),
        image=_windows(reader, "image", slice_rows),
        label=_windows(reader, "label", slice_rows, dtype=np.int32),
        features_s16=_maps(reader, "features_s16", slice_rows) if features else None,
        conditioned_s16=_maps(reader, "track_conditioned_s16", rows),
        memory_s16=_maps(reader, "track_memory_s16", rows),
        object_pointer=_windows(reader, "track_object_pointer", rows),
        object_score=_windows(reader, "track_object_score", rows),
        mask_logits=_maps(reader, "track_mask_logits", rows),
        mask_iou=_windows(reader, "track_mask_iou", rows),
        object_id=column(table.object_id),
        direction=column(table.direction),
        num_frames=column(table.num_frames),
        kind=column(table.kind_code),
        points=points,
        labels=labels,
    )


def _first_rows(reader: CacheReader, tracks: Int64, length: int) -> Int64:
    table = reader.index.tracks
    if length < 1:
        raise ValueError(f"length must be at least 1, not {length}")
    unknown = tracks[(tracks < 0) | (tracks >= len(table.first_rows))]
    if len(unknown):
        raise ValueError(f"tracks are 0 to {len(table.first_rows) - 1}, not {unknown[0]}")
    short = tracks[table.lengths[tracks] < length]
    if len(short):
        raise ValueError(
            f"track {short[0]} has {table.lengths[short[0]]} steps, {length} are asked: choose "
            f"tracks by select_tracks(..., minimum_length={length})"
        )
    return table.first_rows[tracks]


def _maps(reader: CacheReader, array: str, rows_BL: Int64) -> Stored:
    distinct, position = np.unique(rows_BL, return_inverse=True)
    return read_stored(reader, array, distinct)[torch.from_numpy(position.reshape(rows_BL.shape))]


def _windows(
    reader: CacheReader, array: str, rows_BL: Int64, *, dtype: npt.DTypeLike | None = None
) -> Tensor:
    # Windows overlap in their slices: each row is read once.
    distinct, position = np.unique(rows_BL, return_inverse=True)
    values = reader.read(array, distinct)
    if dtype is not None:
        values = values.astype(dtype)
    return _tensor(values[position.reshape(rows_BL.shape)])


def _padded_prompts(
    prompts: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]],
) -> tuple[Tensor, Tensor]:
    longest = max((len(labels) for _, labels in prompts), default=0)
    points_BN2 = np.zeros((len(prompts), longest, 2), dtype=np.float32)
    labels_BN = np.full((len(prompts), longest), PADDING_LABEL, dtype=np.int64)
    for row, (points, labels) in enumerate(prompts):
        points_BN2[row, : len(points)] = points
        labels_BN[row, : len(labels)] = labels
    return torch.from_numpy(points_BN2), torch.from_numpy(labels_BN)


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


class SliceDataset(Dataset[SliceBatch]):
    """Slices for ``torch.utils.data.DataLoader``.

    An item is a ``SliceBatch`` of one slice. With ``batch_size=B, collate_fn=lambda batch: batch``
    the loader asks for B items at once and gets one ``SliceBatch`` of B slices, read shard by
    shard. ``prefetch`` with ``read_slices`` is faster than worker processes.

    Args:
        reader: the open cache; worker processes open it again.
        rows: the rows of the data set, in its order.
        levels: which feature levels to read.
    """

    def __init__(
        self, reader: CacheReader, rows: npt.ArrayLike, *, levels: Sequence[str] = ALL_LEVELS
    ) -> None:
        self._reader = reader
        self._rows = np.array(rows, dtype=np.int64).reshape(-1)
        self._levels = tuple(levels)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> SliceBatch:
        """Read one item.

        Raises:
            IndexError: outside the data set.
        """
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> SliceBatch:
        """Read several items as one batch; PyTorch's loader prefers this to single items."""
        rows = self._rows[list(indices)]
        return read_slices(self._reader, rows, levels=self._levels)
