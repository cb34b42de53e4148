"""The teacher's card: figures of the weights beside it alone, and how long training took."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measured_model import SHIPPED_TEACHER, MeasuredModel, measured_model
from benchmarks.teacher_card import LARGEST_PICTURE_BYTES, write_card
from benchmarks.teacher_run import CardError, TrainedTeacher, TrainingTime, read_run, training_time
from benchmarks.teacher_slabs import SlabPart, SlabResults, measure_part
from benchmarks.zero_shot import ZeroShotResults
from benchmarks.zero_shot_scores import Limits
from efficient_medsam2.networks.model_folder import load_runner
from pipeline.artifacts import FileRecord, Manifest
from pipeline.config import load_config
from pipeline.stage_graph import build_graph
from stages.cases import DataConfig, open_dataset

CONFIG = Path(__file__).parents[2] / "configs" / "demo_teacher.yaml"


def journal(*calls: tuple[int, int, float], until: int) -> list[dict[str, float]]:
    """A line each ten steps of calls (first step, last step, steps a second)."""
    lines = [
        {"step": step, "loss": 1 + 100 / step, "samples_per_second": round(rate, 2)}
        for first, last, rate in calls
        for step in range(first + 10, last + 1, 10)
    ]
    validated = [
        {"step": step, "validation_dsc": step / until, "validation_dsc_3d": step / until / 2}
        for step in range(0, until + 1, 200)
    ]
    return sorted([*lines, *validated], key=lambda line: line["step"])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with weights; their content does not matter here."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def run(model: Path) -> TrainedTeacher:
    (node,) = (node for node in build_graph(load_config(CONFIG)) if node.name == "teacher")
    weights = measured_model(model)
    manifest = Manifest(
        schema_version=1,
        stage="teacher",
        fingerprint="0",
        settings=dict(node.settings),
        upstream={},
        files={
            "model/model.safetensors": FileRecord(
                bytes=weights.bytes, sha256=weights.weights_sha256
            )
        },
        summary={"best_step": 400, "validation": {"score": 0.7654}},
        started_utc="2026-01-01T00:00:00+00:00",
        finished_utc="2026-01-01T00:10:00+00:00",
    )
    return TrainedTeacher(
        manifest=manifest,
        journal=journal((0, 2200, 2.0), until=2200),
        threads=1,
        device="cpu",
        time=TrainingTime(last_seconds=600.0, last_steps=2200, total_seconds=600.0),
    )


@pytest.fixture
def slabs(model: Path) -> SlabResults:
    structure = {"dsc": 0.6543, "nsd": 0.5432, "dsc_3d": None, "slices": 17, "tracks": 0}
    part = SlabPart.model_validate(
        {
            "name": "test slabs",
            "slabs": ("a",),
            "dsc": 0.8765,
            "nsd": 0.9,
            "dsc_3d": 0.7432,
            "per_structure": {"cerebellum": structure},
        }
    )
    return SlabResults(
        command="measure slabs",
        model=measured_model(model),
        image_size=128,
        params=5_100_000,
        gflop=0.64,
        gflop_tracked=0.74,
        parts=(part,),
        finished_utc="",
        versions={},
    )


@pytest.fixture
def zero(model: Path) -> ZeroShotResults:
    figures = {
        "cases": 2,
        "cases_found": 5,
        "objects": 3,
        "objects_too_small": 41,
        "prompts": 9,
        "dsc": 0.4321,
        "nsd": 0.3,
        "box_dsc": 0.7891,
        "box_nsd": 0.8,
        "tracks": 0,
        "dsc_3d": None,
        "box_dsc_3d": None,
    }
    return ZeroShotResults.model_validate(
        {
            "command": "measure zero",
            "model": measured_model(model),
            "limits": Limits(),
            "rows": ({"name": "lesions", "folders": ("x",), "figures": figures},),
            "absent": ("polyps",),
            "seconds": 1.0,
            "threads": 1,
            "finished_utc": "",
            "versions": {},
        }
    )


def test_the_card_has_every_figure_and_its_command(model, run, slabs, zero):
    write_card(model, run, slabs, zero, config=CONFIG)
    card = (model / "CARD.md").read_text()
    assert "| **macro** | 0.876 | 0.900 | 0.743 |" in card
    assert "| cerebellum | 0.654 | 0.543 | – | 17 | 0 |" in card
    assert "| lesions | 2 of 5 | 3 | 0.432 | 0.789 |" in card
    for words in (
        "measure slabs\nmeasure zero\n",
        f"train teacher -c {CONFIG.as_posix()}",
        "step 400",
        "(0.765)",
        "10 minutes",
        measured_model(model).weights_sha256,
        "the box on 0 of 1 data sets",
        "Not there, so not measured: polyps.",
        "41 objects",
    ):
        assert words in " ".join(card.split()) or words in card, words
    picture = (model / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) <= LARGEST_PICTURE_BYTES


@pytest.mark.parametrize("which", ["slabs", "zero"])
def test_figures_of_other_weights_are_refused(model, run, slabs, zero, which):
    other = MeasuredModel(folder="x", weights_sha256="0", bytes=1)
    given = {"slabs": slabs, "zero": zero}
    given[which] = given[which].model_copy(update={"model": other})
    with pytest.raises(CardError, match=f"other weights.*measure again: measure {which}"):
        write_card(model, run, **given, config=CONFIG)
    assert not (model / "CARD.md").exists()


def test_a_model_that_the_run_did_not_make_is_refused(model, run, slabs, zero):
    (model / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CardError, match="is not what the training run made"):
        write_card(model, run, slabs, zero, config=CONFIG)


def test_a_run_of_other_settings_is_refused(model, run, slabs, zero):
    settings = run.manifest.settings | {"teacher_training.window": 99}
    changed = replace(run, manifest=replace(run.manifest, settings=settings))
    with pytest.raises(CardError, match=r"other settings than .*: teacher_training\.window;"):
        write_card(model, changed, slabs, zero, config=CONFIG)


def test_a_folder_without_a_finished_run_is_told(tmp_path):
    with pytest.raises(CardError, match="holds no finished training"):
        read_run(tmp_path)


def test_a_training_in_one_call_took_what_that_call_took():
    lines = journal((0, 1000, 2.0), until=1000)
    time = training_time(lines, steps=1000, batch_size=1, last_seconds=501.0)
    assert time == TrainingTime(last_seconds=501.0, last_steps=1000, total_seconds=501.0)


def test_the_call_that_was_stopped_is_counted():
    # 400 steps in 200 s, then 600 in 600 s.
    lines = journal((0, 400, 2.0), (400, 1000, 1.0), until=1000)
    time = training_time(lines, steps=1000, batch_size=1, last_seconds=600.0)
    assert time.last_steps == 600
    assert time.total_seconds == pytest.approx(800, rel=0.03)


def test_the_time_of_three_calls_is_not_guessed():
    lines = journal((0, 300, 2.0), (300, 600, 0.2), (600, 1000, 1.0), until=1000)
    time = training_time(lines, steps=1000, batch_size=1, last_seconds=400.0)
    assert time.total_seconds is None


def test_slabs_are_measured_by_structure():
    data = DataConfig(source="phantom", phantom_size=48, phantom_depth=24)
    handles = open_dataset(data).handles[:1]
    part = measure_part("phantom", handles, data, load_runner(SHIPPED_TEACHER))
    assert part.slabs == (handles[0].case_id,)
    assert part.per_structure["organ"].slices > 1
    assert 0 < part.dsc <= 1


def test_the_shipped_card_is_of_the_shipped_weights():
    card = (SHIPPED_TEACHER / "CARD.md").read_text()
    assert measured_model(SHIPPED_TEACHER).weights_sha256 in card
