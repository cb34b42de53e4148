"""What comes back from the teacher has the stored type, bit for bit as numpy would round it."""

import numpy as np
import pytest
import torch

from cache.encoding import array_specs, encode
from stages.cache_calls import TeacherCalls
from stages.errors import StageConfigError
from tests.stages.passes import CountedTeacher

STORED = {f"features_{level}" for level in ("s4", "s8", "s16")}


def make_calls(precision="no", word="fp16", device="cpu"):
    teacher = CountedTeacher()
    arrays = [
        array
        for level, shape in teacher.level_shapes.items()
        for array in array_specs(f"features_{level}", "slices", shape, word)
    ]
    return TeacherCalls(teacher, device=torch.device(device), precision=precision, stored=arrays)


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 255, (2, 1, 64, 64), dtype=np.uint8)
    )


def test_halves_are_those_of_numpy(image):
    halves = make_calls().encode(image).arrays()
    full = make_calls(word="fp32").encode(image).arrays()
    for name, values in halves.items():
        assert values.tobytes() == full[name].astype(np.float16).tobytes()


@pytest.mark.parametrize("word", ["bf16", "int8"])
def test_encoded_values_are_those_of_numpy(image, word):
    calls = make_calls(word=word)
    made, full = calls.encode(image).arrays(), make_calls(word="fp32").encode(image).arrays()
    for name, values in full.items():
        (array, *_) = array_specs(name, "slices", values.shape[1:], word)
        for part, wanted in encode(array, values).items():
            assert made.pop(part).tobytes() == wanted.tobytes()
    assert not made


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_changes_the_values_and_not_their_type(image, precision):
    exact, rough = make_calls().encode(image).arrays(), make_calls(precision).encode(image).arrays()
    for name, values in rough.items():
        assert values.dtype == np.float16
        error = np.abs(values.astype(float) - exact[name]).max() / np.abs(exact[name]).max()
        assert 0 < error < 0.1


def test_a_device_without_autocast_is_refused_with_what_works():
    with pytest.raises(StageConfigError, match="precision=no"):
        make_calls("bf16", device="meta")


def test_arrays_that_are_here_already_come_along(image):
    made = make_calls().encode(image).beside({"label": np.arange(3)})
    assert set(made.arrays()) == {*STORED, "label"}
