"""Stages take no teacher and no splits that are not those which were written."""

import json
import shutil
from pathlib import Path

import pytest

from cache import CacheCorruptError, CacheReader
from cache.side_files import read_side_files
from efficient_medsam2.networks.student import StudentConfig
from stages import distill_encoder, evaluate
from stages.distill_encoder import EncoderConfig
from stages.evaluation_settings import EvaluateConfig
from stages.side_files import side_file_names
from stages.training.heads import TeacherHeads
from stages.training.student import new_student
from tests.cache.test_verify import flip
from tests.stages.conftest import make_context

MEND = r".*Make it again: efficient-medsam2 cache repair .*copy\.cache -c CONFIG"


@pytest.fixture
def copy(cache_path, tmp_path):
    return Path(shutil.copytree(cache_path, tmp_path / "copy.cache"))


def test_precompute_records_all_that_stages_read(cache_path):
    names = (
        *("splits.json", "files.json", "skipped.json", "precompute.json"),
        *("teacher/config.json", "teacher/model.safetensors", "teacher/runner.json"),
    )
    assert side_file_names(cache_path) == names
    assert {*read_side_files(cache_path)} == {*names}


def test_a_flipped_bit_in_the_teacher_stops_who_takes_its_decoder(copy, tmp_path):
    flip(copy / "teacher" / "model.safetensors", -5)
    with pytest.raises(CacheCorruptError, match=r"model\.safetensors has other bytes" + MEND):
        TeacherHeads.of_cache(CacheReader(copy))
    with pytest.raises(CacheCorruptError, match=r"model\.safetensors has other bytes" + MEND):
        new_student(StudentConfig(), copy, seed=0, device="cpu")
    (tmp_path / "stage").mkdir()
    context = make_context(tmp_path / "stage", copy)
    with pytest.raises(CacheCorruptError, match=r"model\.safetensors has other bytes" + MEND):
        distill_encoder.run(StudentConfig(), EncoderConfig(steps=1, batch_size=2), context)


def test_exchanged_splits_stop_the_evaluation(blocks, copy, tmp_path):
    file = copy / "splits.json"
    splits = json.loads(file.read_text())
    names = {"train": "test", "test": "train"}
    assignment = {case: names.get(split, split) for case, split in splits["assignment"].items()}
    assert assignment != splits["assignment"]
    file.write_text(json.dumps({**splits, "assignment": assignment}, indent=2) + "\n")
    (tmp_path / "stage").mkdir()
    context = make_context(tmp_path / "stage", copy)
    with pytest.raises(
        CacheCorruptError, match=r"splits\.json has (other bytes|\d+ bytes, not \d+)" + MEND
    ):
        evaluate.run(blocks.data, EvaluateConfig(), context)
