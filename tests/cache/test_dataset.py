import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cache import CacheReader
from cache.dataset import (
    PADDING_LABEL,
    ShuffledRows,
    SliceDataset,
    prefetch,
    read_slices,
    read_tracks,
    select_tracks,
)
from cache.tables import PROMPT_KINDS
from efficient_medsam2.networks.records import IGNORED_LABEL
from tests.cache.example import ARRAYS, SIZE, slice_rows, track_rows, values_of

BY_NAME = {array.name: array for array in ARRAYS}


def same(tensor, name, rows):
    np.testing.assert_array_equal(tensor.numpy(), values_of(BY_NAME[name], rows))


def test_slices(reader):
    rows = [17, 2, 17, 9]
    batch = read_slices(reader, rows)
    assert batch.rows.tolist() == rows
    assert batch.image.dtype == torch.uint8
    assert batch.label.dtype == torch.int32
    assert batch.features.s4.dtype == torch.float16
    same(batch.image, "image", rows)
    same(batch.label, "label", rows)
    same(batch.features.s4, "features_s4", rows)
    same(batch.features.s8, "features_s8", rows)
    same(batch.features.s16, "features_s16", rows)


def test_only_the_asked_levels_are_read(reader):
    batch = read_slices(reader, np.array([1, 2]), levels=("s16",))
    assert batch.features.s4 is None
    assert batch.features.s8 is None
    assert batch.features.s16.shape == (2, 4, 1, 1)
    with pytest.raises(ValueError, match=r"unknown levels \['s32'\]"):
        read_slices(reader, [1], levels=("s32",))


def test_batches_belong_to_the_reader_alone(reader):
    batch = read_slices(reader, [1])
    batch.image.zero_()
    batch.features.s16.zero_()
    assert read_slices(reader, [1]).image.any()


def test_select_tracks(reader):
    assert select_tracks(reader).tolist() == [0, 1, 2]
    assert select_tracks(reader, split="train").tolist() == [0, 1]
    assert select_tracks(reader, minimum_length=4).tolist() == [0, 2]
    assert select_tracks(reader, split="train", minimum_length=5).tolist() == []


def test_tracks(reader):
    batch = read_tracks(reader, [1, 0], length=3, features=True)
    rows = [4, 5, 6, 0, 1, 2]
    slices = [track_rows()[row].slice_row for row in rows]
    assert batch.slice_rows.reshape(-1).tolist() == slices
    assert [slice_rows()[row].slice_index for row in slices] == [3, 2, 1, 3, 4, 5]
    assert batch.image.shape == (2, 3, 3, SIZE, SIZE)
    same(batch.image.flatten(0, 1), "image", slices)
    same(batch.label.flatten(0, 1), "label", slices)
    same(batch.features_s16.flatten(0, 1), "features_s16", slices)
    same(batch.conditioned_s16.flatten(0, 1), "track_conditioned_s16", rows)
    same(batch.memory_s16.flatten(0, 1), "track_memory_s16", rows)
    same(batch.object_pointer.flatten(0, 1), "track_object_pointer", rows)
    same(batch.object_score.flatten(0, 1), "track_object_score", rows)
    same(batch.mask_logits.flatten(0, 1), "track_mask_logits", rows)
    same(batch.mask_iou.flatten(0, 1), "track_mask_iou", rows)
    assert batch.tracks.tolist() == [1, 0]
    assert batch.object_id.tolist() == [2, 1]
    assert batch.direction.tolist() == [-1, 1]
    assert batch.num_frames.tolist() == [7, 7]


def test_shorter_prompts_are_filled_up(reader):
    batch = read_tracks(reader, [2, 0], length=1)
    assert batch.features_s16 is None
    assert batch.labels.tolist() == [[1, PADDING_LABEL], [2, 3]]
    assert batch.points.tolist() == [[[5.0, 5.0], [0.0, 0.0]], [[2.0, 2.0], [9.0, 9.0]]]
    assert batch.points.dtype == torch.float32
    assert [PROMPT_KINDS[code] for code in batch.kind] == ["points", "box"]
    assert PADDING_LABEL == IGNORED_LABEL  # a token of zeros, not SAM 2's learned "not a point"


@pytest.mark.parametrize(
    ("tracks", "length", "message"),
    [
        ([1], 4, "track 1 has 3 steps, 4 are asked.*minimum_length=4"),
        ([3], 1, "tracks are 0 to 2, not 3"),
        ([0], 0, "length"),
    ],
)
def test_wrong_windows_are_refused(reader, tracks, length, message):
    with pytest.raises(ValueError, match=message):
        read_tracks(reader, tracks, length=length)


def test_dataset_feeds_pytorchs_loader(reader):
    data = SliceDataset(reader, reader.index.select(split="train"), levels=("s16",))
    assert len(data) == 14
    assert data[3].rows.tolist() == [17]
    loader = DataLoader(data, batch_size=4, collate_fn=lambda batch: batch)
    batches = list(loader)
    assert [len(batch.rows) for batch in batches] == [4, 4, 4, 2]
    same(torch.cat([batch.image for batch in batches]), "image", range(14, 28))
    with pytest.raises(IndexError):
        data[14]


def test_dataset_works_in_a_worker_process(finished):
    data = SliceDataset(CacheReader(finished), range(8), levels=("s4",))
    data[0]  # opened here already, as in a training script that looked at a sample first
    loader = DataLoader(data, batch_size=4, num_workers=1, collate_fn=lambda batch: batch)
    same(torch.cat([batch.features.s4 for batch in loader]), "features_s4", range(8))


def test_prefetched_batches_are_those_of_the_order(reader):
    order = ShuffledRows(reader.index.select(), 6, seed=2)
    with prefetch(lambda step: read_slices(reader, order.batch(step)), range(10)) as batches:
        for step, batch in enumerate(batches):
            rows = order.batch(step).tolist()
            assert batch.rows.tolist() == rows
            same(batch.image, "image", rows)
