import json

import pytest
import torch
from transformers import Sam2VideoModel

from efficient_medsam2.errors import WeightsError
from efficient_medsam2.networks.model_folder import (
    MODEL_FILES,
    load_runner,
    load_weights,
    read_model_config,
    save_model,
)
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.records import boxes_to_prompts
from tests.networks.tiny import boxes, pixels, tiny_runner

OPTIONS = RunnerOptions(fill_box=True, binarise_prompted_mask=True, fixed_num_frames=8)


@pytest.fixture(scope="module")
def saved():
    return tiny_runner(OPTIONS)


@pytest.fixture
def folder(saved, tmp_path):
    save_model(saved, tmp_path / "runs" / "model", origin={"stage": "teacher"})
    return tmp_path / "runs" / "model"


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_round_trip_is_bit_exact(saved, folder):
    before = torch.get_rng_state()
    loaded = load_runner(folder)
    assert torch.equal(before, torch.get_rng_state())
    assert same_weights(loaded.model, saved.model)
    assert loaded.options == OPTIONS
    assert not loaded.model.training
    with torch.no_grad():
        answers = [
            runner.prompted(runner.encode(pixels(2)), boxes_to_prompts(boxes(2))).mask_logits
            for runner in (saved, loaded)
        ]
    assert torch.equal(*answers)


def test_transformers_reads_the_folder_without_this_package(saved, folder):
    assert same_weights(Sam2VideoModel.from_pretrained(folder), saved.model)


def test_the_folder_holds_three_files_and_no_leftovers(saved, folder):
    assert save_model(saved, folder, origin={}) == MODEL_FILES
    assert sorted(path.name for path in folder.iterdir()) == sorted(MODEL_FILES)


def test_options_and_origin_are_kept(folder):
    config, options, origin = read_model_config(folder)
    assert (config.image_size, options, origin) == (64, OPTIONS, {"stage": "teacher"})


def test_half_precision_is_a_way_to_store(saved, tmp_path):
    save_model(saved, tmp_path, origin={}, dtype=torch.float16)
    weights = load_weights(tmp_path)
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {
        torch.float32
    }
    name = "no_memory_embedding"
    assert torch.equal(weights[name], saved.model.no_memory_embedding.half().float())
    load_runner(tmp_path)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_missing_file_is_named_with_its_mend(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=rf"{name} is missing\. Rerun the stage .*status -c"):
        load_runner(folder)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_truncated_file_is_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"(damaged|cannot be read).*Rerun the stage"):
        load_runner(folder)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"options": {"fill_boxes": true}, "origin": {}}', '{"options": 1, "origin": {}}'],
)
def test_switches_of_another_kind_are_refused(folder, content):
    (folder / "runner.json").write_text(content)
    with pytest.raises(WeightsError, match="configuration is damaged"):
        load_runner(folder)


def test_weights_of_another_network_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["memory_attention_num_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="weights and configuration disagree"):
        load_runner(folder)


def test_weights_alone_are_refused_by_name(tmp_path):
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        load_weights(tmp_path)
