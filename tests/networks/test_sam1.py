import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from efficient_medsam2.errors import NetworkConfigError, WeightsError
from efficient_medsam2.images import to_network_input
from efficient_medsam2.networks.cost import measure_cost
from efficient_medsam2.networks.model_folder import (
    load_network,
    load_runner,
    read_kind,
    read_sam1_config,
    save_model,
)
from efficient_medsam2.networks.records import Prompts, boxes_to_prompts
from efficient_medsam2.networks.sam1 import PRESENT_LOGIT, network_input
from efficient_medsam2.networks.timing import milliseconds_per_slice
from efficient_medsam2.predictor import VolumePredictor
from tests.networks.tiny import tiny_runner
from tests.networks.tiny_sam1 import SIZE, WIDTH, random_image, tiny_sam1_runner


@pytest.fixture(scope="module")
def runner():
    return tiny_sam1_runner()


@pytest.fixture(scope="module")
def features(runner):
    with torch.no_grad():
        return runner.encode(runner.network_input(random_image(4)))


def prompts(points, labels, mask=None):
    return Prompts(
        points_BN2=torch.tensor(points, dtype=torch.float32).reshape(len(labels), -1, 2),
        labels_BN=torch.tensor(labels, dtype=torch.int64),
        mask_logits=mask,
    )


def test_each_image_is_stretched_to_0_and_1_over_all_of_its_channels(runner):
    image = torch.stack([torch.full((3, 8, 8), 40), torch.full((3, 8, 8), 7)]).to(torch.uint8)
    image[0, 2, 0, 0], image[0, 0, 1, 1] = 140, 65
    made = runner.network_input(image)
    assert made[0, 2, 0, 0] == 1
    assert made[0, 0, 1, 1] == pytest.approx(0.25)
    assert made[0].min() == 0
    assert (made[1] == 0).all()  # a flat image
    assert runner.network_input(image[:, :1]).shape == (2, 3, 8, 8)


def test_refuses_images_that_are_not_uint8(runner):
    with pytest.raises(ValueError, match="uint8"):
        runner.network_input(torch.zeros(1, 3, 8, 8))


def test_each_network_gets_its_own_input(runner):
    image = random_image(2)
    assert torch.equal(network_input(runner, image), runner.network_input(image))
    assert torch.equal(network_input(tiny_runner(), image), to_network_input(image))


def test_features_have_no_channels_where_sam1_has_no_level(features):
    assert features.s16.shape == (4, WIDTH, 4, 4)
    assert features.s8.shape == (4, 0, 8, 8)
    assert features.s4.shape == (4, 0, 16, 16)


@torch.no_grad()
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(runner, features):
    """A box, a point, two points and a mask alone, filled up to one length and shuffled."""
    mask = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    alone = [
        prompts([[8, 12, 40, 50]], [[2, 3]], mask[:1]),
        prompts([[20, 30]], [[1]], mask[1:2]),
        prompts([[20, 30, 5, 60]], [[1, 0]], mask[2:3]),
        prompts([], [[]], mask[3:]),
    ]
    together = prompts(
        [[8, 12, 40, 50, 0, 0], [0, 0, 20, 30, 0, 0], [20, 30, 0, 0, 5, 60], [0] * 6],
        [[2, 3, -10], [-10, 1, -1], [1, -10, 0], [-10, -10, -10]],
        mask,
    )
    record = runner.prompted(features, together)
    assert record.mask_logits.shape == (4, 1, 16, 16)
    for row, one in enumerate(alone):
        single = runner.prompted(features.take(torch.tensor([row])), one)
        assert torch.allclose(record.mask_logits[row], single.mask_logits[0], atol=2e-4)
        assert torch.allclose(record.iou[row], single.iou[0], atol=2e-4)
    assert not torch.allclose(record.mask_logits[0], record.mask_logits[1], atol=1e-2)


@torch.no_grad()
def test_equals_transformers_own_path(runner, features):
    """A box through ``input_boxes`` and a point through ``input_points``."""
    image = runner.network_input(random_image(4))[:1]
    box, point = torch.tensor([[[8.0, 12, 40, 50]]]), torch.tensor([[[[20.0, 30]]]])
    one = features.take(torch.tensor([0]))
    for own, theirs in (
        (boxes_to_prompts(box[0]), {"input_boxes": box}),
        (
            prompts([[20, 30]], [[1]]),
            {"input_points": point, "input_labels": torch.ones(1, 1, 1, dtype=torch.int64)},
        ),
    ):
        reference = runner.model(pixel_values=image, multimask_output=False, **theirs)
        record = runner.prompted(one, own)
        assert torch.allclose(record.mask_logits, reference.pred_masks[:, 0], atol=2e-4)
        assert torch.allclose(record.iou, reference.iou_scores[:, 0], atol=2e-4)


@torch.no_grad()
def test_the_record_says_what_sam1_does_not_know(runner, features):
    record = runner.prompted(features, boxes_to_prompts(torch.tensor([[8.0, 12, 40, 50]] * 4)))
    assert (record.object_score == PRESENT_LOGIT).all()
    assert record.object_pointer.shape == (4, WIDTH)
    assert not record.object_pointer.any()
    assert torch.equal(record.conditioned_s16, features.s16)
    assert torch.equal(record.visible_logits, record.mask_logits)


def test_a_model_folder_gives_the_same_network_back(runner, features, tmp_path):
    save_model(runner, tmp_path, origin={"name": "medsam"})
    assert read_kind(tmp_path) == "medsam"
    assert json.loads((tmp_path / "runner.json").read_text())["origin"] == {"name": "medsam"}
    assert read_sam1_config(tmp_path).to_dict() == runner.config.to_dict()
    loaded = load_network(tmp_path)
    box = boxes_to_prompts(torch.tensor([[8.0, 12, 40, 50]] * 4))
    with torch.no_grad():
        own = loaded.prompted(loaded.encode(loaded.network_input(random_image(4))), box)
        assert torch.equal(own.mask_logits, runner.prompted(features, box).mask_logits)


def test_a_folder_of_sam1_is_no_runner_that_follows_objects(runner, tmp_path):
    save_model(runner, tmp_path, origin={})
    with pytest.raises(WeightsError, match=r"no memory.*--set teacher.kind=medsam2"):
        load_runner(tmp_path)


def test_a_folder_of_sam2_is_no_sam1(tmp_path):
    save_model(tiny_runner(), tmp_path, origin={})
    assert read_kind(tmp_path) == "sam2"
    assert type(load_network(tmp_path)) is type(tiny_runner())
    with pytest.raises(WeightsError, match="holds no SAM 1 network"):
        read_sam1_config(tmp_path)


def test_damaged_folders_are_named(runner, tmp_path):
    save_model(runner, tmp_path, origin={})
    state = load_file(tmp_path / "model.safetensors")
    state.pop("mask_decoder.iou_token.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="disagree"):
        load_network(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="configuration is damaged"):
        load_network(tmp_path)
    (tmp_path / "runner.json").write_text("{")
    with pytest.raises(WeightsError, match="configuration is damaged"):
        read_kind(tmp_path)


def test_cost_and_time_leave_the_memory_out(runner):
    cost = measure_cost(runner)
    assert cost.params == sum(value.numel() for value in runner.model.parameters())
    assert cost.prompted_gflop > 0
    assert cost.tracked_gflop is None
    assert milliseconds_per_slice(runner, rounds=1) > 0


def test_the_predictor_segments_and_refuses_to_follow(runner):
    volume = np.random.default_rng(0).integers(0, 256, (3, 50, 40), dtype=np.uint8)
    predictor = VolumePredictor(runner, volume)
    masks = predictor.segment_boxes(1, [[5, 6, 30, 44], [1, 1, 9, 9]])
    assert masks.shape == (2, 50, 40)
    assert predictor.features(1).s16.shape[-1] == SIZE // 16
    with pytest.raises(NetworkConfigError, match="no memory"):
        predictor.follow_boxes(1, [[5, 6, 30, 44]], slices=range(3))
