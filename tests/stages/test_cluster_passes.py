"""Shards made by workers: the bytes of a single process, whatever the order and the tasks."""

from dataclasses import replace

import pytest

from cache import discard_bad, verify
from cache.worker_token import TOKEN_NAME
from stages import cluster_worker, precompute
from stages.cluster import shard_runs
from stages.errors import ClusterError
from stages.side_files import PROGRESS_NAME
from tests.stages.conftest import make_context
from tests.stages.here import ClusterHere


@pytest.fixture(autouse=True)
def _no_worker_is_left():
    yield
    cluster_worker._worker = None
    cluster_worker._teacher = None


def run(blocks, path, cluster, **changes):
    path.mkdir(exist_ok=True)
    context = make_context(path, path, cluster=cluster, **changes)
    made = precompute.run(blocks.data, blocks.teacher, blocks.cache, blocks.precompute, context)
    return made, context


@pytest.mark.parametrize(("order", "workers"), [(1, 1), (-1, 100)])
def test_the_digest_is_that_of_a_single_process(blocks, reader, tmp_path, order, workers):
    cluster = ClusterHere(order=order, workers=workers)
    made, context = run(blocks, tmp_path / "cache", cluster)
    assert made.summary["digest"] == reader.digest()
    assert cluster.names == ["batch-size", "slices", "prompts", "tracks"]
    for name in ("statistics.json", PROGRESS_NAME, "files.json", "splits.json"):
        if (reader.path / name).exists():
            assert (tmp_path / "cache" / name).read_bytes() == (reader.path / name).read_bytes()
    assert verify(tmp_path / "cache").ok
    assert not (tmp_path / "cache" / TOKEN_NAME).exists()
    lines = [line for line in context.progress.lines if "rows/s" in line]
    assert len(lines) == 3
    assert ": 0 rows" not in lines[0]


def test_only_what_is_missing_becomes_a_task(blocks, reader, tmp_path):
    path = tmp_path / "cache"
    run(blocks, path, ClusterHere())
    file = path / "arrays" / "track_mask_logits" / "c" / "1" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-1])
    discard_bad(path, verify(path))
    cluster = ClusterHere()
    made, _ = run(blocks, path, cluster)
    assert made.summary["digest"] == reader.digest()
    assert [(task.space, task.shards, task.handles) for task in cluster.tasks] == [
        ("tracks", (1,), ())
    ]


def test_a_task_takes_the_cases_of_its_slices_along(blocks, reader, tmp_path):
    cluster = ClusterHere(workers=100)
    run(blocks, tmp_path / "cache", cluster)
    table = reader.index.slices
    for task in cluster.tasks:
        if isinstance(task, cluster_worker.ShardTask) and task.space == "slices":
            (shard,) = task.shards
            rows = range(shard * 8, min(shard * 8 + 8, len(table)))
            wanted = {reader.index.slice_row(row).case_id for row in rows}
            assert {handle.case_id for handle in task.handles} == wanted


def test_a_teacher_is_loaded_once_in_a_process(blocks, tmp_path, monkeypatch):
    from efficient_medsam2.teachers import load

    loaded = []
    original = load.load_teacher
    monkeypatch.setattr(load, "load_teacher", lambda *a, **k: loaded.append(a) or original(*a, **k))
    run(blocks, tmp_path / "cache", ClusterHere(workers=100))
    assert len(loaded) == 2  # the coordinator's, and the one of this "worker"


def broken(tmp_path, blocks, **changes):
    """A cluster that changes each job before it runs."""

    class Changed(ClusterHere):
        def run(self, function, tasks, *, name, gpu=False):
            if name != "batch-size":
                tasks = [replace(t, job=replace(t.job, **changes)) for t in tasks]
            return super().run(function, tasks, name=name, gpu=gpu)

    run(blocks, tmp_path / "cache", Changed())


def test_a_worker_with_other_packages_is_refused(blocks, tmp_path):
    versions = cluster_worker.package_versions() | {"torch": "0.1"}
    with pytest.raises(ClusterError, match=r"torch .*coordinator: 0\.1.*same packages"):
        broken(tmp_path, blocks, versions=versions)


def test_a_worker_with_other_weights_is_refused(blocks, tmp_path):
    with pytest.raises(ClusterError, match=r"other weights of scratch.*teacher\.checkpoint=FILE"):
        broken(tmp_path, blocks, weights_sha256="1" * 64)


def test_a_folder_that_workers_do_not_see_is_named(blocks, tmp_path):
    with pytest.raises(ClusterError, match=r"does not see the cache folder.*cache\.path"):
        broken(tmp_path, blocks, cache=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("shards", "workers", "wanted"),
    [
        ((), 1, []),
        ((0, 1, 2), 1, [(0,), (1,), (2,)]),
        (range(8), 1, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ((0, 1, 2, 5, 6, 7, 8, 9), 1, [(0, 1), (2,), (5, 6), (7, 8), (9,)]),
        (range(3), 40, [(0,), (1,), (2,)]),
    ],
)
def test_tasks_are_runs_of_neighbouring_shards(shards, workers, wanted):
    assert shard_runs(tuple(shards), workers=workers) == wanted


def test_no_run_is_longer_than_sixteen_shards():
    assert {len(run) for run in shard_runs(range(1000), workers=2)} == {16, 1000 % 16}
