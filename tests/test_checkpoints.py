import hashlib

import pytest

from efficient_medsam2.checkpoints import SHIPPED_TEACHER, checkpoint_sha256, locate_checkpoint
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
    ("name", "message"), [(None, "teacher.checkpoint is not set"), ("a.pt", "a.pt does not exist")]
)
def test_a_missing_official_file_says_where_it_is_found(tmp_path, name, message):
    path = None if name is None else tmp_path / name
    with pytest.raises(WeightsError, match=rf"{message}: .*huggingface\.co/wanglab/MedSAM2"):
        checkpoint_sha256("medsam2", path)
