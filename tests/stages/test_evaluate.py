"""Figures of the evaluation."""

import numpy as np
import pytest

from efficient_medsam2.metrics import dsc
from efficient_medsam2.networks.model_folder import load_runner
from efficient_medsam2.predictor import VolumePredictor
from efficient_medsam2.prompts import box_of
from stages.cases import open_dataset
from stages.evaluation_samples import SampleBook
from stages.evaluation_scores import Scores, measure_case
from stages.evaluation_settings import EvaluateConfig


def test_means_are_over_structures_not_over_slices():
    scores = Scores()
    for value in (1.0, 1.0, 1.0):
        scores.dsc["large"].append(value)
        scores.nsd["large"].append(0.5)
    scores.dsc["small"].append(0.2)
    scores.nsd["small"].append(0.1)
    scores.dsc_3d["large"].append(0.8)
    figures = scores.figures()
    assert figures["dsc"] == pytest.approx(0.6)
    assert figures["nsd"] == pytest.approx(0.3)
    assert figures["dsc_3d"] == pytest.approx(0.8)
    assert figures["per_structure"]["small"] == {
        "dsc": 0.2,
        "nsd": 0.1,
        "dsc_3d": None,
        "slices": 1,
        "tracks": 0,
    }
    assert Scores().figures() == {"dsc": None, "nsd": None, "dsc_3d": None, "per_structure": {}}


def test_a_case_is_measured_on_every_object_and_slice(blocks, cache_path):
    handle = open_dataset(blocks.data).handles[0]
    case = handle.load()
    runner = load_runner(cache_path / "teacher")
    scores, samples = {"measured": Scores()}, SampleBook(2)
    config = EvaluateConfig(track_length=3)
    runners = {"measured": runner, "known": runner}
    measure_case(case, handle, blocks.data, config, runners, scores, samples)
    found = scores["measured"]
    assert set(found.dsc) == set(handle.object_names.values())
    assert all(len(found.dsc[name]) == len(found.nsd[name]) for name in found.dsc)
    assert all(len(values) == 1 for values in found.dsc_3d.values())
    # The first object on its first slice, by hand.
    object_id, name = next(iter(handle.object_names.items()))
    truth = case.label == object_id
    index = int(np.flatnonzero(truth.reshape(len(truth), -1).any(1))[0])
    mask = VolumePredictor(runner, case.image).segment_boxes(index, box_of(truth[index])[None])
    # Other objects were prompted along with it: batched sums differ in the last digits.
    assert found.dsc[name][0] == pytest.approx(dsc(mask[0], truth[index]), abs=0.01)


def test_samples_come_from_different_objects_and_then_other_cases(tmp_path):
    book = SampleBook(3)
    assert book.wants("a", 1, 7)
    assert book.wants("a", 1, 7)
    assert not book.wants("a", 2, 7)
    assert book.wants("a", 2, 8)
    assert not book.wants("a", 2, 9)
    assert book.wants("b", 5, 7)
    assert not book.wants("c", 0, 7)
