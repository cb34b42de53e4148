import hashlib

import pytest
import torch
from safetensors.torch import save_file

from efficient_medsam2.checkpoints import record_path
from efficient_medsam2.errors import NetworkConfigError, WeightsError
from efficient_medsam2.networks.model_folder import save_model
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.teachers.load import load_teacher
from efficient_medsam2.teachers.official import from_official
from efficient_medsam2.teachers.official_export import official_shapes
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
        "size": "t",
        "image_size": 512,
        "hidden_size": 256,
        "memory_layers": 4,
        "memory_slices": 7,
        "fill_box": False,
        "binarise_prompted_mask": False,
        "dynamic_multimask": False,
        "fixed_num_frames": None,
    }


def refusal(state, checkpoint, kind="medsam2", **sizes):
    """The message that refuses a checkpoint of these tensors."""
    with pytest.raises(WeightsError) as caught:
        load_teacher(kind, checkpoint({"model": state}), **sizes)
    return str(caught.value)


def test_a_missing_and_an_unexpected_key_are_named_as_in_the_file(state, checkpoint):
    changed = dict(state)
    changed["maskmem_tpos"] = changed.pop("maskmem_tpos_enc")
    message = refusal(changed, checkpoint)
    assert "not a SAM 2.1 checkpoint of size t in the official naming" in message
    assert "1 missing keys, the first maskmem_tpos_enc" in message
    assert "1 unexpected keys, the first maskmem_tpos." in message
    assert "models pull medsam2" in message


def test_a_tensor_of_another_shape_is_named(state, checkpoint):
    message = refusal(state | {"no_obj_ptr": torch.zeros(1, 128)}, checkpoint)
    assert "no_obj_ptr has shape (1, 128) instead of (1, 256)" in message


def test_another_size_is_told_from_the_file(checkpoint):
    small = {name: torch.zeros(1).expand(s) for name, s in official_shapes("s").items()}
    assert "--set teacher.kind=sam2.1 --set teacher.size=s" in refusal(small, checkpoint)
    message = refusal(small, checkpoint, kind="sam2.1", size="l")
    assert "it is of size s: --set teacher.size=s" in message


def without(*starts):
    return lambda state: {n: v for n, v in state.items() if not n.startswith(starts)}


def with_prefix(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


def plain_vit(state):
    stem = "image_encoder.trunk.patch_embed.proj.weight"
    return without("image_encoder.trunk.")(state) | {stem: torch.zeros(192, 3, 16, 16)}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (without("no_obj_embed_spatial", "obj_ptr_tpos_proj."), "it is of the first SAM 2"),
        (with_prefix("module."), 'every name begins with "module."'),
        (
            lambda _: {"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)},
            "it is a SAM 1 checkpoint, such as MedSAM: --set teacher.kind=medsam",
        ),
        (plain_vit, "it is an EfficientTAM checkpoint"),
        (lambda state: {"spatial_perceiver.x": state["no_obj_ptr"]}, "it is an EdgeTAM checkpoint"),
        (from_official, "it is in the naming of transformers"),
        (lambda _: {"layer1.weight": torch.zeros(2, 2)}, "it is another network altogether"),
        (
            without("image_encoder.trunk.blocks.11."),
            "it is a Hiera network of another width or depth",
        ),
        (lambda state: state | {"adapter.weight": torch.zeros(1)}, "some of its tensors were"),
    ],
)
def test_the_likely_cause_is_told(state, checkpoint, change, cause):
    message = refusal(change(state), checkpoint)
    assert f"Likely cause: {cause}" in message


def test_weights_of_a_training_framework_are_found_and_refused(state, checkpoint):
    path = checkpoint({"state_dict": state, "epoch": 3})
    with pytest.raises(WeightsError, match='its weights lie under "state_dict"'):
        load_teacher("medsam2", path)


@pytest.mark.slow
def test_safetensors_load_whatever_the_file_is_called(state, tmp_path):
    path = tmp_path / "MedSAM2_latest.pt"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    teacher = load_teacher("sam2.1", path, image_size=128)
    assert teacher.settings["size"] == "t"
    assert teacher.model.image_size == 128
    assert teacher.model.level_shapes == {
        "s4": (32, 32, 32),
        "s8": (64, 16, 16),
        "s16": (256, 8, 8),
    }
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"not readable safetensors.*cut off"):
        load_teacher("sam2.1", path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "it is a web page"),
    ],
)
def test_what_lies_in_a_files_place_is_named(tmp_path, content, cause):
    path = tmp_path / "MedSAM2_latest.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{cause}.*models pull medsam2"):
        load_teacher("medsam2", path)


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("medsam2", {"size": "l"}, "teacher.size=l: kind medsam2 has no such size"),
        ("medsam2", {"image_size": 256}, "teacher.image_size=256: it is 512 for kind medsam2"),
        ("sam2.1", {"image_size": 500}, "a multiple of 64"),
    ],
)
def test_sizes_that_a_kind_does_not_have(state, checkpoint, kind, sizes, message):
    with pytest.raises(NetworkConfigError, match=message):
        load_teacher(kind, checkpoint(state), **sizes)


def test_a_pulled_file_that_has_changed_is_refused(state, checkpoint):
    path = checkpoint(state)
    record_path(path).write_text('{"sha256": "0000"}')
    with pytest.raises(WeightsError, match=r"it has changed since.*models list"):
        load_teacher("medsam2", path)


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"epoch": 5}, torch.zeros(3)])
def test_files_without_a_state_dict_are_refused(checkpoint, content):
    with pytest.raises(WeightsError, match=r"holds no state dict.*Fetch MedSAM2"):
        load_teacher("medsam2", checkpoint(content))


def test_a_truncated_file_is_refused(state, checkpoint):
    path = checkpoint({"model": state})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"download or copy was cut off.*Fetch MedSAM2"):
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
