from dataclasses import fields, replace

import pytest
import torch

from efficient_medsam2.networks.filled_boxes import filled_boxes
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.records import Prompts, SliceRecord, boxes_to_prompts
from efficient_medsam2.networks.runner import NO_OBJECT_LOGIT, SliceRunner
from tests.networks.tiny import (
    SIZE,
    boxes,
    multimask_runner,
    pixels,
    remembered,
    tiny_model,
    tiny_runner,
)


@pytest.fixture(autouse=True)
def no_grad(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def click(rows=2):
    return Prompts(
        points_BN2=torch.tensor([[20.0, 24.0]]).expand(rows, 1, 2),
        labels_BN=torch.ones(rows, 1, dtype=torch.int64),
    )


def make_absent(model):
    model.mask_decoder.pred_obj_score_head.proj_out.bias.data.fill_(-100.0)


def square():
    mask = torch.zeros(2, 1, SIZE, SIZE)
    mask[0, :, 16:48, 16:32] = 1
    mask[1, :, 0:32, 8:64] = 1
    return mask


def assert_records_close(one: SliceRecord, other: SliceRecord):
    for field in fields(one):
        torch.testing.assert_close(
            getattr(one, field.name), getattr(other, field.name), rtol=1e-4, atol=5e-5
        )


def test_levels_lie_at_strides_4_8_and_16(runner, features):
    assert features.s4.shape == (2, 8, 16, 16)
    assert features.s8.shape == (2, 16, 8, 8)
    assert features.s16.shape == (2, 64, 4, 4)
    assert runner.grid == (4, 4)


@pytest.mark.parametrize("prompts", [boxes_to_prompts(boxes(2)), click()], ids=["box", "click"])
def test_a_prompted_slice_gives_one_record(runner, features, prompts):
    record = runner.prompted(features, prompts)
    assert record.candidate_logits.shape == record.mask_logits.shape == (2, 1, 16, 16)
    assert record.iou.shape == record.best_iou.shape == record.object_score.shape == (2, 1)
    assert record.object_pointer.shape == (2, 64)
    no_memory = runner.model.no_memory_embedding.reshape(1, 64, 1, 1)
    assert torch.equal(record.conditioned_s16, features.s16 + no_memory)
    assert torch.equal(record.mask_logits, record.visible_logits)


def test_one_click_gives_three_masks_where_the_network_is_made_for_it():
    runner = multimask_runner()
    features = runner.encode(pixels(2))
    record = runner.prompted(features, click())
    assert record.candidate_logits.shape == (2, 3, 16, 16)
    best = record.iou.argmax(1)
    for row in range(2):
        assert torch.equal(record.mask_logits[row, 0], record.candidate_logits[row, best[row]])
        assert record.best_iou[row, 0] == record.iou[row, best[row]]
    assert runner.prompted(features, boxes_to_prompts(boxes(2))).iou.shape == (2, 1)
    bank = [remembered(features, position=0, prompted=True)]
    tracked = runner.tracked(features, bank, position=1, reverse=False, num_frames=2)
    assert tracked.iou.shape == (2, 3)


def test_cached_features_are_the_decoders_complete_input(runner, features):
    prompts = boxes_to_prompts(boxes(2))
    record = runner.prompted(features, prompts)
    assert_records_close(record, runner.decode(features, record.conditioned_s16, prompts))


def test_a_tracked_slice_reads_the_bank(runner, features):
    first = runner.prompted(features, boxes_to_prompts(boxes(2)))
    entry = runner.remember(features, first, position=0, prompted=True)
    assert (entry.position, entry.prompted) == (0, True)
    assert entry.memory.shape == (2, 64, 4, 4)
    assert torch.equal(entry.object_pointer, first.object_pointer)
    record = runner.tracked(features, [entry], position=1, reverse=False, num_frames=4)
    assert record.conditioned_s16.shape == (2, 64, 4, 4)
    other = replace(entry, memory=entry.memory.flip(0))
    changed = runner.tracked(features, [other], position=1, reverse=False, num_frames=4)
    assert not torch.allclose(record.conditioned_s16, changed.conditioned_s16, rtol=1e-2)


def test_reverse_equals_forward_on_mirrored_positions(runner, features):
    bank = [remembered(features, position=p, prompted=p == 0) for p in range(3)]
    mirrored = [replace(entry, position=10 - entry.position) for entry in bank]
    forward = runner.tracked(features, bank, position=3, reverse=False, num_frames=9)
    backward = runner.tracked(features, mirrored, position=7, reverse=True, num_frames=9)
    assert torch.equal(forward.conditioned_s16, backward.conditioned_s16)
    assert torch.equal(forward.mask_logits, backward.mask_logits)


def test_rows_do_not_see_each_other(runner):
    features = runner.encode(pixels(3))
    prompts = boxes_to_prompts(boxes(3))
    bank = [remembered(features, position=p, prompted=p == 0) for p in range(3)]
    together = (
        runner.prompted(features, prompts),
        runner.tracked(features, bank, position=3, reverse=False, num_frames=4),
    )
    memory = runner.remember(features, together[0], position=0, prompted=True).memory
    for row in range(3):
        index = torch.tensor([row])
        alone = runner.encode(pixels(3)[index])
        torch.testing.assert_close(alone.s16, features.s16[index], rtol=1e-4, atol=5e-5)
        record = runner.prompted(alone, prompts.take(index))
        assert_records_close(record, together[0].take(index))
        seen = [
            replace(entry, memory=entry.memory[index], object_pointer=entry.object_pointer[index])
            for entry in bank
        ]
        tracked = runner.tracked(alone, seen, position=3, reverse=False, num_frames=4)
        assert_records_close(tracked, together[1].take(index))
        entry = runner.remember(alone, record, position=0, prompted=True)
        torch.testing.assert_close(entry.memory, memory[index], rtol=1e-4, atol=5e-5)


def test_memory_is_made_from_raw_features(runner, features):
    record = runner.prompted(features, boxes_to_prompts(boxes(2)))
    entry = runner.remember(features, record, position=0, prompted=True)
    other = replace(record, conditioned_s16=torch.randn_like(record.conditioned_s16))
    assert torch.equal(
        entry.memory, runner.remember(features, other, position=0, prompted=True).memory
    )
    raw = replace(features, s16=features.s16.flip(-1))
    assert not torch.allclose(
        entry.memory, runner.remember(raw, record, position=0, prompted=True).memory, rtol=1e-2
    )


def test_an_absent_object_has_no_mask_and_the_no_object_pointer(features):
    model = tiny_model()
    runner = SliceRunner(model)
    present = runner.prompted(features, boxes_to_prompts(boxes(2)))
    make_absent(model)
    record = runner.prompted(features, boxes_to_prompts(boxes(2)))
    assert (record.object_score < 0).all()
    assert (record.mask_logits == NO_OBJECT_LOGIT).all()
    assert (record.candidate_logits == NO_OBJECT_LOGIT).all()
    assert torch.equal(record.visible_logits, present.visible_logits)
    assert torch.equal(record.object_pointer, model.no_object_pointer.expand(2, -1))


def test_memory_of_an_absent_object_carries_the_occlusion_embedding(runner, features):
    record = runner.prompted(features, boxes_to_prompts(boxes(2)))
    score = torch.tensor([[1.0], [-1.0]])
    seen = runner.remember(features, record, position=0, prompted=True).memory
    mixed = runner.remember(
        features, replace(record, object_score=score), position=0, prompted=True
    ).memory
    occlusion = runner.model.occlusion_spatial_embedding_parameter.reshape(64, 1, 1)
    assert torch.equal(mixed[0], seen[0])
    torch.testing.assert_close(mixed[1], seen[1] + occlusion)


def test_fixed_num_frames_overrides_the_real_number(features):
    model = tiny_model()
    bank = [remembered(features, position=p, prompted=p == 0) for p in range(3)]

    def conditioned(options, num_frames):
        return SliceRunner(model, options).condition(
            features.s16, bank, position=3, reverse=False, num_frames=num_frames
        )

    free, fixed = RunnerOptions(), RunnerOptions(fixed_num_frames=4)
    assert torch.equal(conditioned(fixed, 4), conditioned(fixed, 8))
    assert torch.equal(conditioned(fixed, 8), conditioned(free, 4))
    assert not torch.equal(conditioned(free, 4), conditioned(free, 8))


def test_a_filled_box_is_a_mask_prompt(features):
    model = tiny_model()
    filling, plain = SliceRunner(model, RunnerOptions(fill_box=True)), SliceRunner(model)
    prompts = boxes_to_prompts(boxes(2))
    given = replace(prompts, mask_logits=filled_boxes(prompts, 16, SIZE))
    record = filling.prompted(features, prompts)
    assert_records_close(record, plain.prompted(features, given))
    assert not torch.allclose(record.mask_logits, plain.prompted(features, prompts).mask_logits)


def test_a_given_mask_is_not_overwritten_by_the_box(features):
    model = tiny_model()
    prompts = replace(boxes_to_prompts(boxes(2)), mask_logits=torch.randn(2, 1, 16, 16))
    filling, plain = SliceRunner(model, RunnerOptions(fill_box=True)), SliceRunner(model)
    assert_records_close(filling.prompted(features, prompts), plain.prompted(features, prompts))


def test_filling_works_with_a_single_click(features):
    record = tiny_runner(RunnerOptions(fill_box=True)).prompted(features, click())
    assert record.mask_logits.isfinite().all()


@pytest.mark.parametrize("make", [tiny_runner, multimask_runner])
def test_a_mask_prompt_is_itself_the_answer(make):
    runner = make()
    features, mask = runner.encode(pixels(2)), square()
    record = runner.mask_prompted(features, mask)
    assert record.mask_logits.shape == (2, 1, 16, 16)
    assert torch.equal(record.mask_logits[0, 0] > 0, mask[0, 0, ::4, ::4] > 0)
    assert record.iou.tolist() == [[1.0], [1.0]]
    assert record.object_score.tolist() == [[10.0], [10.0]]
    prompt = Prompts(
        points_BN2=torch.zeros(2, 1, 2),
        labels_BN=torch.full((2, 1), -1),
        mask_logits=runner.model.mask_downsample(mask),
    )
    single = runner.decode(features, features.s16, prompt, multimask=False)
    assert torch.equal(record.object_pointer, single.object_pointer)


def test_an_empty_mask_prompt_is_an_absent_object(runner, features):
    mask = square()
    mask[1] = 0
    record = runner.mask_prompted(features, mask.bool())
    assert record.object_score.tolist() == [[10.0], [-10.0]]
    absent = runner.model.no_object_pointer[0]
    assert torch.equal(record.object_pointer[1], absent)
    assert not torch.allclose(record.object_pointer[0], absent)


def test_the_users_mask_enters_the_memory_at_full_size(runner, features):
    mask = square()
    record = runner.mask_prompted(features, mask)

    def memory(record, full=None):
        return runner.remember(
            features, record, position=0, prompted=True, full_mask_B1SS=full
        ).memory

    other = replace(record, mask_logits=-record.mask_logits)
    assert torch.equal(memory(record, mask), memory(other, mask))
    assert not torch.allclose(memory(record, mask), memory(record, mask.flip(-1)), rtol=1e-2)


def test_only_prompted_masks_are_binarised(features):
    model = tiny_model()
    plain, binary = (
        SliceRunner(model),
        SliceRunner(model, RunnerOptions(binarise_prompted_mask=True)),
    )
    record = plain.prompted(features, boxes_to_prompts(boxes(2)))

    def memory(runner, record, *, prompted):
        return runner.remember(features, record, position=0, prompted=prompted).memory

    assert torch.equal(
        memory(plain, record, prompted=False), memory(binary, record, prompted=False)
    )
    assert not torch.equal(
        memory(plain, record, prompted=True), memory(binary, record, prompted=True)
    )
    large = replace(record, mask_logits=record.mask_logits * 1e12)
    torch.testing.assert_close(
        memory(plain, large, prompted=True), memory(binary, large, prompted=True)
    )


def test_gradients_reach_every_parameter_that_a_track_uses():
    runner = tiny_runner()
    first, second = (runner.encode(pixels(2, seed)) for seed in (0, 1))
    prompted = runner.prompted(first, boxes_to_prompts(boxes(2)))
    entry = runner.remember(first, prompted, position=0, prompted=True)
    record = runner.tracked(second, [entry], position=1, reverse=False, num_frames=2)
    memory = runner.remember(second, record, position=1, prompted=False).memory
    loss = record.visible_logits.sum() + record.iou.sum() + record.object_score.sum()
    (loss + memory.sum() + record.object_pointer.sum()).backward()
    without = {
        name
        for name, value in runner.model.named_parameters()
        if value.grad is None or not value.grad.any()
    }
    unused = (
        # Not part of SAM2Base's path; masks as prompts; an absent object; the other three masks.
        "no_memory_positional_encoding",
        "prompt_encoder.mask_embed.",
        "mask_downsample.",
        "no_object_pointer",
        "occlusion_spatial_embedding_parameter",
        *(f"mask_decoder.output_hypernetworks_mlps.{token}." for token in (1, 2, 3)),
    )
    assert without == {
        name for name, _ in runner.model.named_parameters() if name.startswith(unused)
    }


def test_gradients_reach_what_absence_and_masks_use():
    model = tiny_model()
    make_absent(model)
    runner = SliceRunner(model, RunnerOptions(fill_box=True))
    features = runner.encode(pixels(2))
    record = runner.prompted(features, boxes_to_prompts(boxes(2)))
    entry = runner.remember(features, record, position=0, prompted=True)
    (record.visible_logits.sum() + record.object_pointer.sum() + entry.memory.sum()).backward()
    names = dict(model.named_parameters())
    assert names["no_object_pointer"].grad.any()
    assert names["occlusion_spatial_embedding_parameter"].grad.any()
    assert names["prompt_encoder.mask_embed.conv1.weight"].grad.any()
    assert names["vision_encoder.neck.convs.0.weight"].grad.any()
