"""Whether a student's image size goes with the teacher's, told before anything is loaded or run."""

from efficient_medsam2.checkpoints import NETWORK_SIZES, locate_checkpoint
from efficient_medsam2.errors import WeightsError
from efficient_medsam2.networks.model_folder import read_model_config
from efficient_medsam2.networks.student import StudentConfig, check_student_size
from stages.teacher_source import TeacherConfig

__all__ = ["check_sizes", "teacher_size"]


def teacher_size(teacher: TeacherConfig) -> int | None:
    """Side of the teacher's network input in pixels; None where only its weights or cache tell.

    That is a scratch teacher which is still to be trained, or whose folder is on another machine.
    """
    if teacher.kind != "scratch":
        return teacher.image_size or NETWORK_SIZES[teacher.kind]
    if teacher.train:
        return None
    try:
        config, _, _ = read_model_config(locate_checkpoint("scratch", teacher.checkpoint))
    except WeightsError:
        return None
    return int(config.image_size)


def check_sizes(student: StudentConfig, teacher: TeacherConfig) -> None:
    """See to it that a student of another image size than the teacher's is meant as such.

    Where the teacher's size is not known yet, the first stage of the student checks it.

    Raises:
        NetworkConfigError: the sizes differ and nothing says how targets are resized.
    """
    size = teacher_size(teacher)
    if size is not None:
        check_student_size(student, size)
