"""Models are pulled by real processes from a real server on the loopback interface."""

import hashlib
import io
import json
import os
import subprocess
import sys

import pytest
import torch

from efficient_medsam2.networks.model_folder import save_model
from efficient_medsam2.teachers.load import load_teacher
from pipeline.cli import main
from tests.networks import golden
from tests.networks.tiny import tiny_runner
from tests.pipeline.hub import COMMIT, hub_serving

HUB_BLOCK = 10 << 20
"""Bytes that the hub's library writes at a time."""

ROUTE = ("wanglab/MedSAM2", "MedSAM2_latest.pt")


@pytest.fixture(scope="module")
def content():
    """A checkpoint of the official names and shapes; each tensor one repeated number.

    The last block's are written out, so that the file is longer than the hub's block of 10 MB.
    """
    state = {
        name: torch.full((1,), index / 471).expand(shape)
        for index, (name, shape) in enumerate(golden.shapes().items())
    }
    state |= {name: value.clone() for name, value in state.items() if "trunk.blocks.11." in name}
    file = io.BytesIO()
    torch.save({"model": state}, file)
    return file.getvalue()


@pytest.fixture
def models(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    monkeypatch.setenv("EFFICIENT_MEDSAM2_MODELS", str(folder))
    return folder


def efficient_medsam2(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words],
        env={**os.environ, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


@pytest.mark.slow
def test_a_pull_that_breaks_off_continues_and_is_recorded(content, models, capsys):
    path = models / "medsam2" / "MedSAM2_latest.pt"
    with hub_serving(ROUTE, content, cut_first_at=len(content) // 2) as (endpoint, requests):
        done = efficient_medsam2("models", "pull", "medsam2", HF_ENDPOINT=endpoint)
        assert done.returncode == 0, done.stderr
        assert [asked for method, _, asked in requests if method == "GET"] == [
            None,
            f"bytes={HUB_BLOCK}-",
        ]
        again = efficient_medsam2("models", "pull", "medsam2", HF_ENDPOINT=endpoint)
        assert again.returncode == 0, again.stderr
        assert sum(method == "GET" for method, _, _ in requests) == 2
    assert path.read_bytes() == content
    sha256 = hashlib.sha256(content).hexdigest()
    record = json.loads((path.parent / "MedSAM2_latest.pt.json").read_text())
    assert record == {
        "name": "medsam2",
        "file": "MedSAM2_latest.pt",
        "source": "wanglab/MedSAM2",
        "revision": COMMIT,
        "sha256": sha256,
        "bytes": len(content),
    }
    assert f"sha256 {sha256}" in done.stdout
    assert "next: efficient-medsam2 plan -c laptop --set teacher.kind=medsam2\n" in done.stdout

    offline = efficient_medsam2("models", "pull", "medsam2", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert json.loads((path.parent / "MedSAM2_latest.pt.json").read_text()) == record

    assert main(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    states = {model["name"]: model["state"] for model in listed["models"]}
    assert states.pop("medsam2") == "here"
    assert set(states.values()) == {"absent"}
    path.write_bytes(content[:-1])
    assert main(["models", "list"]) == 7
    shown = capsys.readouterr()
    assert "CHANGED" in shown.out
    assert "mend: efficient-medsam2 models pull medsam2" in shown.err


@pytest.mark.slow
def test_bytes_that_the_hub_did_not_promise_are_removed(content, models):
    with hub_serving(ROUTE, content, etag="a" * 64) as (endpoint, _):
        done = efficient_medsam2("models", "pull", "medsam2", HF_ENDPOINT=endpoint)
    assert done.returncode == 7
    assert "not those that the hub promised" in done.stderr
    assert not (models / "medsam2" / "MedSAM2_latest.pt").exists()


@pytest.mark.slow
def test_a_file_of_another_kind_is_not_kept(models):
    with hub_serving(ROUTE, b"<html>a page about the file</html>") as (endpoint, _):
        done = efficient_medsam2("models", "pull", "medsam2", HF_ENDPOINT=endpoint)
    assert done.returncode == 7
    assert "it is a web page" in done.stderr
    assert not (models / "medsam2" / "MedSAM2_latest.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_without_a_network_the_way_around_is_told(models, environment):
    done = efficient_medsam2("models", "pull", "sam2.1-tiny", **environment)
    assert done.returncode == 7
    assert "models pull sam2.1-tiny --from sam2.1_hiera_tiny.pt" in done.stderr
    assert "huggingface.co/facebook/sam2.1-hiera-tiny" in done.stderr


@pytest.mark.slow
def test_a_file_that_the_user_brings_is_checked_and_copied(content, tmp_path, models, capsys):
    brought = tmp_path / "brought.pt"
    brought.write_bytes(content)
    assert main(["models", "pull", "medsam2-us-heart", "--from", str(brought)]) == 0
    path = models / "medsam2-us-heart" / "MedSAM2_US_Heart.pt"
    assert path.read_bytes() == content
    assert f"--set teacher.checkpoint={path}" in capsys.readouterr().out
    path.write_bytes(content + b"x")
    brought.write_bytes(content[: len(content) // 2])
    assert main(["models", "pull", "medsam2", "--from", str(brought)]) == 7
    assert "cut off" in capsys.readouterr().err
    assert not (models / "medsam2").exists()


def test_names_that_cannot_be_pulled(models, tmp_path, capsys):
    assert main(["models", "pull", "medsam3"]) == 2
    assert "no model is called medsam3; there are medsam2, " in capsys.readouterr().err
    assert main(["models", "pull", "medsam"]) == 7
    assert "zenodo.org/records/10689643" in capsys.readouterr().err
    assert main(["models", "pull", "medsam2", "--from", str(tmp_path / "none.pt")]) == 7
    assert "none.pt: no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_folder_is_exported_in_the_official_naming(content, tmp_path, capsys):
    source = tmp_path / "source.pt"
    source.write_bytes(content)
    load_teacher("medsam2", source).model.save(tmp_path / "model", origin={})
    for out in (tmp_path / "again.pt", tmp_path / "again.safetensors"):
        assert main(["models", "export", str(tmp_path / "model"), str(out)]) == 0
        assert "sam2.1_hiera_t.yaml with image_size 512" in capsys.readouterr().out
        again = load_teacher("medsam2", out).runner.model.state_dict()
        for name, value in load_teacher("medsam2", source).runner.model.state_dict().items():
            assert torch.equal(value, again[name]), name


def test_a_network_of_no_official_size_is_not_exported(tmp_path, capsys):
    save_model(tiny_runner(), tmp_path / "model", origin={})
    assert main(["models", "export", str(tmp_path / "model"), str(tmp_path / "out.pt")]) == 2
    assert "of none of SAM 2.1's sizes" in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()
