"""What runs, in which order, what is recorded, and what a kill leaves behind."""

import json
import os
import signal
import threading
from dataclasses import replace

import pytest

from pipeline.artifacts import MANIFEST_NAME, fingerprint, read_manifest
from pipeline.errors import (
    ArtifactError,
    ConfigError,
    PipelineError,
    RunInterruptedError,
    RunLockedError,
)
from pipeline.plan import observe, plan
from pipeline.run_lock import LOCK_NAME, locked
from stages.context import Artifact
from tests.pipeline.conftest import FOLLOWER

ALL = ("precompute", "encoder", "memory", "baseline", "evaluate")


def interrupt(context):
    raise KeyboardInterrupt


def state_of(small, name):
    planned = plan(small.graph(), observe(small.graph(), small.run_dir))
    return next(stage.state for stage in planned if stage.name == name)


def test_runs_all_in_order_then_says_fresh(small):
    assert small.run() == ALL
    assert small.run() == ()
    assert small.ran == []
    assert small.notes.lines == [f"{name}: fresh" for name in ALL]


def test_context_tells_a_stage_what_it_needs(small):
    small.run()
    context = small.contexts["memory"]
    assert context.directory == small.run_dir / "memory"
    assert context.inputs == {"encoder": small.run_dir / "encoder", "precompute": small.cache}
    assert (context.cache, context.seed, context.device) == (small.cache, 3, "cpu")
    assert context.resume
    assert small.contexts["precompute"].directory == small.cache


def test_manifest_records_settings_inputs_and_files(small):
    small.run()
    manifest = read_manifest(small.run_dir / "memory")
    encoder = read_manifest(small.run_dir / "encoder")
    assert manifest.settings == {"memory.steps": 2}
    assert manifest.upstream["encoder"] == encoder.identity
    assert manifest.fingerprint == fingerprint(manifest.settings, manifest.upstream)
    assert manifest.fingerprint == small.contexts["memory"].fingerprint
    assert manifest.files["weights.txt"].bytes == len(small.weights("memory"))
    assert manifest.summary == {"size": len(small.weights("memory"))}
    assert manifest.started_utc <= manifest.finished_utc
    assert "torch" in manifest.versions


def test_the_cache_gets_no_manifest(small):
    small.run()
    assert not (small.cache / MANIFEST_NAME).exists()
    assert not (small.run_dir / "precompute").exists()


def test_only_what_a_change_touches_runs_again(small):
    small.run()
    small.settings["encoder"]["encoder.learning_rate"] = 0.002
    assert small.run() == ("encoder", "memory", "evaluate")
    assert "encoder: stale (encoder.learning_rate: 0.001 -> 0.002), running" in small.notes.lines
    assert "baseline: fresh" in small.notes.lines
    assert '"encoder.learning_rate": 0.002' in small.weights("encoder")


def test_a_rerun_with_the_very_same_result_stops_there(small):
    small.run()
    assert small.run(force=("encoder",)) == ("encoder",)


def test_a_rerun_with_another_result_goes_on(small):
    small.run()
    small.during["encoder"] = lambda context: small.settings["encoder"].update(noise=1)
    node_settings = dict(small.settings["encoder"])
    small.run(only=("encoder",), force=("encoder",))
    small.settings["encoder"] = node_settings
    small.during.clear()
    assert small.run() == ("memory", "evaluate")


def test_forced_stages_do_not_resume(small):
    small.run()
    small.run(force=("memory",))
    assert not small.contexts["memory"].resume
    small.settings["baseline"]["baseline.steps"] = 6
    small.run(resume=False)
    assert not small.contexts["baseline"].resume


def test_no_resume_removes_checkpoints_and_resume_keeps_them(small):
    small.run(only=("precompute",))
    checkpoint = small.run_dir / "encoder" / "checkpoint"
    seen = []
    small.during["encoder"] = lambda context: seen.append(checkpoint.exists())
    for resume in (True, False):
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "state.json").write_text(json.dumps({"fingerprint": "x", "step": 1}))
        small.run(only=("encoder",), resume=resume, force=() if resume else ("encoder",))
    assert seen == [True, False]


def test_a_cache_that_differs_in_more_than_how_it_is_stored_is_not_taken(small):
    small.settings["precompute"] |= {"cache.dtype": "int8"}
    small.run(only=("precompute",))
    small.settings["precompute"] |= {"cache.dtype": "fp16"}
    with pytest.raises(ArtifactError, match=r"run -c laptop --set run.seed=3 --set cache.dtype"):
        small.run(only=("encoder",))
    small.settings["precompute"] |= {"data.source": "b"}
    with pytest.raises(ArtifactError) as caught:
        small.run(only=("encoder",))
    assert "as it is stored" not in str(caught.value)
    assert "\nMake what it needs first:\n" in str(caught.value)


def test_only_refuses_without_its_inputs_and_names_the_commands(small):
    with pytest.raises(ArtifactError) as caught:
        small.run(only=("memory",))
    assert str(caught.value) == (
        "memory needs precompute (missing); encoder (missing: upstream precompute is missing).\n"
        "Make what it needs first:\n"
        "  efficient-medsam2 precompute -c laptop --set run.seed=3\n"
        "  efficient-medsam2 train encoder -c laptop --set run.seed=3"
    )
    assert small.ran == []


def test_only_refuses_stale_inputs_and_names_the_key(small):
    small.run()
    small.settings["encoder"]["encoder.learning_rate"] = 0.002
    with pytest.raises(ArtifactError, match=r"encoder \(stale: encoder.learning_rate: 0.001 -> 0."):
        small.run(only=("memory",))


def test_only_runs_that_stage_alone(small):
    small.run(only=("precompute",))
    assert small.run(only=("baseline",)) == ("baseline",)
    assert state_of(small, "encoder") == "missing"


def test_from_runs_a_stage_and_those_after_it(small):
    with pytest.raises(ArtifactError, match="encoder needs precompute"):
        small.run(from_stage="encoder")
    small.run(only=("precompute",))
    assert small.run(from_stage="encoder") == ALL[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ("enkoder",)}, r"--only enkoder: this config has no such stage; its stages are"),
        ({"from_stage": "x"}, "--from x: this config has no such stage"),
        ({"force": ("x",)}, "--force x: this config has no such stage"),
        ({"only": ("memory",), "from_stage": "encoder"}, "exclude each other"),
        ({"only": ("memory",), "force": ("encoder",)}, "--force encoder: not among the stages"),
    ],
)
def test_selections_that_mean_nothing(small, arguments, message):
    with pytest.raises(ConfigError, match=message):
        small.run(**arguments)


def test_a_cache_of_other_settings_is_refused_unless_forced(small):
    small.run()
    small.settings["precompute"]["data.source"] = "b"
    with pytest.raises(ArtifactError) as caught:
        small.run()
    message = str(caught.value)
    assert "data.source: a -> b" in message
    assert "efficient-medsam2 precompute -c laptop --set run.seed=3 --force precompute" in message
    assert "--set cache.path=" in message
    with pytest.raises(ArtifactError, match="--force precompute"):
        small.run(only=("encoder",))
    assert small.run(force=("precompute",)) == ALL
    assert '"data.source": "b"' in small.weights("precompute")


def test_a_carried_cache_trains_without_the_teacher(small):
    small.with_teacher = True
    small.run()
    (small.run_dir).rename(small.root / "big machine")
    assert small.run() == ALL[1:]
    assert small.notes.lines[0] == "teacher: missing (not needed: precompute is fresh)"


def test_a_teacher_trained_again_needs_a_forced_cache(small):
    small.with_teacher = True
    small.run()
    small.settings["teacher"]["teacher.steps"] = 4
    with pytest.raises(ArtifactError, match="upstream teacher is stale"):
        small.run()
    assert small.ran == []
    assert small.run(force=("precompute",)) == ("teacher", *ALL)


def test_a_stage_that_fails_leaves_no_manifest_and_its_error_alone(small):
    small.run()

    def fail(context):
        raise RuntimeError("out of luck")

    small.during["memory"] = fail
    small.settings["encoder"]["encoder.learning_rate"] = 0.002
    with pytest.raises(RuntimeError, match="out of luck"):
        small.run()
    assert state_of(small, "encoder") == "fresh"
    assert state_of(small, "memory") == "missing"
    small.during.clear()
    assert small.run() == ("memory", "evaluate")


def test_a_stage_that_names_a_file_it_did_not_write(small):
    graph = small.graph()
    wrong = replace(graph[1], run=lambda context: Artifact(files=("absent.bin",)))
    small.graph = lambda: (graph[0], wrong, *graph[2:])
    with pytest.raises(ArtifactError, match=r"named 'absent\.bin'"):
        small.run()


def test_a_cache_stage_that_ends_without_a_cache_is_a_bug(small):
    graph = small.graph()
    lazy = replace(graph[0], run=lambda context: Artifact(files=()))
    small.graph = lambda: (lazy, *graph[1:])
    with pytest.raises(PipelineError, match="precompute ended, yet its result is missing"):
        small.run()


def test_interrupt_tells_the_command_that_continues(small):
    small.during["memory"] = interrupt
    with pytest.raises(RunInterruptedError) as caught:
        small.run()
    assert str(caught.value) == (
        "interrupted during memory. Continue: efficient-medsam2 run -c laptop --set run.seed=3"
    )
    assert caught.value.exit_code == 130
    small.during.clear()
    assert small.run() == ("memory", "baseline", "evaluate")


def test_interrupt_forces_again_only_what_was_not_begun(small):
    small.run()
    small.during["memory"] = interrupt
    with pytest.raises(RunInterruptedError, match="interrupted during memory") as caught:
        small.run(force=("encoder", "memory", "baseline"))
    assert str(caught.value).endswith("--set run.seed=3 --force baseline")


def test_interrupt_before_the_old_cache_is_gone_keeps_forcing_it(small):
    small.run()
    small.during["precompute"] = interrupt
    with pytest.raises(RunInterruptedError, match="--force precompute"):
        small.run(force=("precompute",))

    def remove_then_interrupt(context):
        (context.cache / "cache.json").unlink()
        raise KeyboardInterrupt

    small.during["precompute"] = remove_then_interrupt
    with pytest.raises(RunInterruptedError) as caught:
        small.run(force=("precompute",))
    assert "--force" not in str(caught.value)


def test_sigterm_is_an_interrupt_and_the_old_handler_returns(small):
    before = signal.getsignal(signal.SIGTERM)
    small.during["encoder"] = lambda context: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(RunInterruptedError, match="during encoder"):
        small.run()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_killed_rerun_is_never_taken_for_done(small):
    small.run()
    small.during["memory"] = lambda context: os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if child == 0:
        try:
            small.run(force=("memory",))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert state_of(small, "memory") == "missing"
    small.during.clear()
    assert small.run() == ("memory",)


def test_two_runs_do_not_share_a_folder(small):
    small.run_dir.mkdir()
    with locked(small.run_dir), pytest.raises(RunLockedError) as caught:
        small.run()
    assert f"process {os.getpid()}" in str(caught.value)
    assert "--set run.dir=" in str(caught.value)
    assert small.run() == ALL
    assert (small.run_dir / LOCK_NAME).is_file()


def test_works_outside_the_main_thread(small):
    results = []
    thread = threading.Thread(target=lambda: results.append(small.run()))
    thread.start()
    thread.join()
    assert results == [ALL]


def test_config_is_kept_beside_the_results(small):
    small.run(config_text="run:\n  seed: 3\n")
    kept = small.run_dir / "config.yaml"
    assert kept.read_text() == "run:\n  seed: 3\n"
    small.settings["precompute"]["data.source"] = "b"
    with pytest.raises(ArtifactError):
        small.run(config_text="of a run that was refused")
    assert kept.read_text() == "run:\n  seed: 3\n"


def test_numbers_of_the_summary_are_shown(small):
    small.run(only=("precompute",))
    small.run(only=("encoder",))
    size = len(small.weights("encoder"))
    assert any(
        line.startswith("encoder: done in") and line.endswith(f"(size {size})")
        for line in small.notes.lines
    )


def launch(small, **arguments):
    """Run both processes of a launch as threads that meet in every shared stage."""
    meet = threading.Barrier(2, timeout=60)
    for name in ("encoder", "memory", "baseline"):
        small.during[name] = lambda context: meet.wait()
    results = {}

    def follow():
        results[1] = small.run(process=1, processes=2, **arguments)

    follower = threading.Thread(target=follow, name=FOLLOWER)
    follower.start()
    results[0] = small.run(process=0, processes=2, **arguments)
    follower.join()
    return results


def test_processes_of_a_launch_share_training_and_the_first_one_does_the_rest(small):
    small.run(only=("precompute",))
    results = launch(small)
    assert results[0] == ("encoder", "memory", "baseline", "evaluate")
    assert results[1] == ("encoder", "memory", "baseline")
    assert state_of(small, "evaluate") == "fresh"
    again = launch(small, force=("memory",))
    assert again == {0: ("memory",), 1: ("memory",)}


def test_a_launch_refuses_to_wait_for_one_process(small):
    for process in (0, 1):
        with pytest.raises(ConfigError, match=r"precompute runs in one process, before baseline"):
            small.run(process=process, processes=2)
