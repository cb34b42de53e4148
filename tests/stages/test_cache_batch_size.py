"""The batch size follows from memory, never from a clock."""

import pytest
import torch

from stages.cache_batch_size import batch_size_for, cpu_batch_size
from stages.cache_calls import TeacherCalls, memory_errors
from stages.cache_settings import PrecomputeConfig
from stages.errors import StageMemoryError
from stages.side_files import PROGRESS_NAME
from tests.stages.passes import CountedTeacher

GB = 1 << 30


@pytest.mark.parametrize(
    ("image_size", "rows_per_shard", "memory", "size"),
    [
        (512, 64, 64 * GB, 4),
        (1024, 64, 64 * GB, 1),
        (64, 64, 64 * GB, 64),
        (64, 8, 64 * GB, 8),
        (64, 5, 64 * GB, 4),
        (128, 64, 64 * GB, 64),
        (512, 64, 3 * GB, 2),
        (1024, 64, 1 * GB, 1),
    ],
)
def test_a_cpu_gets_what_fills_it_and_fits(image_size, rows_per_shard, memory, size):
    assert cpu_batch_size(image_size, rows_per_shard, memory) == size


@pytest.fixture(scope="module")
def calls():
    return TeacherCalls(CountedTeacher(), device=torch.device("cpu"), precision="no", stored=())


def ask(calls, folder, wanted="auto", *, resume=True):
    return batch_size_for(
        wanted, calls, channels=1, rows_per_shard=16, folder=folder, resume=resume
    )


def test_what_was_begun_is_kept(calls, tmp_path):
    assert ask(calls, tmp_path) == 16
    assert ask(calls, tmp_path, 3) == 3
    assert ask(calls, tmp_path) == 3
    assert ask(calls, tmp_path, resume=False) == 16


@pytest.mark.parametrize("content", ["", "{}", '{"batch_size": 0}', '{"batch_size"'])
def test_a_damaged_note_is_written_again(calls, tmp_path, content):
    (tmp_path / PROGRESS_NAME).write_text(content)
    assert ask(calls, tmp_path) == 16
    assert (tmp_path / PROGRESS_NAME).read_text() == '{"batch_size":16}\n'


def test_the_teacher_is_not_run_to_find_it_on_a_cpu(calls, tmp_path):
    ask(calls, tmp_path)
    assert calls.teacher.encoded == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_names_a_smaller_batch(error):
    with (
        pytest.raises(StageMemoryError, match=r"--set precompute\.batch_size=4") as raised,
        memory_errors(8, torch.device("cpu")),
    ):
        raise error
    assert raised.value.exit_code == 5


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), memory_errors(8, torch.device("cpu")):
        raise RuntimeError("shape")


def test_the_setting_is_a_number_or_auto():
    assert PrecomputeConfig(batch_size=7).batch_size == 7
    for wrong in (0, -1, "many"):
        with pytest.raises(ValueError, match="batch_size"):
            PrecomputeConfig(batch_size=wrong)
