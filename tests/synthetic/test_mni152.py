"""The MNI152 slabs."""

import importlib.util
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from efficient_medsam2.errors import DataError, MissingExtraError
from efficient_medsam2.synthetic.mni152 import HEMISPHERES, SLABS, STRUCTURES, mni152_volumes

needs_nilearn = pytest.mark.skipif(
    importlib.util.find_spec("nilearn") is None, reason="nilearn, which bundles it, is missing"
)


@pytest.fixture(scope="module")
def volumes():
    return mni152_volumes()


def named(volumes, name):
    return next(volume for volume in volumes if volume.name == name)


def test_slabs_are_separated_by_two_guard_slices():
    for (_, _, last), (_, first, _) in pairwise(SLABS):
        assert first - last == 3
    assert [slab[1:] for slab in SLABS if slab[0] == "test"] == [(40, 51), (78, 89), (110, 121)]
    assert {slab[0] for slab in SLABS} == {"train", "validation", "test"}


@needs_nilearn
def test_volumes_follow_the_slabs(volumes):
    assert len(volumes) == 2 * len(SLABS)
    assert len({volume.name for volume in volumes}) == len(volumes)
    for volume, (split, first, last) in zip(volumes, SLABS * 2, strict=True):
        assert volume.split == split
        assert volume.image.shape == (last - first + 1, 128, 128)
        assert volume.spacing_mm == (1.0, 1.0, 1.0)
        names = STRUCTURES if "structures" in volume.name else HEMISPHERES
        assert set(volume.object_names.items()) <= set(names.items())
        assert set(np.unique(volume.label).tolist()) == {0, *volume.object_names}


@needs_nilearn
def test_there_are_204_object_slices_to_test_on(volumes):
    """Results on these slabs are means over this many: a change of rules must not move it."""
    count = sum(
        int((volume.label == value).any(axis=(1, 2)).sum())
        for volume in volumes
        if volume.split == "test"
        for value in volume.object_names
    )
    assert count == 204


@needs_nilearn
def test_left_is_on_the_right_of_the_picture_and_anterior_is_up(volumes):
    slab = named(volumes, "mni152-structures-test-z078")
    column = {
        name: np.nonzero(slab.label == value)[2].mean() for value, name in slab.object_names.items()
    }
    row = {
        name: np.nonzero(slab.label == value)[1].mean() for value, name in slab.object_names.items()
    }
    for structure in ("white-matter", "deep-grey", "lateral-ventricle"):
        assert column[f"{structure}-right"] < 63 < 64 < column[f"{structure}-left"]
    low = named(volumes, "mni152-structures-test-z040")
    assert np.nonzero(low.label == 7)[1].mean() > np.nonzero(low.label == 1)[1].mean() + 30
    assert row["deep-grey-left"] < 64


@needs_nilearn
def test_structures_have_the_brightness_of_their_tissue(volumes):
    slab = named(volumes, "mni152-structures-test-z078")
    mean = {
        name: float(slab.image[slab.label == value].mean())
        for value, name in slab.object_names.items()
    }
    for side in ("left", "right"):
        assert mean[f"lateral-ventricle-{side}"] + 80 < mean[f"deep-grey-{side}"]
        assert mean[f"deep-grey-{side}"] + 15 < mean[f"white-matter-{side}"]


@needs_nilearn
def test_the_cerebellum_is_one_piece_apart_from_the_cerebrum(volumes):
    structures = named(volumes, "mni152-structures-test-z040")
    hemispheres = named(volumes, "mni152-hemispheres-test-z040")
    cerebellum = structures.label == 7
    assert not (cerebellum & (hemispheres.label > 0)).any()
    parts, count = ndimage.label(cerebellum)
    assert np.bincount(parts.ravel())[1:].max() > 0.99 * cerebellum.sum()
    assert count < 5


@needs_nilearn
def test_one_label_set_can_be_asked_for():
    volumes = mni152_volumes(label_sets=("hemispheres",))
    assert len(volumes) == len(SLABS)
    assert {name for volume in volumes for name in volume.object_names.values()} == {
        "cerebrum-left",
        "cerebrum-right",
    }


def test_without_nilearn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"pip install 'efficient-medsam2\[demo\]'"
    ) as error:
        mni152_volumes()
    assert error.value.exit_code == 7


def test_a_nilearn_without_the_template_is_named(monkeypatch, tmp_path):
    (tmp_path / "nilearn").mkdir()
    (tmp_path / "nilearn" / "__init__.py").touch()
    spec = importlib.util.spec_from_file_location(
        "nilearn",
        tmp_path / "nilearn" / "__init__.py",
        submodule_search_locations=[str(tmp_path / "nilearn")],
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match=r"t1_tal_nlin_sym_09a_converted\.nii\.gz is missing"):
        mni152_volumes()
