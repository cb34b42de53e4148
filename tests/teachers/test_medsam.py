import pytest
import torch
from safetensors.torch import save_file
from transformers import SamModel

from efficient_medsam2.errors import WeightsError
from efficient_medsam2.networks.model_folder import load_network
from efficient_medsam2.networks.records import boxes_to_prompts
from efficient_medsam2.networks.sam1 import Sam1Runner
from efficient_medsam2.teachers.medsam import MedSamTeacher, load_medsam, medsam_config
from efficient_medsam2.teachers.medsam_names import from_segment_anything
from tests.networks.tiny_sam1 import random_image, tiny_sam1, tiny_sam1_config
from tests.teachers.medsam_golden import shapes
from tests.teachers.medsam_official import official_state


@pytest.fixture(scope="module")
def model():
    return tiny_sam1()


def loaded(path):
    return load_medsam(path, config=tiny_sam1_config())


def test_every_official_name_and_shape_of_vit_b_has_its_place():
    with torch.device("meta"):
        wanted = SamModel(medsam_config()).state_dict()
    given = from_segment_anything({n: torch.empty(s, device="meta") for n, s in shapes().items()})
    assert {name: value.shape for name, value in given.items()} == {
        name: value.shape for name, value in wanted.items()
    }


@pytest.mark.parametrize("form", ["bare", "model", "safetensors"])
def test_reads_all_forms_of_an_official_file(model, tmp_path, form):
    state = official_state(model)
    path = tmp_path / f"file.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    else:
        torch.save({"model": state} if form == "model" else state, path)
    teacher = loaded(path)
    assert not teacher.module.training
    for name, value in teacher.module.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_pixel_statistics_of_the_official_class_are_left_out(model, tmp_path):
    torch.save(official_state(model) | {"pixel_mean": torch.zeros(3, 1, 1)}, tmp_path / "a.pth")
    assert loaded(tmp_path / "a.pth").image_size == 64


def test_names_what_is_missing_and_what_does_not_belong(model, tmp_path):
    state = official_state(model)
    state["memory_encoder.x"] = state.pop("mask_decoder.iou_token.weight")
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as caught:
        loaded(tmp_path / "a.pth")
    for part in ("mask_decoder.iou_token.weight", "memory_encoder.x", "--set teacher.checkpoint"):
        assert part in str(caught.value)


def test_names_a_wrong_shape(model, tmp_path):
    state = official_state(model)
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 3)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"iou_token.weight has shape \(1, 3\)"):
        loaded(tmp_path / "a.pth")


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match=r"Fetch medsam_vit_b\.pth"):
        loaded(tmp_path / "a.pth")


@torch.no_grad()
def test_answers_the_teachers_protocol(model, tmp_path):
    teacher = MedSamTeacher(Sam1Runner(model))
    assert teacher.tracker is None
    assert teacher.level_shapes == {"s16": (64, 4, 4)}
    assert teacher.logits_side == 16
    assert teacher.settings["encoder_layers"] == 2
    features = teacher.encode(teacher.network_input(random_image(2)))
    assert {name: tuple(value.shape[1:]) for name, value in features.items()} == (
        teacher.level_shapes
    )
    record = teacher.answer(features, boxes_to_prompts(torch.tensor([[8.0, 12, 40, 50]] * 2)))
    assert record.mask_logits.shape == (2, 1, 16, 16)
    teacher.save(tmp_path, origin={"name": "medsam"})
    again = load_network(tmp_path)
    assert torch.equal(again.encode(again.network_input(random_image(2))).s16, features["s16"])
