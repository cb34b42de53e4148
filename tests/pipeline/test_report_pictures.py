"""Curves, overlays and features as colours."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.report_curves import curve_of, draw_curve
from pipeline.report_features import fit_colours, mean_cosine
from pipeline.report_overlays import COLOURS, overlay_pictures, whole_slice
from pipeline.report_records import Sample


def sample(box: tuple[float, float, float, float]) -> Sample:
    return Sample(case_id="a", slice_index=0, object_name="organ", box=box)


def pixels(picture) -> np.ndarray:
    image = Image.open(io.BytesIO(picture.png)).convert("RGB")
    assert image.size == (picture.width, picture.height)
    return np.asarray(image).astype(int)


def near(image: np.ndarray, colour: str) -> np.ndarray:
    """Where (H, W) an image has about this colour."""
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return np.abs(image - wanted).max(-1) < 40


def test_the_box_is_drawn_around_its_last_pixels():
    image = pixels(whole_slice(np.zeros((36, 72), np.uint8), sample((18, 9, 53, 26))))
    assert image.shape == (180, 360, 3)  # 5 to a pixel
    rows, columns = np.nonzero(near(image, COLOURS["box"]))
    assert columns.min() == pytest.approx(18 * 5, abs=2)
    assert columns.max() == pytest.approx(54 * 5, abs=2)
    assert rows.min() == pytest.approx(9 * 5, abs=2)
    assert rows.max() == pytest.approx(27 * 5, abs=2)


def test_contours_are_zoomed_to_the_box_and_keep_their_colours():
    image, truth = np.zeros((200, 200), np.uint8), np.zeros((200, 200), bool)
    truth[100:110, 100:120] = True
    image[truth] = 90
    far = np.roll(truth, 60, axis=0)
    masks = {"truth": truth, "teacher": np.roll(truth, 6, axis=0), "student": far}
    pictures = overlay_pictures(image, masks, sample((100, 100, 119, 109)))
    assert set(pictures) == set(masks)
    assert {picture.width for picture in pictures.values()} == {360}
    teacher = pixels(pictures["teacher"])
    assert near(teacher, COLOURS["truth"]).any()
    assert near(teacher, COLOURS["teacher"]).any()
    assert not near(pixels(pictures["truth"]), COLOURS["teacher"]).any()
    assert not near(pixels(pictures["student"]), COLOURS["student"]).any()  # outside the window
    columns = np.nonzero(near(teacher, COLOURS["teacher"]))[1]
    assert columns.max() - columns.min() == pytest.approx(20 * 360 / 36, abs=6)


def test_a_mask_at_the_border_is_closed_and_an_empty_one_is_drawn_as_nothing():
    image, whole = np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), bool)
    pictures = overlay_pictures(
        image, {"teacher": whole, "student": ~whole}, sample((0, 0, 39, 39))
    )
    assert near(pixels(pictures["teacher"]), COLOURS["teacher"])[0].mean() > 0.9
    assert not pixels(pictures["student"]).any()


def test_colours_are_fitted_on_the_teacher():
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.standard_normal((8, 3)))[0]
    strengths = np.array([3.0, 2.0, 1.0])[:, None, None]
    teacher = np.einsum("ck,khw->chw", basis, generator.standard_normal((3, 9, 7)) * strengths)
    colours = fit_colours([teacher[:, :4], teacher[:, 4:]])
    assert colours.explained == pytest.approx(1)
    whole = colours.pixels(teacher)
    assert whole.shape == (9, 7, 3)
    assert (colours.pixels(teacher[:, :4]) == whole[:4]).all()
    strongest = np.abs(colours.components_3C @ basis)
    assert strongest[0, 0] > 0.9
    assert (whole.reshape(-1, 3).min(0) == 0).all()
    assert (whole.reshape(-1, 3).max(0) == 255).all()
    other = colours.pixels(teacher + 0.2 * generator.standard_normal(teacher.shape))
    assert 0 < np.abs(other.astype(int) - whole).mean() < 40
    with pytest.raises(ValueError, match="4 channels, the teacher's have 8"):
        colours.pixels(teacher[:4])


@pytest.mark.parametrize("channels", [1, 3])
def test_few_channels_and_no_variance_have_colours_too(channels):
    colours = fit_colours([np.ones((channels, 2, 2), np.float16)])
    assert colours.explained == 0
    assert colours.pixels(np.ones((channels, 2, 2))).shape == (2, 2, 3)


def test_cosine_is_over_channels():
    first = np.array([[[1.0, 0.0]], [[0.0, 2.0]]])
    second = np.array([[[3.0, 1.0]], [[0.0, 1.0]]])
    assert mean_cosine(first, second, np.zeros(2)) == pytest.approx((1 + 0.5**0.5) / 2)
    assert mean_cosine(first, -first, np.zeros(2)) == pytest.approx(-1)
    assert mean_cosine(first + 100, 100 - first, np.full(2, 100.0)) == pytest.approx(-1)


def test_curves():
    assert curve_of([{"step": 0, "validation_dsc": 0.5}]) is None
    lines = [{"step": step, "loss": 10.0 / step} for step in (1, 2, 8)]
    curve = curve_of([{"step": 0, "validation_dsc": 0.5}, *lines])
    assert curve is not None
    assert curve.loss[-1] == (8, 1.25)
    assert curve.validation == ((0, 0.5),)
    assert curve.logarithmic
    flat = curve_of([{"step": 1, "loss": 0.0}])
    assert flat is not None
    assert not flat.logarithmic
    for each in (curve, flat):
        light, dark = draw_curve(each, dark=False), draw_curve(each, dark=True)
        image = Image.open(io.BytesIO(light.png))
        assert image.size == (light.width, light.height)
        assert np.asarray(image)[0, 0, 3] == 0  # the page's own paper shows
        assert light.png != dark.png
