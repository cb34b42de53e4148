import numpy as np
import pytest
import torch

from efficient_medsam2.images.preprocess import squash_labels, squash_slices, to_network_input
from efficient_medsam2.networks.records import Prompts, boxes_to_prompts
from efficient_medsam2.predictor import VolumePredictor
from tests.networks.tiny import SIZE, tiny_runner

BOXES = np.array([[10, 5, 60, 30], [30.5, 8, 70, 40]])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runner():
    return tiny_runner()


def volume(depth, height=48, width=80, channels=()):
    return np.random.default_rng(depth).integers(
        0, 256, (depth, height, width, *channels), dtype=np.uint8
    )


def network_boxes(height=48, width=80):
    factors = np.array([SIZE / width, SIZE / height] * 2)
    return torch.from_numpy((BOXES * factors).astype(np.float32))


def upsampled(logits, height=48, width=80):
    full = torch.nn.functional.interpolate(
        logits, size=(height, width), mode="bilinear", align_corners=False
    )
    return (full[:, 0] > 0).numpy()


class ByHand:
    """Encode everything, remember everything: the slow way that the predictor must equal."""

    def __init__(self, runner, image):
        self.runner = runner
        self.depth = len(image)
        pixels = to_network_input(torch.from_numpy(squash_slices(image, SIZE)))
        self.features = [
            runner.encode(pixels[index : index + 1]).take(torch.zeros(2, dtype=torch.int64))
            for index in range(self.depth)
        ]

    def follow(self, start, path, *, reverse, prompts=None, drawn=None):
        runner, here = self.runner, self.features[start]
        if drawn is None:
            record = runner.prompted(here, prompts or boxes_to_prompts(network_boxes()))
        else:
            record = runner.mask_prompted(here, drawn)
        bank = [runner.remember(here, record, position=start, prompted=True, full_mask_B1SS=drawn)]
        masks = {start: upsampled(record.mask_logits)}
        for position in path:
            here = self.features[position]
            record = runner.tracked(
                here, bank, position=position, reverse=reverse, num_frames=max(self.depth, 2)
            )
            bank.append(runner.remember(here, record, position=position, prompted=False))
            masks[position] = upsampled(record.mask_logits)
        return masks


def agreement(one, other):
    """Share of equal pixels: batching changes the last bits of logits, so not always all."""
    return (one == other).mean()


@torch.no_grad()
def test_one_slice_is_squashed_prompted_and_stretched_back(runner):
    image = volume(3)
    masks = VolumePredictor(runner, image).segment_boxes(1, BOXES)
    assert masks.shape == (2, 48, 80)
    assert masks.dtype == bool
    expected = ByHand(runner, image).follow(1, (), reverse=False)[1]
    assert 0.02 < expected.mean() < 0.98
    assert agreement(masks, expected) > 0.999
    assert agreement(masks[0], masks[1]) < 0.999


@torch.no_grad()
@pytest.mark.parametrize("start", [0, 5, 13])
def test_both_directions_equal_a_loop_with_an_endless_memory(runner, start):
    image = volume(14)
    by_hand = ByHand(runner, image)
    expected = by_hand.follow(start, range(start + 1, 14), reverse=False)
    expected |= by_hand.follow(start, range(start - 1, -1, -1), reverse=True)
    masks = VolumePredictor(runner, image, keep=4).follow_boxes(start, BOXES, slices=range(14))
    assert masks.shape == (2, 14, 48, 80)
    for position in range(14):
        assert agreement(masks[:, position], expected[position]) > 0.999, position


@torch.no_grad()
def test_clicks_are_scaled_and_followed(runner):
    image = volume(5)
    by_hand = ByHand(runner, image)
    clicks = np.array([[[20, 10], [50, 40]], [[70, 30], [0, 0]]], dtype=float)
    labels = np.array([[1, 0], [1, -10]])
    network = torch.from_numpy(clicks * [SIZE / 80, SIZE / 48]).float()
    prompts = Prompts(points_BN2=network, labels_BN=torch.from_numpy(labels))
    expected = by_hand.follow(2, (3, 4), reverse=False, prompts=prompts)
    expected |= by_hand.follow(2, (1, 0), reverse=True, prompts=prompts)
    predictor = VolumePredictor(runner, image)
    masks = predictor.follow_points(2, clicks, labels, slices=range(5))
    for position in range(5):
        assert agreement(masks[:, position], expected[position]) > 0.999, position
    assert np.array_equal(masks[:, 2], predictor.segment_points(2, clicks, labels))
    on_it = predictor.segment_points(2, clicks[:, :1])
    assert np.array_equal(on_it, predictor.segment_points(2, clicks[:, :1], [[1], [1]]))


@torch.no_grad()
def test_a_drawn_mask_is_its_own_answer_and_is_followed(runner):
    image = volume(4)
    drawn = np.zeros((2, 48, 80), dtype=bool)
    drawn[0, 10:30, 20:60] = drawn[1, 5:20, 40:70] = True
    network = torch.from_numpy(squash_labels(drawn.astype(np.uint16), SIZE)).float()[:, None]
    expected = ByHand(runner, image).follow(1, (2, 3), reverse=False, drawn=network)
    masks = VolumePredictor(runner, image).follow_masks(1, drawn, slices=[1, 2, 3])
    assert np.array_equal(masks[:, 0], drawn)
    for position in (2, 3):
        assert agreement(masks[:, position - 1], expected[position]) > 0.999, position
    empty = VolumePredictor(runner, image).follow_masks(1, drawn[:0], slices=[1, 2])
    assert empty.shape == (0, 2, 48, 80)


def test_clicks_and_drawings_of_another_shape_are_refused(runner):
    predictor = VolumePredictor(runner, volume(2))
    with pytest.raises(ValueError, match=r"expected points \(N, P, 2\)"):
        predictor.segment_points(0, [[1, 2]])
    with pytest.raises(ValueError, match=r"expected labels \(1, 1\)"):
        predictor.segment_points(0, [[[1, 2]]], [1])
    with pytest.raises(ValueError, match=r"1 \(on the object\), 0"):
        predictor.segment_points(0, [[[1, 2]]], [[2]])
    with pytest.raises(ValueError, match=r"expected masks \(N, 48, 80\)"):
        predictor.follow_masks(0, np.zeros((1, 48, 48)), slices=[0])


def test_a_part_of_a_volume_is_followed_in_its_order(runner):
    image = volume(9)
    predictor = VolumePredictor(runner, image)
    whole = predictor.follow_boxes(4, BOXES, slices=range(9))
    part = predictor.follow_boxes(4, BOXES, slices=[3, 4, 5, 6])
    assert np.array_equal(part, whole[:, 3:7])


def test_the_prompted_slice_answers_as_it_does_alone(runner):
    predictor = VolumePredictor(runner, volume(3))
    alone = predictor.segment_boxes(1, BOXES)
    assert np.array_equal(alone, predictor.follow_boxes(1, BOXES, slices=[1])[:, 0])


def test_an_image_is_a_volume_of_one_slice(runner):
    predictor = VolumePredictor(runner, volume(1))
    assert predictor.depth == 1
    masks = predictor.follow_boxes(0, BOXES, slices=[0])
    assert np.array_equal(masks[:, 0], predictor.segment_boxes(0, BOXES))


def test_colour_is_seen(runner):
    grey = volume(2)
    colour = np.stack([grey, grey, grey], axis=-1)
    masks = VolumePredictor(runner, grey).segment_boxes(0, BOXES)
    assert np.array_equal(masks, VolumePredictor(runner, colour).segment_boxes(0, BOXES))
    colour[..., 1:] = 255 - colour[..., 1:]
    assert not np.array_equal(masks, VolumePredictor(runner, colour).segment_boxes(0, BOXES))


def test_one_box_needs_no_outer_bracket_and_no_box_gives_no_mask(runner):
    predictor = VolumePredictor(runner, volume(2))
    one = predictor.segment_boxes(0, BOXES[0])
    assert np.array_equal(one, predictor.segment_boxes(0, BOXES[:1]))
    assert predictor.segment_boxes(0, np.zeros((0, 4))).shape == (0, 48, 80)
    assert predictor.follow_boxes(0, np.zeros((0, 4)), slices=[0, 1]).shape == (0, 2, 48, 80)


@pytest.mark.parametrize("keep", [1, 4, 6])
def test_memory_does_not_grow_with_the_volume(runner, keep):
    predictor = VolumePredictor(runner, volume(16), keep=keep)
    most = 0
    for index in [*range(16), *range(15, -1, -1)]:
        features = predictor.features(index)
        assert features.s16.shape[0] == 1
        # Rows of one encoded batch must not keep the whole batch alive.
        assert features.s16.untyped_storage().nbytes() == features.s16.nbytes
        most = max(most, len(predictor._features))
    assert most == max(keep, 4)


def test_large_features_are_remembered_as_far_as_memory_goes(runner, monkeypatch):
    one = VolumePredictor(runner, volume(1)).features(0)
    size = sum(each.nbytes for each in (one.s4, one.s8, one.s16))
    monkeypatch.setattr("efficient_medsam2.predictor._KEEP_BYTES", 5 * size)
    predictor = VolumePredictor(runner, volume(16))
    for index in range(16):
        predictor.features(index)
    assert len(predictor._features) == 5


def test_what_is_remembered_is_not_encoded_again(runner):
    predictor = VolumePredictor(runner, volume(8))
    calls = []
    hook = runner.model.vision_encoder.register_forward_hook(
        lambda *call: calls.append(call[1][0].shape[0])
    )
    predictor.follow_boxes(3, BOXES, slices=range(8))
    predictor.segment_boxes(6, BOXES)
    hook.remove()
    assert sum(calls) == 8


@pytest.mark.parametrize("slices", [[], [0, 1], [2, 4], [3, 2, 1], [2, 2, 3]])
def test_slices_that_are_no_run_around_the_prompt_are_refused(runner, slices):
    predictor = VolumePredictor(runner, volume(6))
    with pytest.raises(ValueError, match="are not a run around slice 2"):
        predictor.follow_boxes(2, BOXES, slices=slices)


def test_slices_beyond_the_volume_are_refused(runner):
    predictor = VolumePredictor(runner, volume(3))
    with pytest.raises(IndexError, match="slice 3 of a volume of 3"):
        predictor.segment_boxes(3, BOXES)
    for slices in (range(-1, 3), range(4)):
        with pytest.raises(IndexError, match="of a volume of 3"):
            predictor.follow_boxes(1, BOXES, slices=slices)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 8, 8), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
    ],
)
def test_images_of_another_kind_are_refused(runner, image):
    with pytest.raises(ValueError, match=r"expected uint8 \(D, H, W\).*to_uint8"):
        VolumePredictor(runner, image)
