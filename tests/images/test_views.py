"""Views: exact flips, one geometry for image, label and points, the same bits everywhere."""

import hashlib

import numpy as np
import pytest

from efficient_medsam2.images.views import (
    IDENTITY_VIEW,
    draw_view,
    warp_image,
    warp_label,
    warp_points,
)

SIZE = 48
LAST = SIZE - 1.0
BOUNDS = {"size": SIZE, "flip": True, "rotate_degrees": 30.0, "scale": 0.2, "shift": 0.1}


def drawn(seed=0, **changes):
    return draw_view(np.random.default_rng(seed), **BOUNDS | changes)


@pytest.fixture
def image():
    return np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture
def label():
    label = np.zeros((SIZE, SIZE), np.uint16)
    label[10:20, 15:40] = 3
    label[25:40, 8:20] = 700
    return label


def test_the_identity_gives_the_very_same_array(image, label):
    assert warp_image(image, IDENTITY_VIEW) is image
    assert warp_label(label, IDENTITY_VIEW) is label


@pytest.mark.parametrize(
    ("affine", "flipped"),
    [
        ((-1.0, 0.0, LAST, 0.0, 1.0, 0.0), np.s_[..., ::-1]),
        ((1.0, 0.0, 0.0, 0.0, -1.0, LAST), np.s_[..., ::-1, :]),
        ((-1.0, 0.0, LAST, 0.0, -1.0, LAST), np.s_[..., ::-1, ::-1]),
    ],
)
def test_flips_are_exact_and_undo_themselves(image, label, affine, flipped):
    assert np.array_equal(warp_image(image, affine), image[flipped])
    assert np.array_equal(warp_label(label, affine), label[flipped])
    assert np.array_equal(warp_image(warp_image(image, affine), affine), image)


def test_quarter_turns_and_whole_shifts_are_exact_too(image, label):
    turn = (0.0, -1.0, LAST, 1.0, 0.0, 0.0)
    assert np.array_equal(warp_image(image, turn), np.rot90(image, -1, axes=(1, 2)))
    moved = warp_label(label, (1.0, 0.0, 3.0, 0.0, 1.0, -2.0))
    assert np.array_equal(moved[:-2, 3:], label[2:, :-3])
    assert not moved[-2:].any()
    assert not moved[:, :3].any()


def test_drawn_flips_are_pure_where_nothing_else_is_allowed(image):
    still = {"rotate_degrees": 0.0, "scale": 0.0, "shift": 0.0}
    found = {drawn(seed, **still) for seed in range(40)}
    assert len(found) == 4
    for affine in found:
        warped = warp_image(image, affine)
        assert sorted(warped.ravel()) == sorted(image.ravel())
    assert {drawn(seed, **still, flip=False) for seed in range(9)} == {IDENTITY_VIEW}


def test_views_stay_within_their_bounds():
    centre = np.full(2, LAST / 2)
    factors, angles, shifts = [], [], []
    for seed in range(300):
        a, b, c, d, e, f = drawn(seed, flip=False)
        factors.append(np.hypot(a, d))
        angles.append(np.degrees(np.arctan2(d, a)))
        shifts.append(warp_points(centre, (a, b, c, d, e, f)) - centre)
        assert all(float(value * 2**16).is_integer() for value in (a, b, c, d, e, f))
    assert 0.8 - 1e-4 <= min(factors) < 0.83
    assert 1.17 < max(factors) <= 1.2 + 1e-4
    assert 28 < np.abs(angles).max() <= 30.01
    assert 0.09 * SIZE < np.abs(shifts).max() <= 0.1 * SIZE + 1e-3


@pytest.mark.parametrize("seed", range(12))
def test_points_go_where_the_label_goes(seed):
    affine = drawn(seed)
    label = np.zeros((SIZE, SIZE), np.uint16)
    corners = np.array([[20, 18], [27, 18], [20, 25], [27, 25], [24, 22]])
    for number, (x, y) in enumerate(corners, start=1):
        label[y - 1 : y + 2, x - 1 : x + 2] = number
    warped = warp_label(label, affine)
    for number, (x, y) in enumerate(warp_points(corners, affine), start=1):
        assert warped[round(float(y)), round(float(x))] == number


def test_the_image_goes_where_the_label_goes(label):
    solid = np.where(label > 0, 200, 0).astype(np.uint8)
    for seed in range(8):
        affine = drawn(seed)
        seen = warp_image(solid[None], affine)[0] >= 100
        assert (seen != (warp_label(label, affine) > 0)).mean() < 0.01


def test_bilinear_weights_are_rounded_to_the_nearest_grey(image):
    half = warp_image(image, (1.0, 0.0, 0.5, 0.0, 1.0, 0.0))
    pairs = image[:, :, :-1].astype(int) + image[:, :, 1:]
    assert np.array_equal(half[:, :, 1:], (pairs + 1) // 2)
    assert np.array_equal(half[:, :, 0], (image[:, :, 0].astype(int) + 1) // 2)  # outside is 0


def test_all_machines_make_these_bytes():
    """A change here makes every stored view another one: a cache could not be continued."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    image = ((rows * 7 + columns * columns) % 256).astype(np.uint8)[None]
    label = ((rows // 8) * 6 + columns // 8).astype(np.uint16)
    affine = drawn(3)
    digest = hashlib.sha256(np.array(affine).tobytes())
    digest.update(warp_image(image, affine).tobytes() + warp_label(label, affine).tobytes())
    assert digest.hexdigest()[:16] == "17d713f1d65b5e29"


def test_impossible_views_are_refused(image, label):
    with pytest.raises(ValueError, match="no inverse"):
        warp_image(image, (1.0, 1.0, 0.0, 1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="next to nothing"):
        warp_label(label, (1e-3, 0.0, 0.0, 0.0, 1.0, 0.0))
    with pytest.raises(ValueError, match=r"\(C, S, S\) uint8"):
        warp_image(image[0], IDENTITY_VIEW)
    with pytest.raises(ValueError, match=r"\(S, S\) integers"):
        warp_label(label[:9], IDENTITY_VIEW)
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\)"):
        warp_points([1, 2, 3], IDENTITY_VIEW)
