"""Every tensor of a batch, however deep, goes where it is fetched from in the background."""

import dataclasses

import pytest
import torch

from cache.stored import TileMaps
from stages.training.memory_batches import ForcedWindows
from stages.training.pinning import pinned
from stages.training.tensors import changed_tensors, even_parts, some_rows
from tests.stages.training.streams import slices_of, windows_of


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if not dataclasses.is_dataclass(value):
        return []
    return [t for f in dataclasses.fields(value) for t in tensors_of(getattr(value, f.name))]


@pytest.fixture(params=["slices", "tracks"])
def batch(request, reader):
    if request.param == "slices":
        return slices_of(reader, count=2)
    return ForcedWindows(windows=windows_of(reader, tracks=2), forced=True)


def test_all_tensors_of_a_batch_are_changed_and_nothing_else(batch):
    copy = changed_tensors(batch, lambda stored: stored.clone())
    before, after = tensors_of(batch), tensors_of(copy)
    assert len(before) == len(after) > 5
    for mine, its in zip(before, after, strict=True):
        assert torch.equal(mine, its)
        assert not mine.numel() or mine.data_ptr() != its.data_ptr()
    assert type(copy) is type(batch)
    if isinstance(batch, ForcedWindows):
        assert copy.forced is True


def test_maps_in_int8_are_changed_with_their_scales():
    maps = TileMaps(
        tiles=torch.zeros(1, 2, 16, 16, dtype=torch.int8), scales=torch.ones(1, 2, 1, 1)
    )
    seen = []
    changed_tensors(maps, lambda stored: seen.append(stored) or stored)
    assert seen == [maps]


def test_some_rows_are_views_of_every_tensor(batch):
    if not isinstance(batch, ForcedWindows):
        batch = batch.features
    some = some_rows(batch, slice(1, 2))
    for mine, its in zip(tensors_of(batch), tensors_of(some), strict=True):
        assert torch.equal(mine[1:2], its)
        assert its.untyped_storage().data_ptr() == mine.untyped_storage().data_ptr()


@pytest.mark.parametrize("total", [1, 2, 7, 12, 16])
@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 99])
def test_parts_are_even_and_no_more_than_needed(total, at_once):
    parts = even_parts(total, at_once)
    assert [row for part in parts for row in range(total)[part]] == list(range(total))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= at_once
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-total // at_once)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_pinned_batches_are_page_locked(batch):
    assert all(tensor.is_pinned() for tensor in tensors_of(pinned(batch)))
