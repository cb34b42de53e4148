import numpy as np
import pytest
import torch
from PIL import Image

from efficient_medsam2.images import (
    Squash,
    logits_to_mask,
    squash_labels,
    squash_slices,
    to_network_input,
)


def test_squash_is_pillows_bicubic_as_medsam2_calls_it(rng):
    grey = rng.integers(0, 255, (2, 10, 14), np.uint8)
    squashed = squash_slices(grey, 8)
    assert (squashed.shape, squashed.dtype) == ((2, 1, 8, 8), np.uint8)
    # MedSAM2 converts to RGB first and resizes with Pillow's default, which is bicubic.
    official = np.asarray(Image.fromarray(grey[1]).convert("RGB").resize((8, 8)))
    for channel in range(3):
        np.testing.assert_array_equal(squashed[1, 0], official[:, :, channel])
    colour = rng.integers(0, 255, (1, 10, 14, 3), np.uint8)
    official = np.asarray(Image.fromarray(colour[0]).resize((8, 8)))
    np.testing.assert_array_equal(squash_slices(colour, 8)[0], official.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(10, 14), (3, 5), (8, 8)])
def test_labels_agree_with_pillows_nearest(rng, shape):
    labels = rng.integers(0, 200, (2, *shape)).astype(np.uint16)
    squashed = squash_labels(labels, 8)
    assert squashed.dtype == np.uint16
    official = Image.fromarray(labels[1].astype(np.uint8)).resize((8, 8), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(squashed[1], np.asarray(official))


def test_network_input_repeats_grey_and_normalises(rng):
    grey = torch.from_numpy(rng.integers(0, 255, (2, 1, 4, 4), np.uint8))
    seen = to_network_input(grey)
    assert (seen.shape, seen.dtype) == ((2, 3, 4, 4), torch.float32)
    torch.testing.assert_close(seen, to_network_input(grey.repeat(1, 3, 1, 1)))
    expected = (grey[1, 0, 2, 3].item() / 255 - 0.406) / 0.225
    assert seen[1, 2, 2, 3].item() == pytest.approx(expected, rel=1e-5)


def test_squash_maps_there_and_back(rng):
    squash = Squash(height=100, width=50, size=200)
    np.testing.assert_allclose(squash.points_to_network([10, 20]), [40, 40])
    np.testing.assert_allclose(squash.boxes_to_network([[10, 20, 30, 40]]), [[40, 40, 120, 80]])
    points, boxes = rng.random((3, 2)), rng.random((2, 5, 4))
    np.testing.assert_allclose(squash.points_to_image(squash.points_to_network(points)), points)
    np.testing.assert_allclose(squash.boxes_to_image(squash.boxes_to_network(boxes)), boxes)


def test_logits_go_back_to_the_image():
    logits = torch.full((2, 4, 4), -5.0)
    logits[1, :, 2:] = 5.0
    mask = logits_to_mask(logits.half(), height=6, width=12)
    assert (mask.shape, mask.dtype) == ((2, 6, 12), bool)
    assert not mask[0].any()
    np.testing.assert_array_equal(mask[1], np.tile(np.arange(12) >= 6, (6, 1)))


def test_the_masks_of_a_squashed_label_come_back(rng):
    label = np.zeros((1, 40, 60), np.uint16)
    label[0, 10:30, 15:45] = 1
    logits = torch.from_numpy(squash_labels(label, 64).astype(np.float32)) * 2 - 1
    mask = logits_to_mask(logits, height=40, width=60)
    assert (mask == (label > 0)).mean() > 0.99


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="uint8 images"):
        squash_slices(np.zeros((1, 4, 4), np.int16), 8)
    with pytest.raises(ValueError, match=r"expected .n, H, W. or"):
        squash_slices(np.zeros((1, 4, 4, 2), np.uint8), 8)
    with pytest.raises(ValueError, match=r"expected .n, H, W."):
        squash_labels(np.zeros((4, 4)), 8)
    with pytest.raises(ValueError, match="uint8"):
        to_network_input(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="logits"):
        logits_to_mask(torch.zeros(4, 4), height=4, width=4)
    with pytest.raises(ValueError, match="1 or more"):
        Squash(height=0, width=4, size=4)
    with pytest.raises(ValueError, match="expected shape"):
        Squash(height=4, width=4, size=4).points_to_network([1, 2, 3])
