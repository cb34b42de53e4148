import pytest
import torch

from efficient_medsam2.networks.filled_boxes import filled_boxes
from efficient_medsam2.networks.records import Prompts, boxes_to_prompts


def filled(box):
    return filled_boxes(boxes_to_prompts(torch.tensor([box])), 16, 64)[0, 0]


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ([0, 0, 63, 63], (0, 16), (0, 16)),
        ([8, 20, 31, 43], (2, 8), (5, 11)),
        ([9.5, 21, 28.1, 40.1], (2, 8), (5, 11)),
        ([8, 12, 8, 12], (2, 3), (3, 4)),
        ([63, 63, 63, 63], (15, 16), (15, 16)),
    ],
)
def test_every_cell_that_the_box_touches_is_inside(box, columns, rows):
    expected = torch.full((16, 16), -10.0)
    expected[rows[0] : rows[1], columns[0] : columns[1]] = 10.0
    assert torch.equal(filled(box), expected)


def test_rows_without_a_box_say_nothing():
    prompts = Prompts(
        points_BN2=torch.tensor([[[8.0, 8.0], [20.0, 20.0]], [[8.0, 8.0], [20.0, 20.0]]]),
        labels_BN=torch.tensor([[2, 3], [1, -10]]),
    )
    logits = filled_boxes(prompts, 16, 64)
    assert logits.shape == (2, 1, 16, 16)
    assert logits[0].max() == 10
    assert not logits[1].any()


def test_one_point_per_row_holds_no_box():
    prompts = Prompts(points_BN2=torch.ones(3, 1, 2), labels_BN=torch.ones(3, 1, dtype=torch.int64))
    assert torch.equal(filled_boxes(prompts, 16, 64), torch.zeros(3, 1, 16, 16))
