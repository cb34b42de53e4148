import numpy as np
import pytest
from pydantic import ValidationError

from efficient_medsam2.images import CT_WINDOWS_HU, IntensityConfig, to_uint8


def test_ct_window(make_case):
    hounsfield = np.array([[[-1000, -160, 40, 240, 3000]]], np.int16)
    case = make_case(hounsfield, modality="CT")
    np.testing.assert_array_equal(to_uint8(case, IntensityConfig())[0, 0], [0, 0, 128, 255, 255])


@pytest.mark.parametrize("name", CT_WINDOWS_HU)
def test_named_windows_are_width_and_level(name):
    width, level = CT_WINDOWS_HU[name]
    low, high = IntensityConfig(ct_window=name).ct_range_hu
    assert (high - low, (low + high) / 2) == (width, level)
    assert IntensityConfig(ct_window=(width, level)).ct_range_hu == (low, high)


def test_mr_percentiles_ignore_the_background(make_case):
    image = np.zeros((4, 50, 50), np.float32)
    inside = np.linspace(100, 200, 1000, dtype=np.float32)
    image.ravel()[:1000] = inside
    grey = to_uint8(make_case(image, modality="MR"), IntensityConfig(percentiles=(10, 90)))
    np.testing.assert_array_equal(grey.ravel()[1000:], 0)
    np.testing.assert_array_equal(grey.ravel()[:100], 0)
    np.testing.assert_array_equal(grey.ravel()[900:1000], 255)
    expected = np.rint((inside[500] - 110) / 80 * 255)
    assert abs(int(grey.ravel()[500]) - expected) <= 1


def test_8_bit_stays(make_case):
    grey = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for modality in ("uint8", "MR", "CT"):
        np.testing.assert_array_equal(
            to_uint8(make_case(grey, modality=modality), IntensityConfig()), grey
        )
    colour = np.full((1, 2, 3, 3), 200, np.uint8)
    assert to_uint8(make_case(colour, modality="RGB"), IntensityConfig()).max() == 200


@pytest.mark.parametrize("value", [0, 5, -3])
def test_constant_image(make_case, value):
    image = np.full((2, 3, 4), value, np.int16)
    assert not to_uint8(make_case(image, modality="MR"), IntensityConfig()).any()


def test_binary_image_is_seen(make_case):
    image = np.zeros((1, 3, 4), np.int16)
    image[0, 0, 0] = 9
    assert to_uint8(make_case(image), IntensityConfig())[0, 0, 0] == 255


@pytest.mark.parametrize(
    "settings",
    [
        {"ct_window": "liver"},
        {"ct_window": (0, 40)},
        {"percentiles": (99, 1)},
        {"percentiles": (0, 101)},
        {"window": "lung"},
    ],
)
def test_bad_settings(settings):
    with pytest.raises(ValidationError):
        IntensityConfig(**settings)
