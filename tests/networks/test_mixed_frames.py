"""Tracks of sequences of different lengths in one batch."""

import pytest
import torch

from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.records import Prompts
from efficient_medsam2.networks.runner import SliceRunner
from tests.networks.tiny import boxes, pixels, remembered, tiny_model, tiny_runner


@pytest.fixture(scope="module")
def runner():
    return tiny_runner()


@pytest.fixture(scope="module")
def features(runner):
    with torch.no_grad():
        return runner.encode(pixels(4))


def bank_until(features, position):
    return [
        remembered(features, position=here, prompted=here == 0, seed=here)
        for here in range(position)
    ]


@torch.no_grad()
@pytest.mark.parametrize("position", [1, 3, 6])
@pytest.mark.parametrize("frames", [[9, 3, 20, 9], [2, 2, 7, 1], [16, 17, 30, 400]])
def test_a_mixed_batch_equals_its_rows_alone(runner, features, position, frames):
    """Also where a short sequence no longer sees the pointers that a long one does."""
    bank = bank_until(features, position)
    mixed = runner.condition(
        features.s16, bank, position=position, reverse=False, num_frames=torch.tensor(frames)
    )
    for row, count in enumerate(frames):
        alone = runner.condition(
            features.s16[row : row + 1],
            [entry.take(torch.tensor([row])) for entry in bank],
            position=position,
            reverse=False,
            num_frames=count,
        )
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_length_matters_so_a_mixed_batch_is_no_uniform_one(runner, features):
    bank = bank_until(features, 3)
    given = {"position": 3, "reverse": False}
    uniform = runner.condition(features.s16, bank, num_frames=9, **given)
    mixed = runner.condition(features.s16, bank, num_frames=torch.tensor([9, 9, 9, 4]), **given)
    torch.testing.assert_close(mixed[:3], uniform[:3], rtol=1e-4, atol=1e-4)
    assert (mixed[3] - uniform[3]).abs().max() > 1e-3


@torch.no_grad()
def test_one_frame_never_divides_by_zero(runner, features):
    bank = bank_until(features, 1)
    for frames in (1, torch.tensor([1, 1, 1, 1]), torch.tensor([1, 5, 1, 5])):
        given = runner.condition(features.s16, bank, position=1, reverse=False, num_frames=frames)
        assert given.isfinite().all()


def test_gradients_flow_through_a_mixed_batch(runner, features):
    raw = features.s16.clone().requires_grad_()
    bank = bank_until(features, 5)
    runner.condition(
        raw, bank, position=5, reverse=False, num_frames=torch.tensor([2, 9, 3, 16])
    ).sum().backward()
    assert (raw.grad.flatten(1).abs().sum(1) > 0).all()


@torch.no_grad()
def test_a_fixed_length_goes_before_that_of_the_rows(features):
    fixed = SliceRunner(tiny_model(), RunnerOptions(fixed_num_frames=8))
    bank = bank_until(features, 3)
    given = {"position": 3, "reverse": False}
    rows = fixed.condition(features.s16, bank, num_frames=torch.tensor([2, 3, 9, 20]), **given)
    torch.testing.assert_close(rows, fixed.condition(features.s16, bank, num_frames=5, **given))


def test_as_many_lengths_as_rows_are_asked(runner, features):
    with pytest.raises(ValueError, match="2 rows, the features 4"):
        runner.condition(
            features.s16,
            bank_until(features, 1),
            position=1,
            reverse=False,
            num_frames=torch.tensor([3, 4]),
        )


@torch.no_grad()
def test_a_mask_alone_is_a_prompt_without_points(runner, features):
    """As with SAM 2's own filling point, which is "not a point" (label -1)."""
    dense = torch.randn(4, 1, 16, 16)
    none = Prompts(
        points_BN2=torch.zeros(4, 0, 2),
        labels_BN=torch.zeros(4, 0, dtype=torch.int64),
        mask_logits=dense,
    )
    filled = Prompts(
        points_BN2=torch.zeros(4, 1, 2),
        labels_BN=torch.full((4, 1), -1),
        mask_logits=dense,
    )
    alone = runner.prompted(features, none)
    torch.testing.assert_close(alone.mask_logits, runner.prompted(features, filled).mask_logits)
    other = runner.prompted(
        features,
        Prompts(points_BN2=boxes(4).reshape(4, 2, 2), labels_BN=torch.tensor([[2, 3]] * 4)),
    )
    assert (alone.mask_logits - other.mask_logits).abs().max() > 1e-2
