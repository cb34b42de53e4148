import numpy as np
import pytest
import torch

from efficient_medsam2.networks.records import IGNORED_LABEL
from efficient_medsam2.prompts import (
    box_of,
    challenge_boxes,
    error_point,
    inside_point,
    jittered_box,
    jittered_boxes,
    sample_prompt,
    stack_prompts,
)

SIZE = 64


def generator(seed=0):
    return np.random.default_rng(seed)


def mask(x0, y0, x1, y1):
    """A filled rectangle, ends included."""
    values = np.zeros((SIZE, SIZE), bool)
    values[y0 : y1 + 1, x0 : x1 + 1] = True
    return values


def test_a_box_is_tight_and_ends_on_the_last_pixel():
    assert box_of(mask(5, 10, 20, 12)).tolist() == [5, 10, 20, 12]
    assert box_of(mask(7, 9, 7, 9)).tolist() == [7, 9, 7, 9]
    assert box_of(mask(5, 10, 20, 12) | mask(40, 2, 41, 3)).tolist() == [5, 2, 41, 12]


def test_jitter_stays_within_a_share_of_the_side():
    box = np.array([10, 20, 29, 59], np.float32)
    moved = np.stack([jittered_box(box, generator(seed), size=SIZE) for seed in range(300)])
    # 20 px at 512 are 2.5 px at 64: the tall side's 4 px are cut to that.
    reach = np.array([2.0, 2.5, 2.0, 2.5])
    assert (np.abs(moved - box) <= reach + 1e-4).all()
    assert (np.abs(moved - box).max(0) > 0.9 * reach).all()
    assert moved.dtype == np.float32


def test_jitter_keeps_corners_in_order_and_in_the_image():
    for seed in range(100):
        whole = jittered_box(np.array([0, 0, 63, 63], np.float32), generator(seed), size=SIZE)
        assert (whole >= 0).all()
        assert (whole <= SIZE - 1).all()
        dot = jittered_box(
            np.array([30, 30, 30, 30], np.float32), generator(seed), size=512, fraction=5
        )
        assert (dot[:2] <= dot[2:]).all()


def test_no_jitter_leaves_the_box():
    box = np.array([10, 20, 30, 60], np.float32)
    assert jittered_box(box, generator(), size=SIZE, fraction=0).tolist() == box.tolist()


def test_many_boxes_move_as_each_would_alone():
    boxes = np.array([[10, 20, 29, 59], [0, 0, 63, 63], [5, 5, 5, 5]], np.float32)
    noise = np.stack([generator(seed).uniform(-1, 1, 4) for seed in range(3)])
    together = jittered_boxes(boxes, noise, size=SIZE, fraction=0.3)
    for seed, box in enumerate(boxes):
        alone = jittered_box(box, generator(seed), size=SIZE, fraction=0.3)
        assert alone.tolist() == together[seed].tolist()


def test_the_challenges_boxes_grow_by_whole_pixels_at_256():
    boxes = np.array([[100, 200, 300, 400], [3, 3, 510, 511]], np.float32)
    grown = challenge_boxes(boxes, np.array([[0, 1, 2, 5], [5, 5, 5, 5]]), size=512)
    assert grown.tolist() == [[100, 198, 304, 410], [0, 0, 511, 511]]
    assert grown.dtype == np.float32


def test_points_lie_in_the_inner_half():
    shape = mask(10, 20, 40, 30)
    for seed in range(50):
        x, y = inside_point(shape, generator(seed)).astype(int)
        assert shape[y, x]
        # 31 x 11 pixels: half of them lie 3 or more pixels from the edge.
        assert 12 <= x <= 38
        assert 22 <= y <= 28


def test_the_images_edge_counts_as_the_objects():
    for seed in range(50):
        x, _ = inside_point(mask(0, 0, 20, 63), generator(seed)).astype(int)
        assert x >= 4


def test_a_single_pixel_has_its_point():
    assert inside_point(mask(63, 0, 63, 0), generator()).tolist() == [63, 0]


def test_an_error_point_lies_in_the_larger_error():
    truth = mask(10, 10, 40, 40)
    missed = truth & ~mask(10, 10, 20, 40)
    for seed in range(20):
        (x, y), label = error_point(missed, truth, generator(seed))
        assert label == 1
        assert truth[int(y), int(x)]
        assert not missed[int(y), int(x)]
        spilled = truth | mask(41, 10, 60, 40)
        (x, y), label = error_point(spilled, truth, generator(seed))
        assert label == 0
        assert spilled[int(y), int(x)]
        assert not truth[int(y), int(x)]


@pytest.mark.parametrize(("shift", "label"), [(2, 0), (-2, 1)])
def test_of_two_kinds_of_error_the_larger_decides(shift, label):
    truth = mask(10, 10, 40, 40)
    # Moved to the right by 8 columns, and wider or narrower by 2 at its far end.
    answer = mask(18, 10, 48 + shift, 40)
    (x, _), found = error_point(answer, truth, generator())
    assert found == label
    assert (x > 40) == (label == 0)


def test_an_exact_answer_gets_a_foreground_point():
    truth = mask(10, 10, 40, 40)
    (x, y), label = error_point(truth, truth, generator())
    assert label == 1
    assert truth[int(y), int(x)]


def test_empty_masks_are_refused():
    nothing = np.zeros((SIZE, SIZE), bool)
    with pytest.raises(ValueError, match="an empty mask has no box"):
        box_of(nothing)
    with pytest.raises(ValueError, match="an empty mask has no point inside"):
        inside_point(nothing, generator())
    with pytest.raises(ValueError, match="an empty mask"):
        error_point(nothing, nothing, generator())
    with pytest.raises(ValueError, match="an empty mask"):
        sample_prompt(nothing, generator())


@pytest.mark.parametrize(("share", "kinds"), [(1.0, {"box"}), (0.0, {"point"})])
def test_the_share_of_boxes_decides(share, kinds):
    shape = mask(10, 10, 40, 40)
    drawn = [sample_prompt(shape, generator(seed), box_share=share) for seed in range(20)]
    assert {prompt.kind for prompt in drawn} == kinds


def test_boxes_and_points_are_mixed_evenly():
    shape, source = mask(10, 10, 40, 40), generator()
    kinds = [sample_prompt(shape, source).kind for _ in range(400)]
    assert 160 < kinds.count("box") < 240


def test_one_seed_gives_one_prompt():
    shape = mask(10, 10, 40, 40)
    one, other = (sample_prompt(shape, generator(3)) for _ in range(2))
    assert one.kind == other.kind
    assert one.points_N2.tolist() == other.points_N2.tolist()


def test_shorter_prompts_are_filled_with_ignored_points():
    shape = mask(10, 10, 40, 40)
    box = sample_prompt(shape, generator(), box_share=1, jitter=0)
    point = sample_prompt(shape, generator(), box_share=0)
    batch = stack_prompts([point, box])
    assert batch.labels_BN.tolist() == [[1, IGNORED_LABEL], [2, 3]]
    assert batch.labels_BN.dtype == torch.int64
    assert batch.points_BN2[0, 0].tolist() == point.points_N2[0].tolist()
    assert batch.points_BN2[1].tolist() == [[10, 10], [40, 40]]
    assert batch.points_BN2.dtype == torch.float32
    assert batch.mask_logits is None


def test_prompts_of_one_length_need_no_filling():
    point = sample_prompt(mask(10, 10, 40, 40), generator(), box_share=0)
    assert stack_prompts([point, point]).labels_BN.tolist() == [[1], [1]]
