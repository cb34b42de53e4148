import pytest
import torch

from efficient_medsam2.errors import NetworkConfigError
from efficient_medsam2.networks.records import Prompts, SliceFeatures, boxes_to_prompts
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1 import Sam1Runner
from efficient_medsam2.networks.sam1_student import build_sam1_student, heads_of_sam1
from efficient_medsam2.networks.student import StudentConfig
from tests.networks.tiny_sam1 import WIDTH, random_image, tiny_sam1


@pytest.fixture(scope="module")
def teachers():
    return [tiny_sam1(seed) for seed in range(4)]


def student_of(teacher, **settings):
    config = StudentConfig(**settings)
    return build_sam1_student(config, teacher.config, teacher.state_dict(), seed=1)


def test_takes_over_every_weight_of_the_heads(teachers):
    teacher, student = teachers[0], student_of(teachers[0]).state_dict()
    heads = heads_of_sam1(teacher.state_dict())
    own = {name for name in teacher.state_dict() if not name.startswith("vision_encoder.")}
    # Four point embeddings become one matrix; the object-score token is made from others.
    assert len(heads) == len(own) - 3 + 1
    for name, value in heads.items():
        assert torch.equal(student[name], value), name
    assert not student["mask_decoder.conv_s0.weight"].any()
    assert not student["mask_decoder.conv_s1.weight"].any()
    assert not student["no_memory_embedding"].any()
    assert student["memory_encoder.projection.weight"].any()


def test_iou_head_starts_as_the_tangent_of_sam1s(teachers):
    """sigmoid(4 x - 2) - x is 0 with slope 0 at x = 0.5."""
    state = teachers[0].state_dict()
    head = "mask_decoder.iou_prediction_head.proj_out."
    own = heads_of_sam1(state)
    hidden = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    linear = state[f"{head}weight"] @ hidden + state[f"{head}bias"]
    scaled = own[f"{head}weight"] @ hidden + own[f"{head}bias"]
    assert torch.allclose(scaled, 4 * linear - 2, atol=1e-5)
    near = torch.linspace(0.4, 0.6, 5)
    assert torch.allclose(torch.sigmoid(4 * near - 2), near, atol=2e-3)


@torch.no_grad()
def test_its_answers_start_near_the_teachers(teachers):
    """The figures that the module's docstring gives, on fewer networks."""
    agree = {"point": [], "box": []}
    for teacher in teachers:
        sam1, sam2 = Sam1Runner(teacher), SliceRunner(student_of(teacher).eval())
        features = sam1.encode(sam1.network_input(random_image(2, seed=3)))
        padded = SliceFeatures(
            s4=torch.zeros(2, WIDTH // 8, 16, 16),
            s8=torch.zeros(2, WIDTH // 4, 8, 8),
            s16=features.s16,
        )
        point = Prompts(
            points_BN2=torch.tensor([[[20.0, 30]]] * 2), labels_BN=torch.tensor([[1]] * 2)
        )
        box = boxes_to_prompts(torch.tensor([[8.0, 12, 40, 50]] * 2))
        for kind, prompt in (("point", point), ("box", box)):
            theirs, ours = (
                net.prompted(given, prompt).mask_logits > 0
                for net, given in ((sam1, features), (sam2, padded))
            )
            agree[kind].append((theirs == ours).float().mean())
    assert torch.stack(agree["point"]).median() > 0.7
    assert torch.stack(agree["box"]).median() > 0.55


def test_a_smaller_student_has_to_say_how_targets_are_resized(teachers):
    with pytest.raises(NetworkConfigError, match=r"student.image_size=32.*teacher's 64") as caught:
        student_of(teachers[0], image_size=32)
    assert "--set student.resize_targets=area" in str(caught.value)
    assert caught.value.exit_code == 2
    student = student_of(teachers[0], image_size=32, resize_targets="area")
    assert SliceRunner(student).grid == (2, 2)
