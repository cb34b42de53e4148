"""The official SAM 1 code's outputs, reproduced from a MedSAM checkpoint in its naming.

Weights, image, prompts and the meaning of each array: tests/golden_medsam/README.md.
"""

import numpy as np
import pytest
import torch

from benchmarks.official_checkpoint import synthetic_weight
from efficient_medsam2.networks.records import Prompts
from efficient_medsam2.teachers.medsam import load_medsam
from tests.teachers import medsam_golden as golden

TOLERANCE = 1e-4
CORNERS = [(300.0, 340.0), (660.0, 600.0)]
CLICKS = [(512.0, 448.0), (600.0, 360.0)]


def prompt(points, labels, mask=None):
    return Prompts(
        points_BN2=torch.tensor([points]), labels_BN=torch.tensor([labels]), mask_logits=mask
    )


def test_weights_and_image_follow_the_stated_rules():
    reference, shapes = golden.arrays(), golden.shapes()
    image = golden.image()
    assert int(image.sum()) == int(reference["check_image_sum"])
    assert np.array_equal(image[0, 0, 0, :8].numpy(), reference["check_image_head"])
    for key in reference:
        if key.startswith("check_weight/"):
            name = key.removeprefix("check_weight/")
            made = synthetic_weight(name, shapes[name], salt=golden.SALT).flatten()[:4].numpy()
            assert np.array_equal(made, reference[key]), name


@pytest.mark.slow
@torch.no_grad()
def test_equals_the_official_code(tmp_path):
    path = tmp_path / "medsam_vit_b.pth"
    torch.save(golden.state_dict(), path)
    teacher = load_medsam(path)
    features = teacher.encode(teacher.network_input(golden.image()))
    first = teacher.answer(features, prompt(CORNERS, [2, 3]))
    answers = {
        "box": first,
        "point": teacher.answer(features, prompt(CLICKS[:1], [1])),
        "refine": teacher.answer(features, prompt(CLICKS, [1, 0], first.mask_logits)),
        "both": teacher.answer(features, prompt(CORNERS + CLICKS, [2, 3, 1, 0])),
    }
    made = {"embedding": features["s16"][0, ::4, ::2, ::2].numpy()}
    for name, record in answers.items():
        step = 1 if name == "box" else 2
        made[f"{name}_low_logits"] = record.mask_logits[0, 0, ::step, ::step].numpy()
        made[f"{name}_iou"] = record.iou[0].numpy()
    reference = {k: v for k, v in golden.arrays().items() if not k.startswith("check_")}
    assert made.keys() == reference.keys()
    for name, wanted in reference.items():
        error = float(np.abs(made[name] - wanted).max() / np.abs(wanted).max())
        assert made[name].shape == wanted.shape
        assert error <= TOLERANCE, f"{name}: {error:.2e}"
