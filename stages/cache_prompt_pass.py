"""The second pass: the teacher's answer to every prompt, from its cached features.

Shape letters: B rows, N points, S network input in pixels, U distinct slices among the B rows.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache import CacheIndex, CacheReader
from cache.stored import Stored, read_stored
from cache.tables import PointLists
from efficient_medsam2.networks.mask_prompts import low_res_logits
from efficient_medsam2.networks.records import Prompts
from stages.cache_calls import Made, TeacherCalls
from stages.cache_shards import ShardAssembler

__all__ = ["CachedSlices", "PromptPass", "PromptPiece", "prompts_of", "read_masks", "read_slices"]


@dataclass(frozen=True, kw_only=True)
class CachedSlices:
    """Cached features of B rows that share slices.

    Attributes:
        levels: level → (U, C, h, w) as they are stored, on the CPU.
        slice_of: (B,) which of the U each row is on.
    """

    levels: Mapping[str, Stored]
    slice_of: np.ndarray

    def on_device(self, calls: TeacherCalls) -> dict[str, Tensor]:
        """Level → (B, C, h, w) float32."""
        rows = torch.from_numpy(self.slice_of).to(calls.device)
        return {
            level: calls.send(values, torch.float32)[rows] for level, values in self.levels.items()
        }


@dataclass(frozen=True, kw_only=True)
class PromptPiece:
    """Prompts with the same number of points.

    Attributes:
        rows: (B,) prompt rows.
        slices: what they are on.
        prompts: the B prompts, their masks left out.
        mask: (B, 1, S, S) bool where the prompts are masks.
    """

    rows: np.ndarray
    slices: CachedSlices
    prompts: Prompts
    mask: Tensor | None


class PromptPass:
    """Answers each missing prompt row.

    Args:
        index: of the cache.
        open_reader: opens the cache; called in the reader's thread.
        calls: the teacher.
        batch_size: B at most.
    """

    description = "answering prompts"

    def __init__(
        self,
        index: CacheIndex,
        open_reader: Callable[[], CacheReader],
        calls: TeacherCalls,
        *,
        batch_size: int,
    ) -> None:
        self._table = index.prompts
        self._open_reader = open_reader
        self._calls = calls
        self._batch_size = batch_size

    def pieces(self, shards: ShardAssembler) -> Generator[PromptPiece, None, None]:
        """Batches of one number of points: filling up would change the teacher's answer."""
        if not shards.missing:
            return
        reader = self._open_reader()
        offsets = self._table.prompt.offsets
        for shard in shards.missing.values():
            numbers = np.arange(shard.start, shard.stop)
            lengths = np.diff(offsets[shard.start : shard.stop + 1])
            for length in np.unique(lengths):
                chosen = numbers[lengths == length]
                for start in range(0, len(chosen), self._batch_size):
                    yield self._piece(reader, chosen[start : start + self._batch_size])

    def _piece(self, reader: CacheReader, rows: np.ndarray) -> PromptPiece:
        slice_rows = self._table.slice_row[rows].astype(np.int64)
        prompts = prompts_of(self._table.prompt, rows)
        by_mask = prompts.labels_BN.shape[1] == 0
        mask = read_masks(reader, slice_rows, self._table.object_id[rows]) if by_mask else None
        return PromptPiece(
            rows=rows,
            slices=read_slices(reader, slice_rows, self._calls),
            prompts=prompts,
            mask=mask,
        )

    def compute(self, piece: PromptPiece) -> Iterator[tuple[np.ndarray, Made]]:
        """Rows and their arrays."""
        prompts = piece.prompts
        if piece.mask is not None:
            # Logits as another device would make them: computed on the CPU, whatever the device.
            side = self._calls.teacher.logits_side
            prompts = Prompts(
                points_BN2=prompts.points_BN2,
                labels_BN=prompts.labels_BN,
                mask_logits=low_res_logits(piece.mask.float(), side),
            )
        record = self._calls.answer(piece.slices.on_device(self._calls), prompts)
        arrays = (
            ("mask_logits", record.mask_logits[:, 0]),
            ("mask_iou", record.best_iou),
            ("object_score", record.object_score),
        )
        yield piece.rows, self._calls.back(arrays)


def prompts_of(lists: PointLists, rows: np.ndarray) -> Prompts:
    """Prompts of rows that have the same number of points; masks have none."""
    pairs = [lists.row(int(row)) for row in rows]
    return Prompts(
        points_BN2=torch.from_numpy(np.stack([points for points, _ in pairs])),
        labels_BN=torch.from_numpy(np.stack([labels for _, labels in pairs]).astype(np.int64)),
    )


def read_slices(reader: CacheReader, slice_rows: np.ndarray, calls: TeacherCalls) -> CachedSlices:
    """Features of (B,) slice rows at every level of the teacher, each slice read once."""
    distinct, slice_of = np.unique(slice_rows, return_inverse=True)
    levels = {
        level: calls.host_stored(read_stored(reader, f"features_{level}", distinct))
        for level in calls.teacher.level_shapes
    }
    return CachedSlices(levels=levels, slice_of=slice_of.reshape(-1))


def read_masks(reader: CacheReader, slice_rows: np.ndarray, objects: np.ndarray) -> Tensor:
    """Bool (B, 1, S, S): each row's object on its slice, from the cached labels."""
    distinct, slice_of = np.unique(slice_rows, return_inverse=True)
    labels = reader.read("label", distinct)[slice_of.reshape(-1)]
    return torch.from_numpy(labels == objects[:, None, None]).unsqueeze(1)
