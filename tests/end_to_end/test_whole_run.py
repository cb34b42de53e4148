"""Every stage on the phantom, and what makes a stage run again."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cache import CacheReader
from efficient_medsam2.networks.model_folder import load_runner
from stages.training.journal import read_journal
from tests.end_to_end import small

STUDENTS = ("encoder", "memory", "finetune", "baseline")


def test_each_stage_leaves_its_artifact(finished):
    reader = CacheReader(finished / "cache")
    assert reader.complete
    assert set(reader.index.cases.splits) == {"train", "validation", "test"}
    for stage in (*STUDENTS, "evaluate"):
        manifest = json.loads((finished / stage / "manifest.json").read_text())
        assert manifest["stage"] == stage
        for name, record in manifest["files"].items():
            assert (finished / stage / name).stat().st_size == record["bytes"]
        assert "metrics.jsonl" not in manifest["files"]
    assert json.loads((finished / "finetune" / "manifest.json").read_text())["upstream"].keys() == {
        "memory",
        "precompute",
    }


@pytest.mark.parametrize("stage", STUDENTS)
def test_a_student_is_deployable_and_its_curve_is_whole(finished, stage):
    runner = load_runner(finished / stage / "model")
    assert runner.image_size == 64
    steps = [line["step"] for line in read_journal(finished / stage / "metrics.jsonl")]
    manifest = json.loads((finished / stage / "manifest.json").read_text())
    assert sorted(set(steps)) == list(range(manifest["summary"]["steps"] + 1))
    assert not (finished / stage / "checkpoint").exists()
    assert not (finished / stage / "best.pt").exists()


def test_rows_hold_every_model_and_finite_figures(finished):
    document = json.loads((finished / "evaluate" / "rows.json").read_text())
    assert {row["model"] for row in document["rows"]} == {"teacher", *STUDENTS}
    for row in document["rows"]:
        for key in ("dsc", "dsc_3d", "nsd"):
            assert 0 <= row[key] <= 1
        assert row["params"] > 0
        assert set(row["per_structure"]) == set(document["rows"][0]["per_structure"])
    teacher = next(row for row in document["rows"] if row["model"] == "teacher")
    assert teacher["retention"] == 1
    assert document["context"]["split"] == "test"
    assert document["context"]["slices"] > 0
    arrays = np.load(finished / "evaluate" / "samples.npz")
    samples = json.loads((finished / "evaluate" / "samples.json").read_text())
    assert len(samples) == 2
    for place, sample in enumerate(samples):
        assert set(sample["dsc"]) == {"teacher", *STUDENTS}
        assert arrays[f"mask_encoder_{place}"].shape == arrays[f"truth_{place}"].shape


def test_the_student_of_memory_has_the_encoders_decoder(finished):
    """Memory distillation leaves the prompt encoder and the mask decoder as they were."""
    before = load_runner(finished / "encoder" / "model").model.state_dict()
    after = load_runner(finished / "memory" / "model").model.state_dict()
    for name in before:
        if name.startswith(("prompt_encoder.", "mask_decoder.")):
            assert before[name].equal(after[name]), name
    summary = json.loads((finished / "memory" / "manifest.json").read_text())["summary"]
    changed = [n for n in before if n.startswith("memory_") and not before[n].equal(after[n])]
    assert bool(changed) == (summary["best_step"] > 0)  # else it hands on what it was given


def test_a_second_run_finds_everything_fresh(finished_run):
    before = {p: p.stat().st_mtime_ns for p in finished_run.folder.rglob("model.safetensors")}
    assert finished_run("run") == 0
    lines = finished_run.err.splitlines()
    for stage in ("precompute", *STUDENTS, "evaluate"):
        assert f"{stage}: fresh" in lines
    assert not any("running" in line for line in lines)
    after = {p: p.stat().st_mtime_ns for p in finished_run.folder.rglob("model.safetensors")}
    assert before == after


def test_another_learning_rate_makes_what_follows_stale_and_status_names_it(finished_run):
    states = finished_run.states(encoder__learning_rate=5e-3)
    assert {n for n, (state, _) in states.items() if state != "fresh"} == {
        "encoder",
        "memory",
        "finetune",
        "evaluate",
    }
    assert states["encoder"][1] == ("encoder.learning_rate: 0.0015 -> 0.005",)
    assert states["memory"][1] == ("upstream encoder is stale",)


def test_another_student_leaves_the_cache(finished_run):
    assert finished_run.not_fresh(student__backbone="mobilenetv3_large_100") == {
        *STUDENTS,
        "evaluate",
    }


def test_rerunning_one_stage_reruns_what_it_changed(finished_run):
    assert finished_run("train", "memory", memory__steps=4) == 0
    assert finished_run.not_fresh(memory__steps=4) == {"finetune", "baseline", "evaluate"}
    assert finished_run("run", memory__steps=4) == 0
    assert "encoder: fresh" in finished_run.err
    assert finished_run.not_fresh(memory__steps=4) == set()


def test_evaluate_takes_over_the_models_that_did_not_change(finished_run):
    kept = finished_run.folder / "evaluate" / "models"
    marked = json.loads((kept / "encoder.json").read_text())
    marked["row"]["ms_per_slice"] = 12345.0
    (kept / "encoder.json").write_text(json.dumps(marked))
    (kept / "finetune.json").write_text("{")
    assert finished_run("run", "--only", "evaluate", "--force", "evaluate") == 0
    document = json.loads((finished_run.folder / "evaluate" / "rows.json").read_text())
    times = {row["model"]: row["ms_per_slice"] for row in document["rows"]}
    assert times["encoder"] == 12345.0
    assert times["finetune"] < 12345.0


def test_a_cache_may_be_moved(finished_run, tmp_path):
    finished_run.cache.rename(tmp_path / "elsewhere")
    assert finished_run.not_fresh(cache__path=tmp_path / "elsewhere") == set()
    assert finished_run.not_fresh() != set()


def test_a_missing_input_is_named_with_its_command(finished_run):
    shutil.rmtree(finished_run.folder / "encoder")
    assert finished_run("train", "memory") == 4
    assert "train encoder" in finished_run.err


def test_a_diverging_loss_names_the_setting(finished_run):
    code = finished_run("train", "encoder", encoder__learning_rate=1e30, encoder__clip_norm=1e30)
    assert code == 2
    assert "--set encoder.learning_rate=1e+29" in finished_run.err


def test_half_precision_on_a_cpu_is_refused(finished_run):
    assert finished_run("train", "encoder", encoder__precision="fp16") == 2
    assert "--set encoder.precision=no" in finished_run.err


def test_stages_of_one_run_may_differ_in_precision(finished_run):
    changes = {"encoder__precision": "bf16", "encoder__steps": 1, "memory__steps": 1}
    assert finished_run("run", "--only", "encoder", "--only", "memory", **changes) == 0


def test_a_teacher_is_trained_and_used(new_run):
    new_run.values |= small.TEACHER_TRAINING
    assert new_run("plan") == 0
    assert "once the teacher is trained" in new_run.out
    assert new_run("run", "--only", "teacher", "--only", "precompute") == 0
    manifest = json.loads((new_run.folder / "teacher" / "manifest.json").read_text())
    assert manifest["summary"]["steps"] == 3
    assert set(manifest["files"]) == {
        "model/config.json",
        "model/model.safetensors",
        "model/runner.json",
    }
    in_cache = load_runner(new_run.cache / "teacher").model.state_dict()
    trained = load_runner(new_run.folder / "teacher" / "model").model.state_dict()
    assert all(trained[name].equal(in_cache[name]) for name in trained)
    states = new_run.states()
    assert states["teacher"][0] == states["precompute"][0] == "fresh"
    assert new_run.states(teacher_training__steps=4)["precompute"][0] == "stale"


@pytest.mark.slow
def test_two_processes_train_one_student_and_keep_one_journal(finished_run):
    arguments = small.words(("train", "encoder", "--force", "encoder"), finished_run.values)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = subprocess.run(
        [*launcher, "-m", "pipeline.cli", *arguments],
        env=small.environment(),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = read_journal(finished_run.folder / "encoder" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert finished_run.states()["encoder"][0] == "fresh"
