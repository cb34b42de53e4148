"""The phantom study."""

import numpy as np
import pytest

from efficient_medsam2.synthetic.phantom import PHANTOM_OBJECTS, phantom


@pytest.mark.parametrize(("size", "depth"), [(48, 24), (64, 32), (128, 40)])
def test_every_slab_shows_every_object(size, depth):
    slabs = phantom(size=size, depth=depth)
    assert [slab.split for slab in slabs] == ["train", "validation", "train", "test"]
    for slab in slabs:
        assert slab.image.shape[1:] == (size, size)
        assert slab.object_names == PHANTOM_OBJECTS
        assert set(np.unique(slab.label).tolist()) == {0, *PHANTOM_OBJECTS}
        assert slab.spacing_mm == (192 / depth, 192 / size, 192 / size)


def test_guard_slices_lie_between_slabs():
    slabs = phantom(size=48, depth=40)
    firsts = [int(slab.name[-3:]) for slab in slabs]
    for first, following, slab in zip(firsts, firsts[1:], slabs, strict=False):
        assert following - (first + len(slab.image)) == 2
    assert len({slab.name for slab in slabs}) == 4


def test_the_core_is_nested_in_the_organ():
    for slab in phantom(size=64):
        core = slab.label == 2
        neighbours = np.concatenate(
            [slab.label[:, 1:][core[:, :-1]], slab.label[..., 1:][core[..., :-1]]]
        )
        assert set(np.unique(neighbours).tolist()) == {1, 2}


def test_the_seed_bends_but_keeps_the_anatomy():
    first, again, other = phantom(3, size=48), phantom(3, size=48), phantom(4, size=48)
    assert np.array_equal(first[0].image, again[0].image)
    assert not np.array_equal(first[0].label, other[0].label)
    overlap = ((first[0].label == 1) & (other[0].label == 1)).sum() / (other[0].label == 1).sum()
    assert overlap > 0.5


def test_too_small_is_refused():
    with pytest.raises(ValueError, match="depth of at least 24"):
        phantom(size=64, depth=16)
