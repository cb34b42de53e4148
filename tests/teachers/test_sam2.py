import torch

from efficient_medsam2.images.preprocess import to_network_input
from efficient_medsam2.networks.model_folder import load_runner
from efficient_medsam2.networks.records import boxes_to_prompts
from efficient_medsam2.teachers.sam2 import Sam2Teacher
from tests.networks.tiny import tiny_runner


@torch.no_grad()
def test_it_answers_as_its_runner_from_features_by_name():
    runner = tiny_runner()
    teacher = Sam2Teacher(runner)
    side = teacher.image_size
    image = torch.arange(side * side).reshape(1, 1, side, side).remainder(251).to(torch.uint8)
    pixels = teacher.network_input(image)
    assert torch.equal(pixels, to_network_input(image))
    levels = teacher.encode(pixels)
    assert {name: tuple(v.shape[1:]) for name, v in levels.items()} == teacher.level_shapes
    prompts = boxes_to_prompts(torch.tensor([[5.0, 6.0, 40.0, 30.0]]))
    ours = teacher.answer(levels, prompts)
    theirs = runner.prompted(runner.encode(pixels), prompts)
    assert torch.equal(ours.mask_logits, theirs.mask_logits)
    assert ours.mask_logits.shape[-1] == teacher.logits_side
    assert teacher.tracker is runner
    assert teacher.module is runner.model


def test_it_saves_a_model_folder(tmp_path):
    teacher = Sam2Teacher(tiny_runner())
    teacher.save(tmp_path, origin={"name": "scratch"})
    there, back = teacher.module.state_dict(), load_runner(tmp_path).model.state_dict()
    assert there.keys() == back.keys()
    assert all(torch.equal(value, back[name]) for name, value in there.items())
