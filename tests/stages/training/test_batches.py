"""Batches: pure functions of their number, with the cached geometry."""

from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

from cache.dataset import read_tracks
from efficient_medsam2.images import to_network_input
from stages.training.augmentation import photometric
from stages.training.labelled import labelled_rows, labelled_tracks
from stages.training.slice_batches import SliceStream
from stages.training.track_batches import TrackStream


def tensors(value, prefix=""):
    """Name → tensor of every tensor in nested records."""
    found = {}
    for field in fields(value):
        inner = getattr(value, field.name)
        if isinstance(inner, torch.Tensor):
            found[prefix + field.name] = inner
        elif is_dataclass(inner):
            found |= tensors(inner, f"{prefix}{field.name}.")
    return found


def assert_same(first, second):
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture
def rows(reader):
    return reader.index.select("slices", split="train")


def slice_stream(reader, rows, **changes):
    values = {
        "batch_size": 3,
        "prompts_per_slice": 2,
        "smallest": 5,
        "box_share": 0.5,
        "augment": 0.5,
        "features": True,
        "seed": 1,
    }
    return SliceStream(reader, rows, **values | changes)


def track_stream(reader, **changes):
    rows = reader.index.select("slices", split="train")
    tracks = labelled_tracks(reader, rows, length=3)
    values = {
        "batch_size": 2,
        "length": tracks.length,
        "augment": 0.5,
        "labelled_rows": None,
        "features": True,
        "seed": 1,
    }
    return TrackStream(reader, tracks.tracks, **values | changes)


@pytest.mark.parametrize("make", [slice_stream, track_stream])
def test_a_batch_is_a_pure_function_of_its_number(reader, rows, make):
    arguments = (reader, rows) if make is slice_stream else (reader,)
    stream = make(*arguments)
    in_order = [stream(number) for number in range(5)]
    other = make(*arguments)
    for number in (4, 0, 2, 2):
        assert_same(other(number), in_order[number])
    pixels = [batch.pixels for batch in in_order]
    assert not any(torch.equal(pixels[0], each) for each in pixels[1:])
    assert not torch.equal(make(*arguments, seed=2)(0).pixels, pixels[0])


def test_prompts_lie_on_the_objects_of_their_slices(reader, rows):
    stream = slice_stream(reader, rows, augment=0, box_share=0.0)
    batch = stream(0)
    assert len(batch.prompts.labels_BN) == len(batch.masks) == len(batch.slice_of)
    assert (torch.bincount(batch.slice_of) <= 2).all()
    for mask, point, label in zip(
        batch.masks, batch.prompts.points_BN2, batch.prompts.labels_BN, strict=True
    ):
        x, y = point[0].long().tolist()
        assert label[0] == 1
        assert mask[y, x] == 1
        assert mask.sum() >= 5


def test_slices_without_an_object_still_make_a_batch(reader, rows):
    batch = slice_stream(reader, rows, smallest=10**6)(0)
    assert batch.masks.shape[0] == 1
    assert not batch.masks.any()


def test_without_augmentation_the_student_sees_the_cached_image(reader):
    windows = track_stream(reader, augment=0)(0)
    count, length = windows.cached.slice_rows.shape
    stored = read_tracks(reader, windows.cached.tracks.numpy(), length=length)
    expected = to_network_input(stored.image.flatten(0, 1))
    assert torch.equal(windows.pixels, expected)
    cpu = torch.device("cpu")
    assert torch.equal(windows.pixels_on(cpu), expected)
    for step in range(length):
        assert torch.equal(windows.pixels_of(step, cpu), expected[step::length])
    ids = windows.cached.object_id[:, None, None, None]
    assert torch.equal(windows.masks, stored.label == ids)
    assert count > 1
    assert not windows.cached.image.numel() + windows.cached.label.numel()  # they wait in memory


def test_labels_beyond_the_labelled_rows_are_marked(reader, rows):
    windows = track_stream(reader, labelled_rows=rows[:2])(0)
    expected = np.isin(windows.cached.slice_rows.numpy(), rows[:2])
    assert (windows.labelled.numpy() == expected).all()


def test_photometric_augmentation_keeps_the_geometry():
    """Edges stay where they are: a dark and a bright half stay two flat halves."""
    image = torch.full((16, 1, 32, 32), 60, dtype=torch.uint8)
    image[..., 16:] = 190
    generator = np.random.default_rng(0)
    changed = photometric(image, generator, strength=1.0)
    assert changed.dtype == torch.uint8
    assert changed.shape == image.shape
    assert not torch.equal(changed, image)
    left, right = changed[..., :16].float(), changed[..., 16:].float()
    noise = 255 * 0.04
    assert ((right.mean((2, 3)) - left.mean((2, 3))) > 30).all()
    for half in (left, right):
        columns = half.mean((1, 2))
        spread = columns.amax(1) - columns.amin(1)
        assert (spread < 6 * noise / 32**0.5 + 1).all()
    assert torch.equal(photometric(image, generator, strength=0), image)


def test_photometric_changes_each_image_on_its_own():
    image = torch.full((8, 3, 4, 4), 100, dtype=torch.uint8)
    changed = photometric(image, np.random.default_rng(0), strength=1.0).float()
    assert len({round(value, 1) for value in changed.mean((1, 2, 3)).tolist()}) == 8
    again = photometric(image, np.random.default_rng(0), strength=1.0).float()
    assert torch.equal(changed, again)


def test_a_fraction_of_the_labels_is_a_run_of_neighbours_from_every_case(reader, rows):
    assert np.array_equal(labelled_rows(reader, 1.0, seed=0), rows)
    some = labelled_rows(reader, 0.4, seed=0)
    codes = reader.index.slices.case_code
    assert set(codes[some]) == set(codes[rows])
    for case in np.unique(codes[some]):
        own, all_ = some[codes[some] == case], rows[codes[rows] == case]
        assert len(own) == int(np.ceil(0.4 * len(all_)))
        assert (np.diff(own) == 1).all()
    assert np.array_equal(some, labelled_rows(reader, 0.4, seed=0))
    assert any(not np.array_equal(some, labelled_rows(reader, 0.4, seed=s)) for s in range(1, 6))


def test_tracks_need_two_labelled_slices(reader, rows):
    assert labelled_tracks(reader, rows[:1], length=3) is None
    found = labelled_tracks(reader, rows, length=50)
    table = reader.index.tracks
    assert found.length == table.lengths[found.tracks].min()
    assert found.length <= 3  # as long as the cache's longest track
    first = table.first_rows[found.tracks]
    assert np.isin(table.slice_row[first], rows).all()
