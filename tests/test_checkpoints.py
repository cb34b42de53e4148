import hashlib

import pytest

from efficient_medsam2.checkpoints import (
    KNOWN_MODELS,
    SHIPPED_TEACHER,
    check_record,
    checkpoint_sha256,
    known_model,
    locate_checkpoint,
    record_path,
)
from efficient_medsam2.errors import WeightsError


def test_a_model_folder_is_known_by_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert locate_checkpoint("scratch", tmp_path) == tmp_path
    assert checkpoint_sha256("scratch", tmp_path) == hashlib.sha256(b"weights").hexdigest()


def test_an_official_file_is_known_by_its_bytes(tmp_path):
    path = tmp_path / "MedSAM2_latest.pt"
    path.write_bytes(b"more weights")
    assert locate_checkpoint("medsam2", path) == path
    assert checkpoint_sha256("medsam2", path) == hashlib.sha256(b"more weights").hexdigest()


def test_the_shipped_teacher_lies_in_the_package():
    assert SHIPPED_TEACHER.parts[-3:] == ("efficient_medsam2", "weights", "demo_teacher")


def test_a_folder_without_weights_says_how_to_train_one(tmp_path):
    with pytest.raises(WeightsError, match=r"is no model folder.*train teacher -c configs/"):
        locate_checkpoint("scratch", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [(None, "teacher.checkpoint is not set, and none was pulled"), ("a.pt", "a.pt does not exist")],
)
def test_a_missing_official_file_says_where_it_is_found(tmp_path, name, message):
    path = None if name is None else tmp_path / name
    with pytest.raises(WeightsError, match=rf"{message}: .*huggingface\.co/wanglab/MedSAM2"):
        checkpoint_sha256("medsam2", path)


def test_kinds_with_sizes_say_so(tmp_path):
    with pytest.raises(WeightsError, match=r"sam2\.1_hiera_tiny\.pt.*teacher\.size=SIZE"):
        locate_checkpoint("sam2.1", None)
    with pytest.raises(WeightsError, match=r"is a folder, not a file.*medsam_vit_b\.pth"):
        locate_checkpoint("medsam", tmp_path)


def test_names_of_known_models_are_different_and_so_are_their_files():
    assert len({model.name for model in KNOWN_MODELS}) == len(KNOWN_MODELS)
    assert len({model.file for model in KNOWN_MODELS}) == len(KNOWN_MODELS)


@pytest.mark.parametrize(
    ("kind", "size", "name"),
    [
        ("medsam2", None, "medsam2"),
        ("medsam2", "t", "medsam2"),
        ("sam2.1", "b+", "sam2.1-base-plus"),
        ("sam2.1", None, None),
        ("medsam", None, "medsam"),
        ("scratch", None, None),
    ],
)
def test_a_kind_and_size_has_a_default(kind, size, name):
    model = known_model(kind, size)
    assert (None if model is None else model.name) == name


def test_a_record_is_compared_where_there_is_one(tmp_path):
    path = tmp_path / "a.pt"
    check_record(path, "12")
    record_path(path).write_text('{"sha256": "12"}')
    check_record(path, "12")
    with pytest.raises(WeightsError, match="it has changed since"):
        check_record(path, "13")
    record_path(path).write_text("{")
    with pytest.raises(WeightsError, match="record of a pulled checkpoint is damaged"):
        check_record(path, "12")
