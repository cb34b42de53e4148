"""Terms of answers against labels and teacher, and the corrective click."""

from dataclasses import replace

import pytest
import torch

from efficient_medsam2.networks.records import IGNORED_LABEL, Prompts, SliceRecord
from stages.training.answers import click_on_error, label_terms, teacher_mask_term, teacher_terms


def record(logits_R1HW, score=5.0):
    rows = logits_R1HW.shape[0]
    scores = torch.full((rows, 1), score)
    return SliceRecord(
        conditioned_s16=torch.zeros(rows, 4, 2, 2),
        candidate_logits=logits_R1HW,
        iou=torch.full((rows, 1), 0.5),
        mask_logits=logits_R1HW,
        visible_logits=logits_R1HW,
        object_pointer=torch.zeros(rows, 4),
        object_score=scores,
    )


def square(rows=1, *, top=2, size=8):
    logits = torch.full((rows, 1, size, size), -9.0)
    logits[:, :, top : top + 3, 2:5] = 9.0
    return logits


def test_an_absent_object_trains_the_presence_alone():
    logits = square().requires_grad_()
    answer = record(logits)
    terms = label_terms(answer, torch.zeros(1, 32, 32), bce=1, dice=1)
    assert terms["mask"] == 0
    assert terms["iou"] == 0
    assert terms["presence"].item() == pytest.approx(5.0, abs=0.01)


def test_rows_with_an_absent_object_do_not_change_the_mask_term():
    masks = torch.zeros(2, 32, 32)
    masks[0, 8:20, 8:20] = 1
    alone = label_terms(record(square()), masks[:1], bce=1, dice=1)
    both = label_terms(record(square(2)), masks, bce=1, dice=1)
    assert both["mask"] == alone["mask"]
    assert both["iou"] == alone["iou"]
    assert both["presence"] > alone["presence"]


def test_terms_against_the_teacher_vanish_where_both_agree():
    answer = record(square())
    terms = teacher_terms(answer, square(), torch.full((1, 1), 5.0), temperature=4.0)
    assert terms["kl"].item() == pytest.approx(0, abs=1e-5)
    assert terms["dice"].item() == pytest.approx(0, abs=1e-3)
    assert teacher_mask_term(answer, answer).item() == pytest.approx(0, abs=0.01)
    other = teacher_terms(record(square(top=4)), square(), torch.ones(1, 1), temperature=4.0)
    assert other["kl"] > 0.1
    assert other["dice"] > 0.3


def test_shapes_of_a_teacher_that_saw_no_object_do_not_count():
    masks = torch.cat([square(), torch.full((1, 1, 8, 8), -1024.0)])
    scores = torch.tensor([[5.0], [-5.0]])
    both = teacher_terms(record(square(2, top=4)), masks, scores, temperature=4.0)
    alone = teacher_terms(record(square(top=4)), masks[:1], scores[:1], temperature=4.0)
    assert both["kl"] == alone["kl"]
    assert both["dice"] == alone["dice"]
    none = teacher_terms(record(square()), masks[1:], scores[1:], temperature=4.0)
    assert none["kl"] == none["dice"] == 0
    assert none["presence"] > 1


@pytest.fixture
def box():
    return Prompts(
        points_BN2=torch.tensor([[[8.0, 8.0], [20.0, 20.0]]]), labels_BN=torch.tensor([[2, 3]])
    )


def click(box, student, teacher):
    torch.manual_seed(0)
    clicked = click_on_error(box, record(student), record(teacher))
    assert torch.equal(clicked.points_BN2[:, :2], box.points_BN2)
    assert torch.equal(clicked.mask_logits, student)
    return clicked.points_BN2[0, 2], int(clicked.labels_BN[0, 2])


@pytest.mark.parametrize("label", [1, 0])
def test_a_click_lies_on_the_one_wrong_pixel(box, label):
    teacher, student = square(), square()
    (student if label else teacher)[0, 0, 3, 4] = -9.0
    point, found = click(box, student, teacher)
    assert found == label
    # Pixel (row 3, column 4) of the stride-4 grid covers input pixels 16..19 and 12..15.
    assert point.tolist() == [17.5, 13.5]


def test_where_both_agree_the_click_is_ignored(box):
    assert click(box, square(), square())[1] == IGNORED_LABEL


def test_a_student_that_sees_nothing_is_clicked_onto_the_object(box):
    absent = record(square())
    absent = replace(absent, mask_logits=torch.full((1, 1, 8, 8), -1024.0))
    clicked = click_on_error(box, absent, record(square()))
    assert int(clicked.labels_BN[0, 2]) == 1
    assert clicked.mask_logits.min() == -32
