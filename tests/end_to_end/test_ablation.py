"""Grids and seeds on the phantom: equal stages run once, and a second time nothing runs."""

import json

import pytest

from pipeline.ablation_results import read_results

MEMORY = ("--over", "memory.enabled=true,false")


@pytest.fixture
def ablate(finished_run):
    """Runs `ablate` beside a finished run; gives what it ended with and the results."""
    finished_run.values["baseline.enabled"] = "false"

    def run(*words, **changes):
        file = finished_run.folder / "out" / "memory.json"
        code = finished_run("ablate", *words, "--json", file.as_posix(), **changes)
        return code, read_results(file) if file.is_file() else None

    return run


def running(text):
    return [line.partition(":")[0] for line in text.splitlines() if line.endswith(" running")]


def test_equal_stages_run_once_and_a_second_time_nothing_does(finished_run, ablate):
    code, results = ablate(*MEMORY)
    assert code == 0, finished_run.err
    # The encoder's student is the same with and without the memory stage; the cache is the run's.
    assert running(finished_run.err) == [
        "encoder",
        "memory",
        "finetune",
        "evaluate",
        "finetune",
        "evaluate",
    ]
    assert "9 uses of 7 different stage runs, 1 of them ready, 6 to do" in finished_run.out
    store = finished_run.folder / "ablate" / "store"
    assert sorted(path.name.partition("-")[0] for path in store.iterdir()) == [
        "encoder",
        "evaluate",
        "evaluate",
        "finetune",
        "finetune",
        "memory",
    ]
    assert not (finished_run.folder / "ablate" / "caches").exists()
    assert results.complete
    assert [each.values["memory.enabled"] for each in results.combinations] == ["true", "false"]
    assert results.combinations[0].models() == ("teacher", "encoder", "memory", "finetune")
    assert results.combinations[1].models() == ("teacher", "encoder", "finetune")
    figures = [each.figures("encoder", "dsc") for each in results.combinations]
    assert figures[0] == figures[1] != ()
    assert results.command.startswith("efficient-medsam2 ablate -c phantom")
    assert "--over memory.enabled=true,false" in results.command
    assert results.wall_s > 0
    folder = next((finished_run.folder / "ablate" / "results").iterdir())
    assert {path.name for path in folder.iterdir()} == {"results.json", "table.md", "plot.png"}
    before = {path: path.stat().st_mtime_ns for path in store.rglob("model.safetensors")}

    code, again = ablate(*MEMORY)
    assert code == 0
    assert running(finished_run.err) == []
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("model.safetensors")}
    assert again.combinations == results.combinations
    assert again.wall_s == results.wall_s

    # What is left over from a kill: a stage without its manifest is made again, nothing else.
    (next(store.glob("memory-*")) / "manifest.json").unlink()
    code, mended = ablate(*MEMORY)
    assert code == 0
    assert running(finished_run.err) == ["memory"]
    assert mended.combinations == results.combinations


def test_a_cache_of_other_settings_is_made_once_for_all_seeds(finished_run, ablate):
    words = ("--over", "precompute.prompts.per_object=2", "--seeds", "0,1", "--until", "encoder")
    code, results = ablate(*words)
    assert code == 0, finished_run.err
    assert running(finished_run.err) == ["precompute", "encoder", "encoder"]
    assert "nothing was evaluated" in finished_run.out
    assert list(results.measured()) == []
    assert any(name.startswith("precompute-") for name in results.stage_seconds)


def test_an_error_stops_the_others_unless_they_keep_going(finished_run, ablate):
    words = ("--over", "encoder.learning_rate=1e30,1.5e-3", "--until", "encoder")
    code, _ = ablate(*words, encoder__clip_norm=1e30)
    assert code == 2
    assert "encoder.learning_rate" in finished_run.err
    code, results = ablate(*words, "--keep-going", encoder__clip_norm=1e30)
    assert code == 1
    assert "1 of 2 runs ended in an error" in finished_run.err
    assert len(results.failures) == 1
    assert not results.complete


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--over", "encoder.stepps=1,2"), ("encoder.stepps", "encoder.steps")),
        (("--over", "encoder.stepps=default"), ("encoder.stepps", "encoder.steps")),
        (("--over", "encoder.steps=many,1"), ("encoder.steps", "integer")),
        (("--over", "run={seed: 3}"), ("run cannot be varied",)),
        (("--until", "nothing"), ("no such stage here", "encoder")),
        (("--until", "encoder", "--only", "memory"), ("exclude each other",)),
    ],
)
def test_what_cannot_be_varied_is_named(new_run, words, parts):
    assert new_run("ablate", *words) == 2
    for part in parts:
        assert part in new_run.err
    assert not new_run.folder.exists()


def test_a_run_is_repeated_with_other_seeds(finished_run):
    assert finished_run("run", "--seeds", "2") == 0, finished_run.err
    assert running(finished_run.err) == ["encoder", "memory", "finetune", "baseline", "evaluate"]
    own = json.loads((finished_run.folder / "evaluate" / "rows.json").read_text())["rows"]
    other = finished_run.folder / "seeds" / "1"
    assert not (other / "cache").exists()
    repeated = json.loads((other / "evaluate" / "rows.json").read_text())["rows"]
    document = json.loads((finished_run.folder / "report.json").read_text())
    assert document["other_seeds"] == [1]
    theirs = {row["model"]: row for row in repeated}
    for row in own:
        (reported,) = [each for each in document["rows"] if each["model"] == row["model"]]
        assert reported["dsc"] == row["dsc"]
        assert reported["dsc_seeds"] == [row["dsc"], theirs[row["model"]]["dsc"]]
        assert reported["dsc_3d_seeds"] == [row["dsc_3d"], theirs[row["model"]]["dsc_3d"]]
    assert " ± " in finished_run.out
    assert " ± " in (finished_run.folder / "report.html").read_text()

    # Made with other settings, the repetition is none of this run any more.
    assert finished_run("run", finetune__steps=4) == 0
    document = json.loads((finished_run.folder / "report.json").read_text())
    assert document["other_seeds"] == []
    assert all(len(row["dsc_seeds"]) == 1 for row in document["rows"])
    (check,) = [each for each in document["checks"] if each["name"].startswith("Repetitions")]
    assert check["ok"] is None
    assert "seed 1: " in check["detail"]


def test_chosen_stages_are_not_repeated(new_run):
    assert new_run("run", "--only", "encoder", "--seeds", "2") == 2
    assert "leave out --only" in new_run.err
