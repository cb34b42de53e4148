"""Evaluating, verifying and converting on workers: what one process finds."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cache.verify import verify
from efficient_medsam2.networks.model_folder import load_network
from pipeline.progress import make_progress
from stages import evaluation_cases
from stages.cases import open_dataset, seen_by_all
from stages.cluster_verify import digest_on_workers
from stages.convert import convert
from stages.errors import ClusterError
from stages.evaluation_cases import CaseTask, measure_cases, measure_here, measure_on_workers
from stages.evaluation_samples import SampleBook
from stages.evaluation_scores import Scores
from stages.evaluation_settings import EvaluateConfig
from tests.stages.here import ClusterHere


@pytest.fixture(autouse=True)
def _no_network_is_left():
    yield
    evaluation_cases._loaded = None


@pytest.mark.parametrize("order", [1, -1])
def test_cases_measured_in_any_order_give_the_same_figures(blocks, cache_path, tmp_path, order):
    handles = open_dataset(blocks.data).handles
    config = EvaluateConfig(track_length=3, samples=3)
    folder = cache_path / "teacher"
    scores, book = {"one": Scores()}, SampleBook(3)
    here = measure_here(handles, blocks.data, config, {"one": load_network(folder)}, ("one",), book)
    assert sum(measure_cases(here, scores, book)) == len(handles)
    tasks = [
        CaseTask(
            handle=handle,
            data=blocks.data,
            config=config,
            folders={"one": (folder, "digest")},
            scored=("one",),
            device="cpu",
        )
        for handle in handles
    ]
    others, other_book = {"one": Scores()}, SampleBook(3)
    measured = measure_on_workers(ClusterHere(order=order), tasks)
    assert list(measure_cases(measured, others, other_book)) == [1] * len(handles)
    assert others["one"].figures() == scores["one"].figures()
    assert scores["one"].figures()["dsc"] is not None
    for name, each in (("here", book), ("there", other_book)):
        (tmp_path / name).mkdir()
        each.write(tmp_path / name)
    assert (tmp_path / "here/samples.json").read_text() == (
        tmp_path / "there/samples.json"
    ).read_text()
    mine, theirs = (np.load(tmp_path / name / "samples.npz") for name in ("here", "there"))
    assert len(mine.files) > 3
    assert mine.files == theirs.files
    for name in mine.files:
        np.testing.assert_array_equal(mine[name], theirs[name])


def test_a_full_book_takes_no_more(blocks):
    full, other = SampleBook(1), SampleBook(2)
    assert full.wants("a", 0, 1)
    assert full.full
    assert other.wants("b", 0, 1)
    full.extend(other)
    assert not full.wants("b", 0, 1)


def test_damage_is_found_by_workers_too(cache_path, tmp_path):
    copy = Path(shutil.copytree(cache_path, tmp_path / "copy.cache"))
    file = copy / "arrays" / "label" / "c" / "1" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    (copy / "arrays" / "image" / "c" / "0" / "0" / "0" / "0").unlink()
    here, seen = verify(copy), []
    there = verify(
        copy,
        progress=lambda done, total: seen.append((done, total)),
        digest_files=lambda shards: digest_on_workers(ClusterHere(order=-1), copy, shards),
    )
    assert there == here
    assert [(part.shard, part.array) for part in there.bad] == [(0, "image"), (1, "label")]
    assert seen[-1] == (there.checked, there.checked)


def test_a_cache_that_workers_do_not_see_is_named(tmp_path):
    with pytest.raises(ClusterError, match="does not see the cache folder"):
        list(digest_on_workers(ClusterHere(), tmp_path / "elsewhere", [()]))


def test_workers_convert_to_the_same_digest(cache_path, tmp_path):
    quiet = make_progress("none")
    here = convert(cache_path, tmp_path / "here", dtype="int8", progress=quiet)
    cluster = ClusterHere(order=-1, workers=2)
    there = convert(cache_path, tmp_path / "there", dtype="int8", progress=quiet, cluster=cluster)
    assert there == here
    assert cluster.names == ["convert-slices", "convert-prompts", "convert-tracks"]
    assert verify(tmp_path / "there").ok


def test_a_source_is_found_from_any_folder(blocks):
    assert seen_by_all(blocks.data) is blocks.data
    moved = seen_by_all(blocks.data.model_copy(update={"source": "images"}))
    assert Path(moved.source) == Path.cwd() / "images"
