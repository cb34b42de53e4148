"""Pictures of region maps."""

import numpy as np
import pytest

from efficient_medsam2.synthetic.appearance import render


@pytest.fixture
def region():
    """A bright square (2) in grey tissue (1), dark outside (0)."""
    region = np.zeros((3, 48, 48), np.uint16)
    region[:, 4:44, 4:44] = 1
    region[:, 16:32, 16:32] = 2
    return region


def picture(region, modality, seed=0, visible=None):
    return render(
        np.random.default_rng(seed),
        region,
        brightness_R=np.array([0.0, 0.4, 0.9], np.float32),
        visible=np.ones(region.shape, bool) if visible is None else visible,
        modality=modality,
    )


@pytest.mark.parametrize("modality", ["CT", "US"])
def test_brighter_regions_stay_brighter(region, modality):
    for seed in range(5):
        image = picture(region, modality, seed)
        assert image.dtype == np.uint8
        assert image[region == 2].mean() > image[region == 1].mean() + 10


def test_mr_is_sometimes_inverted(region):
    brighter = [
        bool(image[region == 2].mean() > image[region == 1].mean())
        for image in (picture(region, "MR", seed) for seed in range(40))
    ]
    assert 0 < brighter.count(False) < 20


def test_nothing_is_seen_outside_the_field_of_view(region):
    visible = np.zeros(region.shape, bool)
    visible[:, 10:40, 10:40] = True
    image = picture(region, "US", visible=visible)
    assert not image[~visible].any()
    assert image[visible].any()


def test_ultrasound_is_the_noisiest(region):
    inside = np.s_[:, 18:30, 18:30]
    deviation = {
        modality: np.median(
            [picture(region, modality, seed)[inside].astype(float).std() for seed in range(8)]
        )
        for modality in ("MR", "US")
    }
    assert deviation["US"] > deviation["MR"]
