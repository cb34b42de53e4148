"""Prompts of several points."""

import numpy as np
import pytest

from efficient_medsam2.prompts import sample_prompt
from efficient_medsam2.prompts_points import outside_point, sample_points

SIZE = 64


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def ring():
    mask = np.zeros((SIZE, SIZE), bool)
    mask[20:40, 10:50] = True
    mask[28:32, 28:32] = False
    return mask


def test_one_point_is_that_of_a_plain_prompt(ring):
    one, plain = sample_points(ring, generator(3)), generator(3)
    plain.random()  # the choice of a kind
    other = sample_prompt(ring, generator(3), box_share=0.0)
    assert one.labels_N.tolist() == other.labels_N.tolist() == [1]
    assert other.points_N2.tolist() == sample_points(ring, plain).points_N2.tolist()


def test_positive_points_lie_on_the_object_and_negative_ones_beside_it(ring):
    counts, negatives = [], 0
    for seed in range(200):
        prompt = sample_points(ring, generator(seed), most=5, negative_share=0.5)
        counts.append(len(prompt.labels_N))
        negatives += int((prompt.labels_N == 0).sum())
        assert prompt.kind == "point"
        assert prompt.labels_N[0] == 1
        for (x, y), label in zip(prompt.points_N2.astype(int), prompt.labels_N, strict=True):
            assert ring[y, x] == (label == 1)
            assert 0 <= x < 70
            assert 10 <= y < 50
    assert sorted(set(counts)) == [1, 2, 3, 4, 5]
    further = sum(counts) - len(counts)
    assert 0.4 < negatives / further < 0.6


def test_the_negative_share_decides(ring):
    for share, expected in ((0.0, {1}), (1.0, {0})):
        prompts = [
            sample_points(ring, generator(seed), most=6, negative_share=share) for seed in range(20)
        ]
        assert {int(v) for prompt in prompts for v in prompt.labels_N[1:]} == expected


def test_an_object_without_surroundings_gets_positive_points_alone():
    whole = np.ones((SIZE, SIZE), bool)
    assert outside_point(whole, generator()) is None
    prompt = sample_points(whole, generator(1), most=8, negative_share=1.0)
    assert set(prompt.labels_N.tolist()) == {1}


def test_empty_masks_are_refused():
    nothing = np.zeros((SIZE, SIZE), bool)
    with pytest.raises(ValueError, match="an empty mask"):
        sample_points(nothing, generator())
    with pytest.raises(ValueError, match="an empty mask"):
        outside_point(nothing, generator())
