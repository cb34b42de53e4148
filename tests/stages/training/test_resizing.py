import numpy as np
import pytest
import torch
from PIL import Image

from efficient_medsam2.networks.records import Prompts
from stages.training.resizing import resize_images, resize_labels, resize_maps, resize_prompts


def test_nothing_changes_where_the_sizes_are_equal():
    image = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    label = torch.zeros(2, 8, 8, dtype=torch.int32)
    maps = torch.zeros(2, 3, 4, 4, dtype=torch.float16)
    prompts = Prompts(points_BN2=torch.zeros(1, 1, 2), labels_BN=torch.ones(1, 1))
    assert resize_images(image, 8) is image
    assert resize_labels(label, 8) is label
    assert resize_maps(maps, 4, None) is maps
    assert resize_prompts(prompts, before=8, after=8) is prompts


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_resized_as_pillow_does(channels):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (2, channels, 32, 32), dtype=np.uint8)
    made = resize_images(torch.from_numpy(image), 16)
    assert made.shape == (2, channels, 16, 16)
    for row in range(2):
        for channel in range(channels):
            plane = Image.fromarray(image[row, channel]).resize((16, 16), Image.Resampling.BICUBIC)
            assert np.array_equal(made[row, channel].numpy(), np.asarray(plane))


def test_labels_take_the_nearest_pixel():
    label = torch.arange(16, dtype=torch.int32).reshape(1, 4, 4)
    small = resize_labels(label, 2)
    assert small.dtype == torch.int32
    assert small.tolist() == [[[5, 7], [13, 15]]]
    assert resize_labels(label, 8)[0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_area_is_the_mean_of_each_cell():
    maps = torch.arange(16, dtype=torch.float16).reshape(1, 1, 4, 4)
    assert resize_maps(maps, 2, "area").tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


def test_bilinear_keeps_a_slope_and_a_constant():
    slope = torch.arange(16.0).expand(1, 2, 16, 16)
    half = resize_maps(slope, 8, "bilinear")
    assert torch.allclose(half[0, 0, 0, 2:6], torch.arange(8.0)[2:6] * 2 + 0.5, atol=1e-5)
    assert torch.allclose(
        resize_maps(torch.full((1, 1, 6, 6), 3.0), 9, "bilinear"), torch.tensor(3.0)
    )


def test_levels_without_channels_stay_empty():
    assert resize_maps(torch.zeros(2, 0, 8, 8), 4, "area").shape == (2, 0, 4, 4)


def test_a_missing_mode_is_a_bug():
    with pytest.raises(AssertionError, match="side 4 for a student's 2"):
        resize_maps(torch.zeros(1, 1, 4, 4), 2, None)


def test_prompts_scale_with_the_image_and_back():
    prompts = Prompts(
        points_BN2=torch.tensor([[[3.0, 7.0], [60.0, 41.0]]]),
        labels_BN=torch.tensor([[2, 3]]),
        mask_logits=torch.ones(1, 1, 16, 16),
    )
    small = resize_prompts(prompts, before=64, after=32, mode="area")
    assert small.points_BN2.tolist() == [[[1.5, 3.5], [30.0, 20.5]]]
    assert small.mask_logits is not None
    assert small.mask_logits.shape == (1, 1, 8, 8)
    back = resize_prompts(small, before=32, after=64, mode="area")
    assert torch.equal(back.points_BN2, prompts.points_BN2)
    assert back.labels_BN is prompts.labels_BN
