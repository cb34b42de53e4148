import hashlib

import pytest
import torch

from efficient_medsam2.errors import WeightsError
from efficient_medsam2.networks.model_folder import save_model
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.teachers.load import load_teacher
from tests.networks import golden
from tests.networks.tiny import tiny_runner


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def state():
    """The official names and shapes; each tensor one repeated number, so files stay small."""
    return {
        name: torch.full((1,), index / 471).expand(shape)
        for index, (name, shape) in enumerate(golden.shapes().items())
    }


@pytest.fixture
def checkpoint(tmp_path):
    def write(content):
        path = tmp_path / "MedSAM2_latest.pt"
        torch.save(content, path)
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda state: {"model": state}, lambda state: state])
def test_official_files_load_bare_or_wrapped(state, checkpoint, wrap):
    path = checkpoint(wrap(state))
    random_state = torch.get_rng_state()
    teacher = load_teacher("medsam2", path)
    assert torch.equal(random_state, torch.get_rng_state())
    name = "image_encoder.trunk.blocks.3.attn.qkv.weight"
    loaded = teacher.runner.model.vision_encoder.backbone.blocks[3].attn.qkv.weight
    assert torch.equal(loaded, state[name])
    assert not teacher.runner.model.training
    assert teacher.runner.options == RunnerOptions()
    assert teacher.name == "medsam2"
    assert teacher.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert teacher.settings == {
        "image_size": 512,
        "hidden_size": 256,
        "memory_layers": 4,
        "memory_slices": 7,
        "fill_box": False,
        "binarise_prompted_mask": False,
        "dynamic_multimask": False,
        "fixed_num_frames": None,
    }


@pytest.mark.slow
def test_a_missing_and_an_unexpected_key_are_named(state, checkpoint):
    changed = dict(state)
    changed["maskmem_tpos"] = changed.pop("maskmem_tpos_enc")
    message = (
        r"MedSAM2_latest\.pt: not a SAM 2\.1 Hiera-Tiny.*first missing key "
        r"memory_temporal_positional_encoding, first unexpected key maskmem_tpos .*Fetch MedSAM2"
    )
    with pytest.raises(WeightsError, match=message):
        load_teacher("medsam2", checkpoint({"model": changed}))


@pytest.mark.slow
def test_a_network_of_another_size_is_refused(state, checkpoint):
    changed = state | {"no_obj_ptr": torch.zeros(1, 128)}
    message = r"no_object_pointer has shape \(1, 128\) instead of \(1, 256\).*Fetch MedSAM2"
    with pytest.raises(WeightsError, match=message):
        load_teacher("medsam2", checkpoint({"model": changed}))


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"epoch": 5}, torch.zeros(3)])
def test_files_without_a_state_dict_are_refused(checkpoint, content):
    with pytest.raises(WeightsError, match=r"holds no state dict.*Fetch MedSAM2"):
        load_teacher("medsam2", checkpoint(content))


def test_a_truncated_file_is_refused(state, checkpoint):
    path = checkpoint({"model": state})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"(?s)not a readable torch checkpoint.*Fetch MedSAM2"):
        load_teacher("medsam2", path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "MedSAM2_latest.pt"
    path.write_text("<html>404</html>")
    with pytest.raises(WeightsError, match=r"(?s)not a readable torch checkpoint.*Fetch MedSAM2"):
        load_teacher("medsam2", path)


def test_a_checkpoint_that_would_run_code_is_refused(checkpoint):
    with pytest.raises(WeightsError, match="not a readable torch checkpoint"):
        load_teacher("medsam2", checkpoint({"model": pytest.approx}))


def test_a_model_folder_is_a_teacher(tmp_path):
    runner = tiny_runner(RunnerOptions(fill_box=True, fixed_num_frames=8))
    save_model(runner, tmp_path, origin={})
    teacher = load_teacher("scratch", tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert teacher.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert teacher.settings == {
        "image_size": 64,
        "hidden_size": 64,
        "memory_layers": 2,
        "memory_slices": 4,
        "fill_box": True,
        "binarise_prompted_mask": False,
        "dynamic_multimask": False,
        "fixed_num_frames": 8,
    }


def test_a_missing_checkpoint_says_how_to_get_one(tmp_path):
    with pytest.raises(WeightsError, match=r"does not exist.*MedSAM2_latest\.pt"):
        load_teacher("medsam2", tmp_path / "none.pt")
