"""Manifests, fingerprints, digests and atomic writes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import (
    CHECKPOINT_FOLDERS,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    FileRecord,
    Manifest,
    check_files,
    checkpoint_steps,
    describe_files,
    fingerprint,
    json_value,
    library_versions,
    read_manifest,
    write_atomically,
    write_manifest,
)
from pipeline.errors import ArtifactError

MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    stage="encoder",
    fingerprint="f" * 64,
    settings={"encoder.learning_rate": 0.001, "encoder.taps": ["s4"], "x": None},
    upstream={"precompute": "p"},
    files={"weights.bin": FileRecord(bytes=3, sha256="0" * 64)},
    summary={"dsc": 0.8},
    started_utc="2026-01-01T00:00:00+00:00",
    finished_utc="2026-01-01T00:01:00+00:00",
    versions={"torch": "2"},
)


def test_round_trip(tmp_path: Path):
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_absent_manifest_is_none(tmp_path: Path):
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"stage": "encoder"}', "3"])
def test_damaged_manifest_is_named(tmp_path: Path, text: str):
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


def test_manifest_with_a_wrong_type_is_damaged(tmp_path: Path):
    write_manifest(tmp_path, MANIFEST)
    data = json.loads((tmp_path / MANIFEST_NAME).read_text())
    data["files"]["weights.bin"]["bytes"] = "three"
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"files\.weights\.bin\.bytes"):
        read_manifest(tmp_path)


def test_newer_schema_is_refused(tmp_path: Path):
    write_manifest(tmp_path, replace(MANIFEST, schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(ArtifactError, match=r"newer than 1.*newer efficient-medsam2"):
        read_manifest(tmp_path)


def test_fingerprint_depends_on_each_part_and_not_on_order():
    base = fingerprint({"a": 1, "b": 2}, {"x": "1"})
    assert base == fingerprint({"b": 2, "a": 1}, {"x": "1"})
    assert re.fullmatch("[0-9a-f]{64}", base)
    others = {
        fingerprint({"a": 1, "b": 3}, {"x": "1"}),
        fingerprint({"a": 1, "b": 2}, {"x": "2"}),
        fingerprint({"a": 1, "b": 2}, {}),
        fingerprint({"a": 1, "b": 2}, {"x": "1"}, schema=SCHEMA_VERSION + 1),
    }
    assert len(others) == 4
    assert base not in others


def test_fingerprint_of_known_input_never_changes():
    # A change here makes every artifact of every user stale: raise SCHEMA_VERSION knowingly.
    assert fingerprint({"a": 1.5}, {"x": "y"}, schema=1) == (
        "07634715c94f27d2d18dbaa602baad23ac72b80f5862eac648f51131e98f746e"
    )


def test_identity_changes_with_files_and_settings_alone():
    other_file = replace(MANIFEST, files={"weights.bin": FileRecord(bytes=3, sha256="1" * 64)})
    assert MANIFEST.identity != other_file.identity
    assert MANIFEST.identity != replace(MANIFEST, fingerprint="e" * 64).identity
    assert MANIFEST.identity == replace(MANIFEST, summary={}, finished_utc="later").identity


def test_describe_and_check_files(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"abc")
    (tmp_path / "sub" / "more.txt").write_text("x")
    files = describe_files(tmp_path, ("weights.bin", "sub/more.txt"))
    assert files["weights.bin"].bytes == 3
    assert files["weights.bin"].sha256 == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    manifest = replace(MANIFEST, files=files)
    assert check_files(tmp_path, manifest, digests=True) == ()
    (tmp_path / "weights.bin").write_bytes(b"abd")
    assert check_files(tmp_path, manifest) == ()
    assert check_files(tmp_path, manifest, digests=True) == (
        "weights.bin was changed after the stage wrote it (other sha256)",
    )
    (tmp_path / "weights.bin").write_bytes(b"abcd")
    (tmp_path / "sub" / "more.txt").unlink()
    assert check_files(tmp_path, manifest) == (
        "sub/more.txt is missing",
        "weights.bin has 4 bytes instead of 3",
    )


@pytest.mark.parametrize("name", ["absent", "../outside", "/etc/hostname", "folder"])
def test_describe_refuses_what_is_no_file_inside(tmp_path: Path, name: str):
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (tmp_path / "outside").write_text("x")
    with pytest.raises(ArtifactError, match="no file in it"):
        describe_files(inside, (name,))


def test_json_value():
    value = {
        "a": np.float32(0.5),
        1: (np.int64(3), float("nan"), float("-inf")),
        "p": Path("x/y"),
        "n": None,
        "b": True,
    }
    assert json_value(value) == {
        "a": 0.5,
        "1": [3, "nan", "-inf"],
        "p": "x/y",
        "n": None,
        "b": True,
    }
    with pytest.raises(TypeError, match="a set has no JSON form"):
        json_value({"a": {1}})


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path):
    path = tmp_path / "config.yaml"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_are_found_by_fingerprint(tmp_path: Path):
    for name, mark, step in zip(CHECKPOINT_FOLDERS, ("a", "b"), (7, 5), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps({"fingerprint": mark, "step": step}))
    assert checkpoint_steps(tmp_path) == {"a": 7, "b": 5}
    (tmp_path / CHECKPOINT_FOLDERS[0] / "state.json").write_text("{")
    assert checkpoint_steps(tmp_path) == {"b": 5}


def test_checkpoint_folders_are_those_of_the_training_loop():
    source = Path(__file__).parents[2] / "stages" / "training" / "checkpoint.py"
    name = re.search(r'^CHECKPOINT_FOLDER = "(\w+)"$', source.read_text(), re.MULTILINE)
    assert name is not None
    assert (name[1], f"{name[1]}.old") == CHECKPOINT_FOLDERS


def test_versions_name_python_and_torch():
    assert {"python", "torch", "numpy"} <= library_versions().keys()
