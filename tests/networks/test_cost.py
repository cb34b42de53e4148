import torch

from efficient_medsam2.networks.cost import measure_cost
from efficient_medsam2.networks.hiera import SmallNetConfig, new_model, small_config
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig, build_student
from tests.networks.tiny import tiny_runner


def test_one_more_convolution_costs_what_it_does_by_hand():
    runner = tiny_runner()
    before = measure_cost(runner)
    encoder = runner.model.memory_encoder
    extra = torch.nn.Conv2d(64, 64, kernel_size=1)
    encoder.feature_projection = torch.nn.Sequential(encoder.feature_projection, extra)
    after = measure_cost(runner)
    assert after.params - before.params == 64 * 64 + 64
    # 4 x 4 positions, 64 x 64 multiply-adds each; the memory encoder runs once a slice.
    by_hand = 2 * 64 * 64 * 4 * 4 / 1e9
    assert round((after.prompted_gflop - before.prompted_gflop) / by_hand, 6) == 1
    assert round((after.tracked_gflop - before.tracked_gflop) / by_hand, 6) == 1


def test_parameters_are_all_counted():
    runner = tiny_runner()
    assert measure_cost(runner).params == sum(p.numel() for p in runner.model.parameters())


def test_measuring_leaves_no_gradients():
    runner = tiny_runner()
    measure_cost(runner)
    assert all(value.grad is None for value in runner.model.parameters())
    assert all(value.requires_grad for value in runner.model.parameters())


def test_measuring_builds_no_graph():
    runner = tiny_runner()
    made = []
    hook = runner.model.mask_decoder.register_forward_hook(lambda *call: made.append(call[2][0]))
    measure_cost(runner)
    hook.remove()
    assert made
    assert not any(logits.requires_grad for logits in made)


def test_a_student_costs_a_third_of_the_small_teacher_or_less():
    config = small_config(SmallNetConfig())
    teacher = new_model(config).eval()
    student = build_student(StudentConfig(), config, teacher.state_dict(), seed=0).eval()
    large, small = measure_cost(SliceRunner(teacher)), measure_cost(SliceRunner(student))
    assert large.tracked_gflop > large.prompted_gflop
    assert large.prompted_gflop >= 3 * small.prompted_gflop
    assert large.tracked_gflop >= 3 * small.tracked_gflop
    assert large.params > small.params
