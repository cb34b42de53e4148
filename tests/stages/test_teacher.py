"""The small teacher: its batches and its validation."""

import numpy as np
import pytest
import torch

from efficient_medsam2.networks.model_folder import load_runner
from stages.teacher_batches import TeacherBatches, visible_objects
from stages.teacher_settings import TrainTeacherConfig
from stages.teacher_validation import validate_teacher
from stages.training.windows import LabelledVolume, cut_window
from tests.end_to_end import files, small
from tests.stages.training.test_batches import assert_same

CONFIG = TrainTeacherConfig(
    steps=10,
    batch_size=2,
    network=small.NETWORK,
    window=3,
    pool=2,
    real="none",
    tracks_from=0.5,
    prompts_per_slice=2,
)


def test_a_batch_is_a_pure_function_of_its_number():
    batches = [TeacherBatches(CONFIG, 1)(number) for number in (0, 6)]
    stream = TeacherBatches(CONFIG, 1)
    for number, expected in ((6, batches[1]), (0, batches[0])):
        assert_same(stream(number), expected)
    assert not torch.equal(TeacherBatches(CONFIG, 2)(0).pixels, batches[0].pixels)


def test_tracks_join_after_their_share_of_the_steps():
    stream = TeacherBatches(CONFIG, 1)
    assert stream(4).track_prompts is None
    later = stream(6)
    assert later.track_prompts is not None
    assert later.track_slices.shape[1] == 3
    first = later.track_slices[0].tolist()
    assert first in ([0, 1, 2], [3, 4, 5])
    doubled = CONFIG.model_copy(update={"accumulate": 2})
    assert TeacherBatches(doubled, 1)(6).track_prompts is None  # batch 6 belongs to step 3


def test_prompts_belong_to_objects_that_are_large_enough():
    batch = TeacherBatches(CONFIG, 1)(0)
    assert batch.pixels.shape == (6, 3, 64, 64)
    assert (batch.prompt_mask.flatten(1).sum(1) >= CONFIG.smallest).all()
    assert (torch.bincount(batch.prompt_slice, minlength=6) <= 2).all()
    assert set(batch.edges.unique().tolist()) <= {0.0, 1.0}


def test_visible_objects_leave_out_the_background_and_the_small():
    label = np.zeros((8, 8), np.int64)
    label[:2] = 3
    label[7, 7] = 5
    assert visible_objects(label, 2).tolist() == [3]
    assert visible_objects(label, 1).tolist() == [3, 5]


@pytest.fixture(scope="module")
def runner(blocks):
    return load_runner(blocks.teacher.checkpoint)


def test_validation_gives_both_figures_and_their_mean(runner):
    image, label = files.volume(0)
    figures = validate_teacher(runner, [LabelledVolume(image=image, label=label)], 5)
    assert set(figures) == {"dsc", "dsc_3d", "score"}
    assert figures["score"] == pytest.approx((figures["dsc"] + figures["dsc_3d"]) / 2)
    assert 0 <= figures["score"] <= 1


def test_validation_without_objects_is_a_score_of_zero(runner):
    image, label = files.volume(0)
    nothing = LabelledVolume(image=image, label=label * 0)
    assert validate_teacher(runner, [nothing], 5) == {"dsc": 0.0, "score": 0.0}
    missing_middle = label.copy()
    missing_middle[2] = 0
    volume = LabelledVolume(image=image, label=missing_middle)
    assert set(validate_teacher(runner, [volume], 5)) == {"dsc", "score"}


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_windows_move_image_and_label_alike(depth):
    label = np.zeros((depth, 40, 40), np.uint8)
    label[:, 12:28, 15:30] = 1
    volume = LabelledVolume(image=label * 200, label=label)
    image, mask = cut_window(volume, np.random.default_rng(3), length=4, size=32, strong=False)
    assert image.shape == mask.shape == (4, 32, 32)
    assert ((image > 100) == (mask == 1)).float().mean() > 0.97
    again = cut_window(volume, np.random.default_rng(3), length=4, size=32, strong=False)
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], mask)
