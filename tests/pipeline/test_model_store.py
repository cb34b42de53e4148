from pathlib import Path

import pytest

from efficient_medsam2.checkpoints import record_path
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.model_store import find_model, look, models_folder, pulled_checkpoint

HOME = Path("/home/someone")


@pytest.mark.parametrize(
    ("environment", "platform", "folder"),
    [
        ({}, "linux", "/home/someone/.local/share/efficient-medsam2/models"),
        ({"XDG_DATA_HOME": "/data"}, "linux", "/data/efficient-medsam2/models"),
        ({}, "darwin", "/home/someone/Library/Application Support/efficient-medsam2/models"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/efficient-medsam2/models"),
        ({"EFFICIENT_MEDSAM2_MODELS": "/m", "XDG_DATA_HOME": "/data"}, "linux", "/m"),
    ],
)
def test_the_users_folder_follows_the_platform(environment, platform, folder):
    assert models_folder(environment, platform=platform, home=HOME) == Path(folder)


def test_a_config_without_a_checkpoint_finds_the_pulled_one(tmp_path):
    medsam2, small = find_model("medsam2"), find_model("sam2.1-small")
    for model in (medsam2, small):
        path = tmp_path / model.name / model.file
        path.parent.mkdir()
        path.write_bytes(b"weights")
    assert pulled_checkpoint("medsam2", None, tmp_path) == tmp_path / "medsam2" / medsam2.file
    assert pulled_checkpoint("sam2.1", "s", tmp_path) == tmp_path / "sam2.1-small" / small.file
    assert pulled_checkpoint("sam2.1", "l", tmp_path) is None

    def checkpoint(*settings, models=tmp_path):
        overrides = [f"teacher.{setting}" for setting in settings]
        return load_config("phantom", overrides, models=models).teacher.checkpoint

    assert checkpoint("kind=medsam2") == tmp_path / "medsam2" / medsam2.file
    assert checkpoint("kind=sam2.1", "size=s") == tmp_path / "sam2.1-small" / small.file
    assert checkpoint("kind=sam2.1") is None
    assert checkpoint("kind=medsam2", "checkpoint=mine.pt") == Path("mine.pt")
    assert checkpoint("kind=medsam2", models=None) is None
    assert checkpoint("kind=medsam") is None


def test_presence_is_told_by_every_byte(tmp_path):
    model = find_model("medsam2")
    assert look(model, tmp_path).state == "absent"
    path = tmp_path / model.name / model.file
    path.parent.mkdir()
    path.write_bytes(b"weights")
    assert look(model, tmp_path).state == "changed"
    sha256 = look(model, tmp_path).sha256
    record_path(path).write_text(f'{{"sha256": "{sha256}"}}')
    assert look(model, tmp_path).state == "here"
    path.write_bytes(b"weightz")
    assert look(model, tmp_path).state == "changed"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="no model is called x; there are medsam2, "):
        find_model("x")
