"""States and reasons, from what is on disk."""

import json

import pytest

from pipeline.artifacts import MANIFEST_NAME, fingerprint
from pipeline.plan import Observation, observe, plan


def states(small, forced=()):
    stages = plan(small.graph(), observe(small.graph(), small.run_dir), frozenset(forced))
    return {stage.name: stage.state for stage in stages}


def reasons(small, name, forced=()):
    stages = plan(small.graph(), observe(small.graph(), small.run_dir), frozenset(forced))
    return next(stage.reasons for stage in stages if stage.name == name)


def stale(small, forced=()):
    return {name for name, state in states(small, forced).items() if state != "fresh"}


def test_nothing_made_yet_is_missing_and_nothing_is_written(small):
    assert set(states(small).values()) == {"missing"}
    assert reasons(small, "memory") == ("upstream encoder, precompute are missing",)
    assert not small.run_dir.exists()
    assert not small.cache.exists()


def test_everything_is_fresh_after_a_run(small):
    small.run()
    assert set(states(small).values()) == {"fresh"}
    assert all(reasons(small, name) == () for name in states(small))


def test_a_changed_setting_names_key_and_values_and_what_follows_from_it(small):
    small.run()
    small.settings["encoder"]["encoder.learning_rate"] = 0.002
    assert stale(small) == {"encoder", "memory", "evaluate"}
    assert reasons(small, "encoder") == ("encoder.learning_rate: 0.001 -> 0.002",)
    assert reasons(small, "memory") == ("upstream encoder is stale",)


def test_a_new_and_a_removed_setting(small):
    small.run()
    small.settings["encoder"] = {"encoder.steps": None}
    assert reasons(small, "encoder") == (
        "encoder.learning_rate: 0.001 -> (absent)",
        "encoder.steps: (absent) -> None",
    )


def test_a_result_that_was_made_again_otherwise_makes_its_consumers_stale(small):
    small.run()
    small.during["encoder"] = lambda context: small.settings["encoder"].update(noise=1)
    small.run(only=("encoder",), force=("encoder",))
    del small.settings["encoder"]["noise"]
    assert stale(small) == {"memory", "evaluate"}
    assert reasons(small, "memory") == ("upstream encoder changed",)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "weights.txt").unlink(), "weights.txt is missing"),
        (lambda folder: (folder / "weights.txt").write_text("x"), "weights.txt has 1 bytes"),
        (lambda folder: (folder / MANIFEST_NAME).write_text("{"), "manifest.json is damaged"),
    ],
)
def test_a_damaged_artifact_is_stale_and_says_so(small, damage, reason):
    small.run()
    damage(small.run_dir / "encoder")
    assert stale(small) == {"encoder", "memory", "evaluate"}
    assert reason in reasons(small, "encoder")[0]


def test_contents_are_compared_when_asked(small):
    small.run()
    path = small.run_dir / "encoder" / "weights.txt"
    path.write_text(path.read_text()[::-1])
    assert stale(small) == set()
    observed = observe(small.graph(), small.run_dir, digests=True)
    assert "other sha256" in observed["encoder"].problems[0]


def test_a_manifest_of_an_older_schema_is_stale(small):
    small.run()
    path = small.run_dir / "encoder" / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))
    assert reasons(small, "encoder") == ("schema_version: 0 -> 1",)


def test_an_input_that_is_consumed_no_longer(small):
    small.run()
    graph = small.graph()
    observed = observe(graph, small.run_dir)
    observed["encoder"].manifest.upstream["teacher"] = "t"
    planned = {stage.name: stage for stage in plan(graph, observed)}
    assert planned["encoder"].reasons == ("no longer upstream: teacher",)


def test_forced_is_stale_and_so_are_its_consumers(small):
    small.run()
    assert stale(small, ["encoder"]) == {"encoder", "memory", "evaluate"}
    assert reasons(small, "encoder", ["encoder"]) == ("forced",)


def test_a_checkpoint_of_these_settings_is_partial_and_of_others_is_not(small):
    small.run(only=("precompute",))
    node = next(node for node in small.graph() if node.name == "encoder")
    identity = observe(small.graph(), small.run_dir)["precompute"].identity
    folder = small.run_dir / "encoder" / "checkpoint"
    folder.mkdir(parents=True)
    state = {"fingerprint": fingerprint(node.settings, {"precompute": identity}), "step": 40}
    (folder / "state.json").write_text(json.dumps(state))
    assert states(small)["encoder"] == "partial"
    assert reasons(small, "encoder") == ("continues at step 40",)
    small.settings["encoder"]["encoder.learning_rate"] = 0.1
    assert states(small)["encoder"] == "missing"
    assert "other settings" in reasons(small, "encoder")[0]


def test_a_half_written_cache_is_partial(small):
    small.cache.mkdir()
    (small.cache / "rows.txt").write_text("12 of 40 shards")
    assert states(small)["precompute"] == "partial"
    assert reasons(small, "precompute") == ("12 of 40 shards",)
    assert reasons(small, "encoder") == ("upstream precompute is partial",)


def test_a_cache_of_other_settings_is_stale(small):
    small.run()
    small.settings["precompute"]["data.source"] = "b"
    assert reasons(small, "precompute") == ("data.source: a -> b",)
    assert stale(small) == set(states(small))


def test_a_damaged_cache_is_stale_and_can_be_forced(small):
    small.run()
    (small.cache / "cache.json").write_text("damaged")
    assert reasons(small, "precompute") == ("cache.json is damaged",)
    assert states(small)["precompute"] == "stale"
    assert small.run(only=("precompute",), force=("precompute",)) == ("precompute",)
    assert stale(small) == set()


def test_a_carried_cache_needs_no_teacher(small):
    small.with_teacher = True
    small.run()
    (small.run_dir / "teacher").rename(small.root / "left behind")
    planned = plan(small.graph(), observe(small.graph(), small.run_dir))
    assert planned[0].state == "missing"
    assert not planned[0].needed
    assert planned[0].reasons == ("not needed: precompute is fresh",)
    assert all(stage.state == "fresh" and stage.needed for stage in planned[1:])


def test_a_missing_teacher_is_needed_for_a_missing_or_forced_cache(small):
    small.with_teacher = True
    assert plan(small.graph(), observe(small.graph(), small.run_dir))[0].needed
    small.run()
    (small.run_dir / "teacher").rename(small.root / "left behind")
    observed = observe(small.graph(), small.run_dir)
    assert plan(small.graph(), observed, frozenset({"precompute"}))[0].needed


def test_a_stale_teacher_makes_the_cache_stale(small):
    small.with_teacher = True
    small.run()
    small.settings["teacher"]["teacher.steps"] = 4
    assert reasons(small, "precompute") == ("upstream teacher is stale",)


def test_plan_does_not_touch_the_disk(small):
    small.run()
    graph = small.graph()
    observed = observe(graph, small.run_dir)
    small.run_dir.rename(small.root / "moved")
    encoder = observed["encoder"]
    assert {stage.state for stage in plan(graph, {**observed, "encoder": encoder})} == {"fresh"}
    emptied = {**observed, "encoder": Observation()}
    assert plan(graph, emptied)[1].state == "missing"


def test_a_run_folder_can_be_moved(small):
    small.run()
    small.run_dir.rename(small.root / "moved")
    assert {s.state for s in plan(small.graph(), observe(small.graph(), small.root / "moved"))} == {
        "fresh"
    }
