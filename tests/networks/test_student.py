import pytest
import timm
import torch

from efficient_medsam2.errors import NetworkConfigError, WeightsError
from efficient_medsam2.networks.hiera import SmallNetConfig, new_model, small_config
from efficient_medsam2.networks.model_folder import load_runner, save_model
from efficient_medsam2.networks.records import boxes_to_prompts
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import FITTING_BACKBONES, StudentConfig, build_student
from tests.networks.tiny import tiny_model

SIZE = 128
TEACHER = small_config(
    SmallNetConfig(
        image_size=SIZE,
        hidden_size=64,
        embed_dims=(8, 16, 24, 32),
        blocks=(1, 1, 1, 1),
        memory_layers=2,
        memory_slices=5,
    )
)
TIME_CODES = "memory_temporal_positional_encoding"


@pytest.fixture(scope="module")
def teacher_state():
    return tiny_model(TEACHER).state_dict()


def build(teacher_state, *, seed=0, **settings):
    return build_student(StudentConfig(**settings), TEACHER, teacher_state, seed=seed)


@pytest.fixture(scope="module")
def student(teacher_state):
    return build(teacher_state)


def answer(model):
    runner = SliceRunner(model.eval())
    with torch.no_grad():
        features = runner.encode(torch.zeros(2, 3, SIZE, SIZE))
        record = runner.prompted(features, boxes_to_prompts(torch.tensor([[9.0, 9, 90, 99]] * 2)))
        entry = runner.remember(features, record, position=0, prompted=True)
        tracked = runner.tracked(features, [entry], position=1, reverse=False, num_frames=2)
    assert [level.shape for level in (features.s4, features.s8, features.s16)] == [
        (2, 8, 32, 32),
        (2, 16, 16, 16),
        (2, 64, 8, 8),
    ]
    return tracked.mask_logits


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FITTING_BACKBONES)
def test_every_listed_backbone_gives_a_working_student(teacher_state, backbone):
    logits = answer(build(teacher_state, backbone=backbone))
    assert logits.shape == (2, 1, 32, 32)
    assert logits.isfinite().all()


def test_backbones_with_a_finer_first_level_work_too(teacher_state):
    assert answer(build(teacher_state, backbone="resnet10t")).shape == (2, 1, 32, 32)


def test_every_other_module_is_the_teachers_bit_for_bit(student, teacher_state):
    own = student.state_dict()
    shared = {name for name in own if not name.startswith("vision_encoder.")}
    assert len(shared) > 100
    differing = {name for name in shared if not torch.equal(own[name], teacher_state[name])}
    assert differing == {TIME_CODES}
    left_out = {name for name in teacher_state if name not in own}
    assert any(name.startswith("memory_attention.layers.1.") for name in left_out)
    assert all(
        name.startswith(("vision_encoder.", "memory_attention.layers.1.")) for name in left_out
    )


def test_time_codes_are_those_of_the_nearest_slices_and_the_prompted_one(student, teacher_state):
    codes = teacher_state[TIME_CODES]
    assert torch.equal(student.state_dict()[TIME_CODES], codes[[0, 1, 4]])
    assert student.num_maskmem == 3


def test_the_backbone_keeps_timms_own_initialisation(teacher_state):
    model = build(teacher_state, seed=3)
    stem = model.vision_encoder.backbone.timm_model.conv_stem.weight.std().item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = timm.create_model("mobilenetv3_small_100", features_only=True).conv_stem.weight
    # transformers would have drawn from N(0, 0.02).
    assert stem == pytest.approx(reference.std().item(), rel=0.2)
    assert stem > 0.05
    neck = model.vision_encoder.neck.convs
    assert all(not layer.bias.any() for layer in neck)


def test_a_seed_decides_the_student_and_leaves_the_global_state(student, teacher_state):
    before = torch.get_rng_state()
    again = build(teacher_state).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    first = student.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = build(teacher_state, seed=1).state_dict()
    names = ("backbone.timm_model.conv_stem.weight", "neck.convs.0.weight")
    for name in names:
        assert not torch.equal(first[f"vision_encoder.{name}"], other[f"vision_encoder.{name}"])


def test_top_down_levels_change_the_neck(teacher_state, student):
    flat = build(teacher_state, top_down_levels=())
    pixels = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        one, other = (SliceRunner(net.eval()).encode(pixels) for net in (student, flat))
    assert not torch.allclose(one.s4, other.s4)


def test_a_student_survives_its_model_folder(student, tmp_path):
    save_model(SliceRunner(student.eval()), tmp_path, origin={})
    assert torch.equal(answer(load_runner(tmp_path).model), answer(student))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("no_such_net", "timm cannot build it"),
        ("mobilenetv3_smal", r"timm has: .*mobilenetv3"),
        ("vit_tiny_patch16_224", r"gives strides \[16, 16, 16\]; a student needs 4, 8 and 16"),
        ("swin_tiny_patch4_window7_224", "does not run at 128 px"),
    ],
)
def test_a_backbone_that_does_not_fit_names_those_that_do(teacher_state, backbone, message):
    with pytest.raises(NetworkConfigError, match=rf"(?s){message}.*Backbones that work") as caught:
        build(teacher_state, backbone=backbone)
    assert all(name in str(caught.value) for name in FITTING_BACKBONES)
    assert f"student.backbone={backbone!r}" in str(caught.value)


def test_channels_last_backbones_are_refused():
    """Swin's levels are (B, H, W, C); at its own image size only their shapes tell."""
    teacher = small_config(SmallNetConfig(image_size=224, hidden_size=64))
    config = StudentConfig(backbone="swin_tiny_patch4_window7_224")
    with pytest.raises(NetworkConfigError, match=r"gives grids \[\(56, 96\).*needs \[\(56, 56\)"):
        build_student(config, teacher, new_model(teacher).state_dict(), seed=0)


@pytest.mark.parametrize(("key", "most"), [("memory_layers", 2), ("memory_slices", 5)])
def test_a_student_has_no_more_memory_than_its_teacher(teacher_state, key, most):
    message = rf"student\.{key}=9 but the teacher has {most}; use --set student\.{key}={most}"
    with pytest.raises(NetworkConfigError, match=message):
        build(teacher_state, **{key: 9})


def test_a_teacher_of_another_width_is_refused(teacher_state):
    wider = new_model(small_config(SmallNetConfig(image_size=SIZE, hidden_size=128)))
    with pytest.raises(NetworkConfigError, match="teacher and student differ in"):
        build_student(StudentConfig(memory_layers=1), TEACHER, wider.state_dict(), seed=0)


def test_weights_that_cannot_be_fetched_say_what_to_do(teacher_state, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"(?s)weights of mobilenetv3_small_100.*Go online once"):
        build(teacher_state, pretrained=True)
