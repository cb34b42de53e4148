"""Figures of the validation split, and the student's propagation."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache.dataset import read_slices, read_tracks, select_tracks
from efficient_medsam2.images import to_network_input
from efficient_medsam2.metrics import dsc
from efficient_medsam2.networks.model_folder import load_runner
from efficient_medsam2.networks.records import Prompts
from efficient_medsam2.networks.student import StudentConfig
from stages.errors import StageInputError
from stages.training.heads import TeacherHeads
from stages.training.student import new_student, open_cache, student_of_stage
from stages.training.tracking import Start, follow_windows, steps_of
from stages.training.validation import cache_validation
from tests.stages.conftest import make_context


@pytest.fixture(scope="module")
def runner(cache_path):
    return load_runner(cache_path / "teacher")


def test_figures_are_means_over_objects_and_tracks(reader, runner):
    figures = cache_validation(reader, runner)()
    assert set(figures) == {"dsc", "dsc_3d", "score"}
    assert figures["score"] == pytest.approx((figures["dsc"] + figures["dsc_3d"]) / 2)
    assert cache_validation(reader, runner)() == figures
    # By hand: every track of the split, against what the cache holds of the teacher's answers.
    tracks = select_tracks(reader, split="validation", minimum_length=2)
    scores = []
    for track in tracks:
        length = int(reader.index.tracks.lengths[track])
        batch = read_tracks(reader, [track], length=length)
        logits = torch.nn.functional.interpolate(
            batch.mask_logits[0].float()[:, None], size=(64, 64), mode="bilinear"
        )
        truth = (batch.label == batch.object_id[:, None, None, None]).numpy()[0]
        scores.append(dsc((logits[:, 0] > 0).numpy(), truth))
    assert figures["dsc_3d"] == pytest.approx(float(np.mean(scores)), abs=0.02)


def test_long_tracks_are_measured_a_few_at_a_time(reader, runner, monkeypatch):
    together = cache_validation(reader, runner)()
    monkeypatch.setattr("stages.training.validation._TRACK_SLICES_AT_ONCE", 2)
    shapes = []
    hook = runner.model.vision_encoder.register_forward_pre_hook(
        lambda module, given: shapes.append(given[0].shape[0])
    )
    alone = cache_validation(reader, runner)()
    hook.remove()
    assert alone["dsc_3d"] == pytest.approx(together["dsc_3d"], abs=1e-3)
    assert shapes[-1] == 1


def test_without_an_object_the_score_is_zero(reader, runner):
    spec = SimpleNamespace(precompute={"data.smallest": 10**6})
    nothing_large = SimpleNamespace(
        spec=spec, index=reader.index, read=reader.read, path=reader.path
    )
    assert cache_validation(nothing_large, runner)() == {"dsc": 0.0, "score": 0.0}


def test_a_cache_without_validation_cases_is_not_validated(runner):
    cases = SimpleNamespace(splits=("train", "test"))
    reader = SimpleNamespace(index=SimpleNamespace(cases=cases))
    assert cache_validation(reader, runner) is None


def test_the_teacher_followed_again_gives_the_cached_track(reader, runner):
    """The student's propagation and the teacher's are the same code path, to fp16."""
    tracks = select_tracks(reader, split="train", minimum_length=3)[:2]
    batch = read_tracks(reader, tracks, length=3)
    pixels = to_network_input(batch.image.flatten(0, 1))
    with torch.no_grad():
        records, memories = follow_windows(
            runner,
            steps_of(runner.encode(pixels), 2, 3),
            Start(prompts=Prompts(points_BN2=batch.points, labels_BN=batch.labels)),
            num_frames=int(batch.num_frames[0]),
            also_remember=range(3),
        )
    for step in range(3):
        for mine, cached in (
            (records[step].conditioned_s16, batch.conditioned_s16),
            (memories[step].memory, batch.memory_s16),
            (records[step].object_score, batch.object_score),
        ):
            there = cached[:, step].float()
            assert (mine - there).norm() <= 0.01 * there.norm()


def test_the_cached_features_are_all_that_the_decoder_needs(reader, runner):
    heads = TeacherHeads.of_cache(reader)
    rows = reader.index.select("slices", split="train")[:2]
    batch = read_slices(reader, rows, levels=("s4", "s8", "s16"))
    prompts = Prompts(
        points_BN2=torch.tensor([[[20.0, 20.0]], [[30.0, 30.0]]]), labels_BN=torch.ones(2, 1).long()
    )
    cached = SimpleNamespace(
        s4=batch.features.s4.float(), s8=batch.features.s8.float(), s16=batch.features.s16.float()
    )
    with torch.no_grad():
        mine = heads.runner.prompted(cached, prompts).mask_logits
        whole = runner.prompted(runner.encode(to_network_input(batch.image)), prompts).mask_logits
    assert (mine - whole).norm() <= 0.02 * whole.norm()
    assert not any(p.requires_grad for p in heads.runner.model.parameters())
    assert heads.sigma["features_s16"].shape == (64,)


def test_a_new_student_has_the_teachers_decoder(cache_path, runner):
    config = StudentConfig(backbone="mobilenetv3_small_100")
    first, again = (new_student(config, cache_path, seed=4, device="cpu") for _ in range(2))
    teacher = runner.model.state_dict()
    mine = first.model.state_dict()
    for name in mine:
        assert mine[name].equal(again.model.state_dict()[name]), name
        if name.startswith(("prompt_encoder.", "mask_decoder.transformer")):
            assert mine[name].equal(teacher[name]), name


def test_a_missing_stage_is_named(tmp_path):
    context = make_context(tmp_path, tmp_path)
    with pytest.raises(StageInputError, match="stage encoder"):
        student_of_stage(context, "encoder")


def test_an_unfinished_cache_is_refused(cache_path, tmp_path):
    copy = shutil.copytree(cache_path, tmp_path / "copy")
    next((copy / "ledger").glob("tracks-*.json")).unlink()
    with pytest.raises(StageInputError, match=r"not complete.*efficient-medsam2 precompute"):
        open_cache(make_context(tmp_path, copy))
