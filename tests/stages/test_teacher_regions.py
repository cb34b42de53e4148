"""Regions of even brightness that a teacher is prompted with."""

import numpy as np
import pytest
from scipy import ndimage

from stages.teacher_regions import even_region, part_of

SIZE = 64


def disc(row, column, radius):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


@pytest.fixture
def image():
    picture = np.full((SIZE, SIZE), 60, np.uint8)
    picture[disc(32, 20, 10)] = 200
    picture[disc(32, 46, 9)] = 140
    return picture


def draws(image, label, count=60, **options):
    generator = np.random.default_rng(0)
    found = (even_region(image, label, generator, **options) for _ in range(count))
    return [region for region in found if region is not None]


def test_regions_are_connected_and_of_a_fit_size(image):
    regions = draws(image, np.zeros((SIZE, SIZE), np.int64), smallest=30)
    assert len(regions) >= 5
    for region in regions:
        assert ndimage.label(region)[1] == 1
        assert 30 <= region.sum() <= 0.3 * SIZE**2
    assert any((region & disc(32, 20, 8)).sum() > 150 for region in regions)
    assert any((region & disc(32, 46, 7)).sum() > 100 for region in regions)


def test_the_same_generator_gives_the_same_regions(image):
    label = np.zeros((SIZE, SIZE), np.int64)
    for one, other in zip(
        draws(image, label, smallest=30), draws(image, label, smallest=30), strict=True
    ):
        assert np.array_equal(one, other)


def test_a_region_that_contradicts_a_label_in_the_same_box_is_left_out(image):
    ring = disc(32, 20, 10) & ~disc(32, 20, 7)
    regions = draws(image, np.where(ring, 4, 0), smallest=30)
    assert regions
    assert not any((region & disc(32, 20, 10)).sum() > 150 for region in regions)
    agreeing = draws(image, np.where(disc(32, 20, 10), 4, 0), smallest=30)
    assert any((region & disc(32, 20, 10)).sum() > 150 for region in agreeing)


def test_small_regions_are_left_out(image):
    label = np.zeros((SIZE, SIZE), np.int64)
    assert not [r for r in draws(image, label, smallest=600) if r.sum() < 600]


def test_parts_end_at_a_straight_cut_and_keep_what_is_before_it():
    generator = np.random.default_rng(0)
    whole = disc(32, 30, 14)
    extents = set()
    for _ in range(40):
        part = part_of(whole, generator, smallest=30)
        assert not (part & ~whole).any()
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        window = np.zeros_like(whole)
        window[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert np.array_equal(part, whole & window)
        assert 30 <= part.sum() < whole.sum()
        extents.add((len(rows), len(columns)))
    assert len(extents) > 15


def test_an_object_too_small_to_be_cut_comes_back_whole():
    whole = disc(32, 30, 4)
    assert np.array_equal(part_of(whole, np.random.default_rng(0), smallest=45), whole)
