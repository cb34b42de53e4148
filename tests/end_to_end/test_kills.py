"""A killed run that is typed again ends with the very bytes of one that was not killed."""

import json
import subprocess
import sys
from pathlib import Path

from cache import CacheReader
from stages.training.journal import read_journal
from tests.end_to_end import small

STUDENTS = ("encoder", "memory", "finetune", "baseline")
CLOCKED = {"samples_per_second", "data_wait_share", "peak_memory_mb"}


def command(stage):
    return ("precompute",) if stage == "precompute" else ("train", stage)


def run_killed(run_dir, values, stages, kills):
    """Kills that each stage outlived."""
    values = values | {
        f"{'teacher_training' if stage == 'teacher' else stage}.checkpoint_seconds": 0
        for stage in stages
        if stage != "precompute"
    }
    commands = [
        (
            str(run_dir / ("cache" if stage == "precompute" else stage)),
            small.words(command(stage), values),
        )
        for stage in stages
    ]
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, script, str(kills), "7", json.dumps(commands)],
        env=small.environment(),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(stages, json.loads(done.stdout), strict=True))


def curve(folder):
    """The lines of a curve without what a clock says."""
    lines = read_journal(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]


def test_every_stage_ends_the_same_however_often_it_was_killed(finished, teacher, tmp_path):
    run_dir = tmp_path / "run"
    stages = ("precompute", *STUDENTS)
    kills = run_killed(run_dir, small.settings(run_dir, teacher), stages, kills=3)
    assert kills == dict.fromkeys(stages, 3)
    whole, pieced = CacheReader(finished / "cache"), CacheReader(run_dir / "cache")
    assert pieced.digest() == whole.digest()
    for path in sorted((finished / "cache" / "arrays").rglob("*")):
        other = run_dir / "cache" / path.relative_to(finished / "cache")
        assert path.is_dir() or path.read_bytes() == other.read_bytes(), path
    for stage in STUDENTS:
        assert curve(run_dir / stage) == curve(finished / stage)
        weights = Path(stage, "model", "model.safetensors")
        assert (run_dir / weights).read_bytes() == (finished / weights).read_bytes()
        names = {path.name for path in (run_dir / stage).iterdir()}
        assert names == {"manifest.json", "metrics.jsonl", "model"}


def test_a_teacher_ends_the_same_however_often_it_was_killed(teacher, tmp_path):
    for name, count in (("whole", 0), ("pieced", 2)):
        values = small.settings(tmp_path / name, teacher) | small.TEACHER_TRAINING
        kills = run_killed(tmp_path / name, values, ("teacher",), count)
        assert kills["teacher"] == count
    whole, pieced = tmp_path / "whole" / "teacher", tmp_path / "pieced" / "teacher"
    assert curve(pieced) == curve(whole)
    weights = Path("model", "model.safetensors")
    assert (pieced / weights).read_bytes() == (whole / weights).read_bytes()


FULL_DISK = """
import os, resource, sys
from pathlib import Path
from pipeline.cli import main

finished = set()

def fill(event, values):
    if event == "os.rename" and Path(os.fsdecode(values[1])).match("ledger/*.json"):
        finished.add(values[1])
        if len(finished) == 2:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))

sys.addaudithook(fill)
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_stops_precompute_which_then_goes_on(finished, new_run):
    arguments = small.words(("precompute",), new_run.values)
    process = small.start(FULL_DISK, arguments)
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 5, errors
    assert "error: " in errors
    assert str(new_run.cache) in errors
    reader = CacheReader(new_run.cache)
    assert not reader.complete
    written = sum(len(reader.finished_rows(space)) for space in reader.counts)
    assert 0 < written < sum(reader.counts.values())
    assert new_run("precompute") == 0
    assert CacheReader(new_run.cache).digest() == CacheReader(finished / "cache").digest()


LOADED = """
import json, sys
from pipeline.cli import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    loaded = sorted(name for name in sys.modules if name.startswith("efficient_medsam2.teachers"))
    print("loaded", code, *loaded)
"""


def test_student_stages_and_evaluation_load_no_teacher_module(finished_run, tmp_path):
    """All of them in one process; precompute after them shows that the test can fail."""
    values = finished_run.values | {"encoder.steps": 1, "memory.steps": 1, "finetune.steps": 1}
    students = small.words(("run", "--from", "encoder"), values)
    teacher = small.words(("precompute",), values | {"run.dir": tmp_path / "other"})
    process = small.start(LOADED, [json.dumps([students, teacher])])
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    told = [line.split()[1:] for line in output.splitlines() if line.startswith("loaded ")]
    assert told[0] == ["0"]
    assert "efficient_medsam2.teachers.load" in told[1]
    manifest = json.loads((finished_run.folder / "baseline" / "manifest.json").read_text())
    assert manifest["summary"]["steps"] == 3
