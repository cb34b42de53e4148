"""A student's levels without its widest maps are those of its modules in a row."""

import pytest
import torch
from torch import Tensor

from efficient_medsam2.networks.hiera import SmallNetConfig, new_model, small_config
from efficient_medsam2.networks.records import SliceFeatures
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig, build_student
from efficient_medsam2.networks.student_levels import has_student_levels

_TEACHER = SmallNetConfig(
    image_size=64,
    hidden_size=64,
    embed_dims=(8, 16, 24, 32),
    blocks=(1, 1, 1, 1),
    memory_layers=1,
    memory_slices=3,
)


def _student(top_down: tuple[int, ...]) -> SliceRunner:
    config = small_config(_TEACHER)
    teacher = new_model(config)
    student = build_student(
        StudentConfig(top_down_levels=top_down), config, teacher.state_dict(), seed=0
    )
    generator = torch.Generator().manual_seed(1)
    for convolution in student.vision_encoder.neck.convs:
        assert convolution.bias is not None
        convolution.bias.data.normal_(generator=generator)
    return SliceRunner(student.eval())


def _in_a_row(runner: SliceRunner, pixels: Tensor) -> SliceFeatures:
    levels = runner.model.vision_encoder(pixels).fpn_hidden_states
    decoder = runner.model.mask_decoder
    return SliceFeatures(
        s4=decoder.conv_s0(levels[0]), s8=decoder.conv_s1(levels[1]), s16=levels[2]
    )


def _gradients(runner: SliceRunner, features: SliceFeatures) -> dict[str, Tensor]:
    levels = (features.s4, features.s8, features.s16)
    loss = torch.stack([level.square().mean() for level in levels]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    found = {
        name: value.grad.clone()
        for name, value in runner.model.named_parameters()
        if value.grad is not None
    }
    runner.model.zero_grad()
    return found


@pytest.mark.parametrize("top_down", [(0, 1, 2), (1, 2), (0, 1), ()])
def test_levels_and_gradients_are_those_of_the_modules_in_a_row(top_down: tuple[int, ...]) -> None:
    runner = _student(top_down)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert has_student_levels(runner.model)
    short, long = runner.encode(pixels), _in_a_row(runner, pixels)
    for level in ("s4", "s8", "s16"):
        torch.testing.assert_close(
            getattr(short, level), getattr(long, level), rtol=1e-4, atol=1e-5
        )
    ours, theirs = _gradients(runner, short), _gradients(runner, long)
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        error = (ours[name] - wanted).norm() / wanted.norm().clamp(min=1e-12)
        assert error < 1e-3, name


def test_a_teacher_keeps_its_own_encoder() -> None:
    assert not has_student_levels(new_model(small_config(_TEACHER)))
