"""Domain-randomised volumes."""

import numpy as np
import pytest
from scipy import ndimage

from efficient_medsam2.synthetic.volumes import generate_volume


def volume(seed, shape=(8, 64, 64), **kwargs):
    return generate_volume(np.random.default_rng(seed), shape=shape, **kwargs)


@pytest.fixture(scope="module")
def many():
    return [volume(seed) for seed in range(24)]


def test_the_same_state_gives_the_same_volume():
    first, second = volume(7), volume(7)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.label, second.label)
    assert first.spacing_mm == second.spacing_mm
    assert not np.array_equal(first.image, volume(8).image)


def test_labels_are_named_and_without_gaps(many):
    for one in many:
        values = set(np.unique(one.label).tolist()) - {0}
        assert values == set(one.object_names) == set(range(1, len(values) + 1))
        assert 2 <= len(values) <= 10
        assert one.image.shape == one.label.shape == (8, 64, 64)
        assert one.split == "train"


def test_every_object_has_a_slice_of_a_promptable_size(many):
    for one in many:
        for value in one.object_names:
            largest = (one.label == value).sum(axis=(1, 2)).max()
            assert 30 / 4 <= largest <= 64 * 64 / 2


def test_pictures_vary_and_use_the_grey_range(many):
    assert {one.modality for one in many} == {"MR", "CT", "US"}
    for one in many:
        low, high = np.percentile(one.image, (1, 99))
        assert high - low > 60
    assert len({round(float(one.image.mean())) for one in many}) > 12


def test_objects_show_in_the_picture(many):
    """Across volumes, most objects differ from their near surroundings by a visible step."""
    steps = []
    for one in many:
        for value in one.object_names:
            inside = one.label == value
            z = int(inside.sum(axis=(1, 2)).argmax())
            rows, columns = np.nonzero(inside[z])
            window = np.s_[
                z,
                max(rows.min() - 3, 0) : rows.max() + 4,
                max(columns.min() - 3, 0) : columns.max() + 4,
            ]
            image, mask = one.image[window].astype(float), inside[window]
            if mask.all():
                continue
            steps.append(abs(image[mask].mean() - image[~mask].mean()))
    assert np.median(steps) > 20
    assert np.mean(np.array(steps) > 6) > 0.75


def test_some_objects_have_two_large_parts_of_one_brightness(many):
    """Their parts lie apart on a slice, as those of a ventricle do."""
    contrasts = []
    for one in many:
        for value in one.object_names:
            inside = one.label == value
            z = int(inside.sum(axis=(1, 2)).argmax())
            parts, count = ndimage.label(inside[z])
            areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
            order = np.argsort(areas)[::-1] + 1
            if count > 1 and areas[order[1] - 1] > 0.4 * areas[order[0] - 1]:
                means = [float(one.image[z][parts == part].mean()) for part in order[:2]]
                contrasts.append(abs(means[0] - means[1]))
    assert len(contrasts) >= 5
    assert np.median(contrasts) < 25


def test_some_objects_leave_and_come_back_and_some_touch(many):
    returns = touches = 0
    for one in many:
        for value in one.object_names:
            present = (one.label == value).any(axis=(1, 2)).astype(int)
            returns += (np.diff(np.r_[0, present, 0]) == 1).sum() > 1
        left, right = one.label[..., :-1], one.label[..., 1:]
        touches += bool(((left > 0) & (right > 0) & (left != right)).any())
    assert returns >= 1
    assert touches > len(many) / 3


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 48, 80), (5, 16, 16)])
def test_any_shape(shape):
    one = volume(0, shape=shape, objects=(1, 3))
    assert one.image.shape == shape
    assert 1 <= len(one.object_names) <= 3


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="too small"):
        volume(0, shape=(0, 64, 64))
    with pytest.raises(ValueError, match="fewest, most"):
        volume(0, objects=(4, 2))


def test_more_objects_than_fit_are_refused():
    with pytest.raises(ValueError, match="no room for 17 objects"):
        volume(0, shape=(1, 1, 16), objects=(17, 17))
