import pytest

from cache.selection import select_rows
from tests.cache.example import make_index, prompt_rows, slice_rows, track_rows


def test_conditions_are_joined():
    index = make_index()
    assert select_rows(index).tolist() == list(range(28))
    assert select_rows(index, split="val", view=1).tolist() == [
        row.row for row in slice_rows() if row.case_id == "case1" and row.view == 1
    ]
    assert len(select_rows(index, modality="CT")) == 28
    assert len(select_rows(index, "prompts", object_id=10)) == len(prompt_rows())


def test_slices_of_an_object_are_those_that_it_was_prompted_or_followed_on():
    index = make_index()
    expected = sorted({row.slice_row for row in track_rows() if row.object_id == 3})
    assert select_rows(index, object_id=3).tolist() == expected
    assert select_rows(index, "tracks", object_id=3).tolist() == [7, 8, 9, 10, 11]
    assert select_rows(index, split="train", object_id=3).tolist() == []


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"modality": "MR"}, r"no case of modality 'MR'; there are \['CT'\]"),
        ({"object_id": 7}, r"no object 7; there are \[1, 2, 3, 10\]"),
        ({"split": "test"}, "no case of split 'test'"),
    ],
)
def test_unknown_values_are_refused(condition, message):
    with pytest.raises(KeyError, match=message):
        select_rows(make_index(), **condition)
