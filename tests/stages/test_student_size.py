import pytest

from efficient_medsam2.errors import NetworkConfigError
from efficient_medsam2.networks.student import StudentConfig
from stages.student_size import check_sizes, teacher_size
from stages.teacher_source import TeacherConfig


def test_published_teachers_are_known_without_a_file():
    assert teacher_size(TeacherConfig(kind="medsam2")) == 512
    assert teacher_size(TeacherConfig(kind="medsam")) == 1024
    assert teacher_size(TeacherConfig(kind="sam2.1", image_size=768)) == 768


def test_a_scratch_teachers_folder_tells(blocks, tmp_path):
    assert teacher_size(blocks.teacher) == 64
    assert teacher_size(TeacherConfig(checkpoint=tmp_path)) is None
    assert teacher_size(TeacherConfig(train=True)) is None


def test_another_size_needs_a_mode():
    teacher = TeacherConfig(kind="medsam")
    with pytest.raises(NetworkConfigError, match=r"student.image_size=512.*teacher's 1024"):
        check_sizes(StudentConfig(image_size=512), teacher)
    check_sizes(StudentConfig(image_size=512, resize_targets="bilinear"), teacher)
    check_sizes(StudentConfig(image_size=1024), teacher)
    check_sizes(StudentConfig(), teacher)
    check_sizes(StudentConfig(image_size=96), TeacherConfig(train=True))
