"""RECIST marks and the prompts that are made of them."""

import numpy as np
import pytest

from efficient_medsam2.prompts_recist import (
    RECIST_FORMS,
    mark_of_mask,
    mark_of_pixels,
    sample_recist,
)

SIZE = 64


def generator(seed=0):
    return np.random.default_rng(seed)


def ellipse(across, down, *, turn=0.0):
    rows, columns = np.mgrid[:SIZE, :SIZE] - 32
    x = columns * np.cos(turn) + rows * np.sin(turn)
    y = rows * np.cos(turn) - columns * np.sin(turn)
    return (x / across) ** 2 + (y / down) ** 2 <= 1


def drawn_line(start, end):
    count = max(abs(end[0] - start[0]), abs(end[1] - start[1])) + 1
    return np.rint(np.linspace(start, end, count)).astype(int)


def test_the_long_axis_joins_the_farthest_pixels():
    source = generator(1)
    for _ in range(60):
        pixels = source.integers(0, 30, (int(source.integers(1, 40)), 2))
        farthest = np.sqrt(((pixels[:, None] - pixels[None]) ** 2).sum(-1)).max()
        mark = mark_of_pixels(pixels)
        assert mark.length == pytest.approx(farthest)
        assert all((pixels == end).all(1).any() for end in mark.long)


def test_an_ellipse_has_its_two_axes():
    mark = mark_of_mask(ellipse(20, 8))
    assert sorted(mark.long.tolist()) == [[12, 32], [52, 32]]
    assert sorted(mark.short.tolist()) == [[32, 24], [32, 40]]
    assert mark.centre.tolist() == [32, 32]
    turned = mark_of_mask(ellipse(20, 8, turn=0.6))
    long, short = (axis[1] - axis[0] for axis in (turned.long, turned.short))
    assert np.hypot(*long) == pytest.approx(40, abs=1.5)
    assert np.hypot(*short) == pytest.approx(16, abs=1.5)
    assert abs(long @ short) / np.hypot(*long) / np.hypot(*short) < 0.1


def test_distances_are_those_of_the_patient():
    mask = ellipse(16, 12)
    assert np.ptp(mark_of_mask(mask).long, axis=0).tolist() == [32, 0]
    tall = mark_of_mask(mask, pixel_xy=(0.5, 1.0))
    assert np.ptp(tall.long, axis=0).tolist() == [0, 24]
    assert tall.measured((0.5, 1.0)) == 24
    assert np.ptp(tall.short, axis=0).tolist() == [32, 0]


def test_a_drawn_line_runs_between_its_ends_and_a_cross_has_two():
    line = drawn_line((10, 40), (50, 20))
    mark = mark_of_pixels(line)
    assert sorted(mark.long.tolist()) == [[10, 40], [50, 20]]
    assert np.abs(mark.short - mark.centre).max() <= 1.5  # as thick as the line is drawn
    cross = np.concatenate([drawn_line((10, 30), (50, 30)), drawn_line((30, 22), (30, 37))])
    mark = mark_of_pixels(cross)
    assert sorted(mark.short.tolist()) == [[30, 22], [30, 37]]


def test_a_single_pixel_is_a_mark_without_length():
    mark = mark_of_pixels([[7, 9]])
    assert mark.length == 0
    for form in RECIST_FORMS:
        prompt = sample_recist(mark, generator(), size=SIZE, form=form)
        assert {tuple(point) for point in prompt.points_N2.tolist()} == {(7.0, 9.0)}


def test_marks_become_prompts_as_in_the_official_inference():
    mark = mark_of_pixels(drawn_line((10, 40), (51, 20)))
    made = {form: sample_recist(mark, generator(), size=SIZE, form=form) for form in RECIST_FORMS}
    assert {prompt.kind for prompt in made.values()} == {"recist"}
    # The centre is cut to whole pixels, and so is half of the length: 45.6 / 2.
    assert made["box"].points_N2.tolist() == [[8, 8], [52, 52]]
    assert made["box"].labels_N.tolist() == [2, 3]
    assert made["centre"].points_N2.tolist() == [[30.5, 30]]
    assert sorted(made["three"].points_N2.tolist()) == [[10, 40], [30.5, 30], [51, 20]]
    assert made["four"].labels_N.tolist() == [1, 1, 1, 1]
    line = {tuple(pixel) for pixel in drawn_line((10, 40), (51, 20)).tolist()}
    for seed in range(20):
        points = sample_recist(mark, generator(seed), size=SIZE).points_N2
        assert len({tuple(point) for point in points.tolist()}) == 5
        assert all(min(abs(x - u) + abs(y - v) for u, v in line) <= 1 for x, y in points.tolist())


def test_a_box_ends_at_the_image():
    mark = mark_of_pixels(drawn_line((0, 5), (40, 5)))
    assert sample_recist(mark, generator(), size=SIZE, form="box").points_N2.tolist() == [
        [0, 0],
        [40, 25],
    ]


def test_marks_move_with_a_view():
    mark = mark_of_pixels(drawn_line((10, 40), (50, 20))).mapped(lambda ends: ends / 2 + 1)
    assert sorted(mark.long.tolist()) == [[6, 21], [26, 11]]


def test_nothing_has_no_diameter():
    with pytest.raises(ValueError, match="no diameter"):
        mark_of_mask(np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="no diameter"):
        mark_of_pixels(np.zeros((0, 2), int))
