import torch

from efficient_medsam2.networks.records import Prompts, SliceFeatures, boxes_to_prompts


def test_a_box_is_its_two_corners_with_labels_2_and_3():
    prompts = boxes_to_prompts(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert prompts.points_BN2.tolist() == [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
    assert prompts.points_BN2.dtype == torch.float32
    assert prompts.labels_BN.tolist() == [[2, 3], [2, 3]]


def test_rows_can_be_taken_twice():
    levels = SliceFeatures(
        s4=torch.arange(2).view(2, 1, 1, 1),
        s8=torch.arange(2).view(2, 1, 1, 1),
        s16=torch.arange(2).view(2, 1, 1, 1),
    ).take(torch.tensor([1, 1, 0]))
    assert [level.flatten().tolist() for level in (levels.s4, levels.s8, levels.s16)] == [
        [1, 1, 0]
    ] * 3


def test_prompts_are_taken_with_their_masks():
    mask = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    prompts = boxes_to_prompts(torch.rand(2, 4))
    prompts = Prompts(
        points_BN2=prompts.points_BN2, labels_BN=prompts.labels_BN, mask_logits=mask
    ).take(torch.tensor([1]))
    assert prompts.mask_logits.unique().tolist() == [1.0]
    assert prompts.labels_BN.shape == (1, 2)


def test_features_change_dtype_together():
    levels = SliceFeatures(s4=torch.zeros(1), s8=torch.zeros(1), s16=torch.zeros(1))
    moved = levels.to("cpu", torch.float16)
    assert {moved.s4.dtype, moved.s8.dtype, moved.s16.dtype} == {torch.float16}
