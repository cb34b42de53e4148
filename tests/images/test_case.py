import numpy as np
import pytest

from efficient_medsam2.errors import DataError


def test_object_ids_need_not_start_at_1(make_case):
    label = np.zeros((2, 3, 4), np.uint16)
    label[0, 0, 0], label[1, 2, 3] = 7, 300
    assert make_case(np.zeros((2, 3, 4), np.uint8), label).object_ids == (7, 300)


def test_no_label_has_no_objects(make_case):
    assert make_case(np.zeros((1, 3, 4), np.uint8)).object_ids == ()


@pytest.mark.parametrize(
    ("image", "label", "changes", "message"),
    [
        (np.zeros((3, 4)), None, {}, "neither"),
        (np.zeros((1, 3, 4, 2)), None, {}, "neither"),
        (np.zeros((0, 3, 4)), None, {}, "empty"),
        (np.full((1, 3, 4), np.nan, np.float32), None, {}, "12 of 12 image values are NaN"),
        (np.array([[[1.0, np.inf]]]), None, {}, "1 of 2 image values are NaN or infinite"),
        (np.zeros((1, 3, 4), complex), None, {}, "not real numbers"),
        (np.zeros((1, 3, 4)), np.zeros((1, 4, 3), np.uint16), {}, "differs from the image's"),
        (np.zeros((1, 3, 4)), np.zeros((1, 3, 4), np.int64), {}, "not uint16"),
        (np.zeros((1, 3, 4)), None, {"spacing_mm": (1.0, 0.0, 1.0)}, "spacing"),
        (np.zeros((1, 3, 4)), None, {"spacing_mm": (1.0, np.nan, 1.0)}, "spacing"),
        (np.zeros((1, 3, 4)), None, {"modality": "PET"}, "modality 'PET' is not one of CT"),
        (np.zeros((1, 3, 4)), None, {"affine": np.zeros((4, 4))}, "affine"),
        (np.zeros((1, 3, 4)), None, {"boxes": np.zeros((2, 5))}, r"boxes of shape \(2, 5\)"),
    ],
)
def test_what_is_wrong_is_refused_by_case_and_file(make_case, image, label, changes, message):
    with pytest.raises(DataError, match=rf"case one \(one\.npz\): .*{message}.*Mend the file"):
        make_case(image, label, **changes)
