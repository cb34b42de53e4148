"""Losses against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from stages.training.losses import (
    box_weight,
    feature_loss,
    iou_loss,
    logit_distillation,
    mask_loss,
    presence_loss,
    soft_dice_loss,
)

LN2 = math.log(2)


def logit(probability):
    return math.log(probability / (1 - probability))


def test_soft_dice_of_one_known_row():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    # overlap 0.5 + 0.5 = 1, total 2 + 2 = 4, smooth 1: 1 - (2 + 1) / (4 + 1)
    assert soft_dice_loss(logits, target).item() == pytest.approx(0.4)


def test_soft_dice_is_the_mean_over_rows_and_zero_where_masks_agree():
    target = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    logits = torch.where(target > 0, 50.0, -50.0)
    assert soft_dice_loss(logits, target).item() == pytest.approx(0, abs=1e-6)
    logits[1] = 50.0  # two false pixels: 1 - 1 / (2 + 1)
    assert soft_dice_loss(logits, target).item() == pytest.approx((2 / 3) / 2, abs=1e-6)


def test_mask_loss_adds_both_terms_with_their_weights():
    logits, target = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert mask_loss(logits, target).item() == pytest.approx(LN2 + 0.4)
    assert mask_loss(logits, target, bce=2, dice=0).item() == pytest.approx(2 * LN2)
    assert mask_loss(logits, target, bce=0, dice=3).item() == pytest.approx(1.2)


def test_mask_loss_weighs_pixels_and_normalises_each_row():
    logits = torch.tensor([[[logit(0.25), 0.0]]])
    target = torch.ones(1, 1, 2)
    weight = torch.tensor([[[3.0, 1.0]]])
    expected = (3 * math.log(4) + LN2) / 4
    found = mask_loss(logits, target, weight_BHW=weight, bce=1, dice=0)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    same = mask_loss(logits, target, weight_BHW=10 * weight, bce=1, dice=0)
    assert same.item() == pytest.approx(expected, rel=1e-6)


def test_box_weight_is_one_within_the_padded_box():
    target = torch.zeros(2, 20, 20)
    target[0, 8:12, 6:8] = 1  # 4 rows x 2 columns: padded by the least reach of 2 each
    weight = box_weight(target, pad=0.25, outside=0.1)
    expected = torch.full((20, 20), 0.1)
    expected[6:14, 4:10] = 1
    assert torch.equal(weight[0], expected)
    assert torch.equal(weight[1], torch.ones(20, 20))


def test_feature_loss_counts_in_deviations_and_by_direction():
    teacher = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    student = torch.tensor([0.0, 3.0]).reshape(1, 2, 1, 1)
    # ((0 - 1) / 0.5)² = 4, ((3 - 0) / 2)² = 2.25; at right angles the cosine is 0
    found = feature_loss(student, teacher, torch.tensor([0.5, 2.0]))
    assert found.item() == pytest.approx((4 + 2.25) / 2 + 1)
    assert feature_loss(teacher, teacher, torch.tensor([0.5, 2.0])).item() == pytest.approx(0)
    assert math.isfinite(feature_loss(student, teacher, torch.zeros(2)).item())


def test_feature_loss_and_its_gradient_are_those_of_the_formula():
    random = torch.Generator().manual_seed(0)
    student = torch.randn(2, 5, 3, 4, generator=random, requires_grad=True)
    teacher, sigma = torch.randn(2, 5, 3, 4, generator=random), torch.rand(5, generator=random) + 1
    squared = ((student - teacher) / sigma[None, :, None, None]).square().mean()
    expected = squared + 1 - F.cosine_similarity(student, teacher, dim=1).mean()
    found = feature_loss(student, teacher, sigma)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, student), torch.autograd.grad(expected, student)
    )


def test_feature_loss_has_a_gradient_where_a_feature_is_zero():
    student = torch.zeros(1, 2, 1, 1, requires_grad=True)
    feature_loss(student, torch.ones(1, 2, 1, 1), torch.ones(2)).backward()
    assert torch.isfinite(student.grad).all()


def test_logit_distillation_is_the_kl_of_bernoullis():
    temperature = 2.0
    teacher, student = torch.tensor([[[2 * logit(0.8)]]]), torch.tensor([[[2 * logit(0.5)]]])
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    found = logit_distillation(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(4 * kl, rel=1e-5)
    assert logit_distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    far = torch.full((1, 1, 1), -1024.0)
    assert logit_distillation(far, far).item() == pytest.approx(0, abs=1e-6)


def test_iou_loss_compares_with_the_true_iou():
    logits = torch.tensor([[[1.0, 1.0, -1.0, -1.0]], [[-1.0, -1.0, -1.0, -1.0]]])
    target = torch.tensor([[[0.0, 1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    # true IoU 1/3, and 1 where both are empty
    found = iou_loss(torch.tensor([0.5, 0.25]), logits, target)
    assert found.item() == pytest.approx((0.5 - 1 / 3 + 0.75) / 2, rel=1e-6)


def test_presence_loss_is_a_cross_entropy():
    found = presence_loss(torch.tensor([0.0, logit(0.9)]), torch.tensor([1.0, 0.0]))
    assert found.item() == pytest.approx((LN2 + math.log(10)) / 2, rel=1e-5)


def test_losses_are_float32_whatever_comes_in():
    values = torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(0)).half()
    assert mask_loss(values, (values > 0).half()).dtype == torch.float32
    features = values.unsqueeze(0)
    assert feature_loss(features, features, torch.ones(1)).dtype == torch.float32
    wanted = F.binary_cross_entropy_with_logits(values[0, 0].float(), torch.ones(2))
    assert presence_loss(values[0, 0], torch.ones(2)).item() == pytest.approx(wanted.item())
