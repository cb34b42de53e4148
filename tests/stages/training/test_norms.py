import copy

import pytest
import torch

from efficient_medsam2.networks.model_folder import load_weights, read_model_config
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig, build_student
from stages.training.norms import freeze_norms, recalibrate_norms
from stages.training.validation import recalibrate_on_cache


@pytest.fixture
def student(cache_path):
    config, options, _ = read_model_config(cache_path / "teacher")
    model = build_student(StudentConfig(), config, load_weights(cache_path / "teacher"), seed=0)
    return SliceRunner(model.eval(), options)


def norms_of(module):
    return [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]


def test_statistics_are_plain_means_over_batches(student):
    batches = [torch.randn(4, 3, 64, 64, generator=torch.manual_seed(n)) for n in range(3)]
    weights = copy.deepcopy(dict(student.model.named_parameters()))
    recalibrate_norms(student, batches)
    first = norms_of(student.model.vision_encoder)[0]
    inputs = []
    first.register_forward_hook(lambda module, args, out: inputs.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            student.encode(batch)
    means = torch.stack([values.mean((0, 2, 3)) for values in inputs]).mean(0)
    assert torch.allclose(first.running_mean, means, atol=1e-5)
    assert not any(norm.training for norm in norms_of(student.model))
    assert all(norm.momentum == 0.1 for norm in norms_of(student.model))
    for name, parameter in student.model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_on_the_cache_it_is_repeatable_and_forgets_what_was(reader, student):
    recalibrate_on_cache(reader, student)
    first = norms_of(student.model.vision_encoder)[3]
    once = first.running_var.clone()
    first.running_var.fill_(7.0)
    recalibrate_on_cache(reader, student)
    assert torch.equal(first.running_var, once)


def test_frozen_norms_do_not_move(student):
    student.model.train()
    freeze_norms(student.model)
    first = norms_of(student.model.vision_encoder)[0]
    before = first.running_mean.clone()
    student.encode(torch.randn(2, 3, 64, 64))
    assert torch.equal(first.running_mean, before)
