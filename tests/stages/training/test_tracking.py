"""A student's windows: prompts of several kinds and cases of several lengths in one batch."""

import pytest
import torch

from efficient_medsam2.networks.records import Prompts
from stages.training.tracking import (
    Start,
    answer_step,
    follow_windows,
    remember_step,
    steps_of,
)
from tests.networks.tiny import SIZE, boxes, multimask_runner, pixels

LENGTH = 3


@pytest.fixture(scope="module")
def runner():
    return multimask_runner()


@pytest.fixture(scope="module")
def windows(runner):
    with torch.no_grad():
        features = runner.encode(pixels(4 * LENGTH))
    masks = torch.zeros(4, 1, SIZE, SIZE)
    for row in range(4):
        masks[row, 0, 10 : 20 + row, 12 : 30 + row] = 1
    # Three points and more would be one candidate; a box gives one, a point three.
    prompts = Prompts(
        points_BN2=boxes(4).reshape(4, 2, 2)[:, :1], labels_BN=torch.ones(4, 1, dtype=torch.int64)
    )
    return steps_of(features, 4, LENGTH), prompts, masks, torch.tensor([9, 2, 5, 30])


@torch.no_grad()
@pytest.mark.parametrize(
    "by_mask", [[False, True, False, True], [True, True, True, True], [False] * 4]
)
def test_a_mixed_batch_equals_its_tracks_alone(runner, windows, by_mask):
    steps, prompts, masks, frames = windows
    records, own = follow_windows(
        runner,
        steps,
        Start(prompts=prompts, masks_T1SS=masks, by_mask=torch.tensor(by_mask)),
        num_frames=frames,
        also_remember=range(LENGTH),
    )
    for row, masked in enumerate(by_mask):
        one = torch.tensor([row])
        alone, memories = follow_windows(
            runner,
            [step.take(one) for step in steps],
            Start(prompts=prompts.take(one), masks_T1SS=masks[one], by_mask=torch.tensor([masked])),
            num_frames=int(frames[row]),
            also_remember=range(LENGTH),
        )
        for step in range(LENGTH):
            for name in ("mask_logits", "best_iou", "object_pointer", "object_score"):
                mine = getattr(records[step].take(one), name)
                torch.testing.assert_close(mine, getattr(alone[step], name), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(
                own[step].memory[one], memories[step].memory, rtol=1e-3, atol=1e-3
            )


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_memories_are_made_where_they_are_remembered_or_asked_for(runner, windows, masked):
    steps, prompts, masks, frames = windows
    start = Start(
        prompts=prompts,
        masks_T1SS=masks,
        by_mask=torch.tensor([masked, False, masked, False]),
    )
    records, own = follow_windows(runner, steps, start, num_frames=frames)
    assert len(records) == LENGTH
    assert list(own) == [0, 1]
    _, all_own = follow_windows(runner, steps, start, num_frames=frames, also_remember=[LENGTH - 1])
    assert list(all_own) == [0, 1, 2]
    assert all(all_own[step].position == step for step in all_own)
    torch.testing.assert_close(own[1].memory, all_own[1].memory)


@torch.no_grad()
def test_a_step_alone_gives_what_the_window_gives(runner, windows):
    steps, prompts, masks, frames = windows
    start = Start(
        prompts=prompts, masks_T1SS=masks, by_mask=torch.tensor([False, True, False, True])
    )
    records, own = follow_windows(runner, steps, start, num_frames=frames)
    for step, features in enumerate(steps):
        bank = [own[before] for before in range(step)]
        record = answer_step(runner, features, start, bank, position=step, num_frames=frames)
        torch.testing.assert_close(record.mask_logits, records[step].mask_logits)
        if step in own:
            entry = remember_step(runner, features, record, start, position=step)
            torch.testing.assert_close(entry.memory, own[step].memory)


@torch.no_grad()
def test_a_mask_is_its_own_answer_on_the_first_slice(runner, windows):
    steps, prompts, masks, frames = windows
    chosen = torch.tensor([False, True, False, True])
    # On whole cells of the low resolution nothing is lost.
    masks = torch.zeros_like(masks)
    masks[:, :, 8:24, 12:32] = 1
    start = Start(prompts=prompts, masks_T1SS=masks, by_mask=chosen)
    records, _ = follow_windows(runner, steps, start, num_frames=frames)
    answers = torch.nn.functional.interpolate(records[0].mask_logits, size=(SIZE, SIZE)) > 0
    same = (answers == (masks > 0)).flatten(1).all(1)
    assert same.tolist() == chosen.tolist()


def test_gradients_reach_every_track_of_a_mixed_batch(runner, windows):
    steps, prompts, masks, frames = windows
    raw = steps[0].s16.clone().requires_grad_()
    first = type(steps[0])(s4=steps[0].s4, s8=steps[0].s8, s16=raw)
    records, _ = follow_windows(
        runner,
        [first, *steps[1:]],
        Start(prompts=prompts, masks_T1SS=masks, by_mask=torch.tensor([False, True, False, True])),
        num_frames=frames,
    )
    records[-1].visible_logits.sum().backward()
    assert (raw.grad.flatten(1).abs().sum(1) > 0).all()
