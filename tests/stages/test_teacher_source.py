import pytest
from pydantic import ValidationError

from stages.teacher_source import TeacherConfig


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": True},
        {"kind": "medsam2", "size": "t", "image_size": 512},
        {"kind": "sam2.1", "size": "b+", "image_size": 256},
        {"kind": "sam2.1"},
        {"kind": "medsam", "image_size": 1024},
    ],
)
def test_settings_that_fit(settings):
    assert TeacherConfig(**settings).model_dump(exclude_unset=True) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "medsam2", "size": "l"}, "size=l is for kind sam2.1"),
        ({"kind": "medsam2", "image_size": 256}, "image_size=256 is for kind sam2.1"),
        ({"image_size": 128}, "a teacher of kind scratch has its own: leave it out"),
        ({"kind": "medsam", "size": "t"}, "size=t is for kind sam2.1"),
        ({"kind": "sam2.1", "image_size": 500}, "multiple of 64"),
        ({"kind": "medsam2", "train": True}, "train=true makes a teacher of kind scratch"),
        ({"kind": "sam2"}, "'scratch', 'medsam2', 'sam2.1' or 'medsam'"),
    ],
)
def test_settings_that_do_not_fit_say_why(settings, message):
    with pytest.raises(ValidationError, match=message):
        TeacherConfig(**settings)
