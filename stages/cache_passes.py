"""The teacher's three passes over a cache: slices, prompts, tracks.

Shape letters: B rows, C channels, S network input in pixels.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cache import CacheReader, CacheWriter
from efficient_medsam2.images import squash_labels, squash_slices, to_network_input, to_uint8
from efficient_medsam2.networks.records import MemoryEntry, Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from stages.cache_rows import CacheRows
from stages.cache_settings import STORED_DTYPES, CacheConfig, PrecomputeConfig
from stages.cases import CaseHandle, DataConfig, Dataset
from stages.context import StageContext

__all__ = ["CachePasses"]


class CachePasses:
    """The three passes over one cache."""

    def __init__(
        self,
        *,
        writer: CacheWriter,
        runner: SliceRunner,
        dataset: Dataset,
        rows: CacheRows,
        data: DataConfig,
        cache: CacheConfig,
        config: PrecomputeConfig,
        context: StageContext,
    ) -> None:
        self._writer = writer
        self._runner = runner
        self._handles = {handle.case_id: handle for handle in dataset.handles}
        self._rows = rows
        self._data = data
        self._dtype = np.dtype(STORED_DTYPES[cache.dtype])
        self._config = config
        self._context = context
        self._device = next(runner.model.parameters()).device
        self._loaded: tuple[str, np.ndarray, np.ndarray] = ("", np.empty(0), np.empty(0))

    def slices(self) -> None:
        """Image, label and features of every slice."""
        for shard, rows in self._shards("slices", "encoding slices"):
            pictures = [self._picture(row) for row in rows]
            image = np.stack([picture for picture, _ in pictures])
            label = np.stack([label for _, label in pictures])
            parts = [self._encode(batch) for batch in _batches(image, self._config.batch_size)]
            arrays = {
                f"features_{level}": np.concatenate([part[level] for part in parts])
                for level in ("s4", "s8", "s16")
            }
            self._writer.write_shard("slices", shard, {"image": image, "label": label, **arrays})

    def prompts(self) -> None:
        """The teacher's answer to every prompt, from cached features."""
        reader = CacheReader(self._writer.path)
        table = self._rows.index.prompts
        for shard, rows in self._shards("prompts", "answering prompts"):
            answers: dict[str, np.ndarray] = {}
            numbers = np.arange(rows.start, rows.stop)
            prompts = [table.prompt.row(int(row)) for row in numbers]
            lengths = np.array([len(labels) for _, labels in prompts])
            for length in np.unique(lengths):
                # Prompts of one length at a time: filling up would change the teacher's answer.
                chosen = np.flatnonzero(lengths == length)
                for picked in _batches(chosen, self._config.batch_size):
                    features = self._features(reader, table.slice_row[numbers[picked]])
                    record = self._answer(features, [prompts[index] for index in picked])
                    self._collect(answers, _prompt_arrays(record), picked, len(numbers))
            self._writer.write_shard("prompts", shard, answers)

    def tracks(self) -> None:
        """Every track, from cached features; a track always runs from its prompted slice."""
        reader = CacheReader(self._writer.path)
        table = self._rows.index.tracks
        made: tuple[int, dict[str, np.ndarray]] = (-1, {})
        groups = self._track_groups()
        group_of = np.repeat(np.arange(len(groups)), [stop - start for start, stop in groups])
        for shard, rows in self._shards("tracks", "following tracks"):
            answers: dict[str, np.ndarray] = {}
            numbers = np.arange(rows.start, rows.stop)
            for group in np.unique(group_of[table.track[numbers]]).tolist():
                first_track, stop_track = groups[group]
                if made[0] != group:
                    made = (group, self._follow(reader, first_track, stop_track))
                start = int(table.first_rows[first_track])
                group_rows = len(next(iter(made[1].values())))
                inside = np.flatnonzero((numbers >= start) & (numbers < start + group_rows))
                part = {name: all_[numbers[inside] - start] for name, all_ in made[1].items()}
                self._collect(answers, part, inside, len(numbers))
            self._writer.write_shard("tracks", shard, answers)

    def _shards(
        self, space: Literal["slices", "prompts", "tracks"], description: str
    ) -> Iterator[tuple[int, range]]:
        missing = self._writer.missing_shards(space)
        total = self._rows.index.counts()[space]
        todo = sum(len(self._writer.rows_of_shard(space, shard)) for shard in missing)
        with self._context.progress.bar(
            total=total, description=description, unit="row", initial=total - todo
        ) as bar:
            for shard in missing:
                rows = self._writer.rows_of_shard(space, shard)
                yield shard, rows
                bar.update(len(rows))

    def _picture(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        record = self._rows.index.slice_row(row)
        if self._loaded[0] != record.case_id:
            self._loaded = (record.case_id, *self._load(self._handles[record.case_id]))
        _, image, label = self._loaded
        picture = squash_slices(
            image[record.slice_index : record.slice_index + 1], self._runner.image_size
        )[0]
        if picture.shape[0] < self._rows.channels:
            picture = np.repeat(picture, self._rows.channels, axis=0)
        squashed = squash_labels(
            label[record.slice_index : record.slice_index + 1], self._runner.image_size
        )[0]
        return picture, squashed

    def _load(self, handle: CaseHandle) -> tuple[np.ndarray, np.ndarray]:
        case = handle.load()
        assert case.label is not None
        return to_uint8(case, self._data.intensity), case.label

    @torch.no_grad()
    def _encode(self, image_BCSS: np.ndarray) -> dict[str, np.ndarray]:
        with self._autocast():
            pixels = to_network_input(torch.from_numpy(image_BCSS).to(self._device))
            features = self._runner.encode(pixels)
        return {level: self._stored(getattr(features, level)) for level in ("s4", "s8", "s16")}

    def _features(self, reader: CacheReader, rows: np.ndarray) -> SliceFeatures:
        def read(level: str) -> Tensor:
            values = torch.from_numpy(reader.read(f"features_{level}", rows))
            return values.to(self._device, torch.float32)

        return SliceFeatures(s4=read("s4"), s8=read("s8"), s16=read("s16"))

    @torch.no_grad()
    def _answer(
        self, features: SliceFeatures, prompts: list[tuple[np.ndarray, np.ndarray]]
    ) -> SliceRecord:
        with self._autocast():
            return self._runner.prompted(features, self._stack(prompts))

    def _stack(self, prompts: list[tuple[np.ndarray, np.ndarray]]) -> Prompts:
        points = torch.from_numpy(np.stack([points for points, _ in prompts]))
        labels = torch.from_numpy(np.stack([labels for _, labels in prompts]).astype(np.int64))
        return Prompts(points_BN2=points, labels_BN=labels).to(self._device)

    def _track_groups(self) -> list[tuple[int, int]]:
        """Ranges of tracks that run side by side: neighbours of one case, the same every time."""
        table = self._rows.index.tracks
        cases = table.case_code[table.first_rows]
        groups: list[tuple[int, int]] = []
        for track, case in enumerate(cases):
            start = groups[-1][0] if groups else 0
            if groups and cases[start] == case and track - start < self._config.batch_size:
                groups[-1] = (start, track + 1)
            else:
                groups.append((track, track + 1))
        return groups

    @torch.no_grad()
    def _follow(self, reader: CacheReader, first: int, stop: int) -> dict[str, np.ndarray]:
        """Rows of tracks ``first`` to ``stop``, in the order of the index.

        The tracks start on slices of their own, so positions are counted from the prompted slice;
        only distances enter the memory's codes.
        """
        table = self._rows.index.tracks
        starts, lengths = table.first_rows[first:stop], table.lengths[first:stop]
        num_frames = int(table.num_frames[starts[0]])
        prompts = self._stack([table.prompt.row(int(row)) for row in starts])
        bank: list[MemoryEntry] = []
        out: dict[str, np.ndarray] = {}
        for step in range(int(lengths.max())):
            rows = starts + np.minimum(step, lengths - 1)
            with self._autocast():
                features = self._features(reader, table.slice_row[rows])
                if step == 0:
                    record = self._runner.prompted(features, prompts)
                else:
                    record = self._runner.tracked(
                        features, bank, position=step, reverse=False, num_frames=num_frames
                    )
                entry = self._runner.remember(features, record, position=step, prompted=step == 0)
            bank.append(entry)
            alive = np.flatnonzero(step < lengths)
            values = {name: part[alive] for name, part in _track_arrays(record, entry).items()}
            places = (starts + step)[alive] - starts[0]
            self._collect(out, values, places, int(lengths.sum()))
        return out

    def _collect(
        self,
        into: dict[str, np.ndarray],
        values: dict[str, Tensor] | dict[str, np.ndarray],
        places: np.ndarray,
        total: int,
    ) -> None:
        for name, value in values.items():
            stored = self._stored(value, name) if isinstance(value, Tensor) else value
            if name not in into:
                into[name] = np.empty((total, *stored.shape[1:]), stored.dtype)
            into[name][places] = stored

    def _stored(self, values: Tensor, name: str = "") -> np.ndarray:
        small = name.endswith(("iou", "score", "pointer"))
        kind = np.dtype(np.float32) if small else self._dtype
        array: np.ndarray = values.float().cpu().numpy().astype(kind)
        return array

    def _autocast(self) -> Any:  # noqa: ANN401 - a context manager
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._config.precision)
        return torch.autocast(
            self._device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
        )


def _prompt_arrays(record: SliceRecord) -> dict[str, Tensor]:
    return {
        "mask_logits": record.mask_logits[:, 0],
        "mask_iou": record.best_iou,
        "object_score": record.object_score,
    }


def _track_arrays(record: SliceRecord, entry: MemoryEntry) -> dict[str, Tensor]:
    return {
        "track_conditioned_s16": record.conditioned_s16,
        "track_memory_s16": entry.memory,
        "track_object_pointer": record.object_pointer,
        "track_object_score": record.object_score,
        "track_mask_logits": record.mask_logits[:, 0],
        "track_mask_iou": record.best_iou,
    }


def _batches(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
