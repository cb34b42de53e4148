"""How a student's weights lie in memory while it is trained, and that files know nothing of it."""

import torch

from efficient_medsam2.networks.model_folder import load_runner, save_model
from stages.training.student import StudentConfig, new_student

STUDENT = StudentConfig(backbone="mobilenetv3_small_100")


def convolutions(runner):
    weights = {n: p for n, p in runner.model.named_parameters() if p.ndim == 4 and p.shape[1] > 1}
    return {n: p for n, p in weights.items() if p.shape[2] > 1 and n.startswith("vision_encoder.")}


def test_on_a_cpu_the_encoder_lies_channels_last_and_computes_the_same(reader, tmp_path):
    runner = new_student(STUDENT, reader.path, seed=0, device="cpu")
    assert convolutions(runner)
    for name, weight in convolutions(runner).items():
        assert weight.is_contiguous(memory_format=torch.channels_last), name
    save_model(runner, tmp_path, origin={})
    stored = load_runner(tmp_path)
    for name, weight in convolutions(stored).items():
        assert weight.is_contiguous(), name
    mine, plain = runner.model.state_dict(), stored.model.state_dict()
    assert all(mine[name].equal(plain[name]) for name in mine)
    pixels = torch.rand(2, 3, runner.image_size, runner.image_size)
    with torch.no_grad():
        features, expected = (each.encode(pixels) for each in (eval_mode(runner), stored))
    for level in ("s4", "s8", "s16"):
        difference = (getattr(features, level) - getattr(expected, level)).abs().max()
        assert difference <= 1e-4 * getattr(expected, level).abs().max()


def eval_mode(runner):
    runner.model.eval()
    return runner
