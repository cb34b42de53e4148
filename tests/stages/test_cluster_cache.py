"""Workers fill a cache on an object store: the bytes of a single process in a folder."""

from dataclasses import replace
from functools import partial

import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")

from obstore.store import MemoryStore

from cache import verify, worker_mirror
from cache.copying import upload_cache
from cache.errors import CacheUnreachableError
from cache.mirror import Mirror
from cache.remote import RemoteFolder
from cache.remote_lock import LOCK_OBJECT
from cache.worker_mirror import WorkerMirror
from pipeline.object_store import open_remote
from stages import cluster_cache, cluster_worker, precompute
from stages.cluster_cache import cache_of
from stages.cluster_verify import digest_on_workers
from stages.errors import ClusterError
from tests.cache.example import content_of
from tests.stages.conftest import make_context
from tests.stages.here import ClusterHere

_stores: dict[str, MemoryStore] = {}
BOUND = 700_000


def open_store(name):
    """A store of this process, by its name alone, as an address leads to one elsewhere."""
    store = _stores.setdefault(name, MemoryStore())
    return RemoteFolder(store, f"memory://{name}", reopen=partial(open_store, name))


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    cluster_worker._worker = None
    cluster_worker._teacher = None
    cluster_cache.close_cache()
    _stores.clear()


def run(blocks, folder, cluster):
    with Mirror(folder, open_store("cache"), max_bytes=BOUND) as mirror:
        mirror.sync()
        context = make_context(mirror.path, mirror.path, cluster=cluster, mirror=mirror)
        return precompute.run(blocks.data, blocks.teacher, blocks.cache, blocks.precompute, context)


def test_the_digest_is_that_of_a_single_process_in_a_folder(blocks, reader, tmp_path, monkeypatch):
    opened = []
    original = WorkerMirror.open
    monkeypatch.setattr(WorkerMirror, "open", lambda own: opened.append(own) or original(own))
    cluster = ClusterHere(order=-1, workers=3)
    made = run(blocks, tmp_path / "mirror", cluster)
    assert made.summary["digest"] == reader.digest()
    assert len(opened) == 1  # one process, one mirror, however many tasks
    assert len(cluster.tasks) > 20
    remote = open_store("cache")
    there = {name: remote.read(name)[0] for name in remote.list()}
    assert there == content_of(reader.path)
    assert run(blocks, tmp_path / "mirror", ClusterHere()).summary["digest"] == reader.digest()


def test_shards_of_the_store_are_read_by_workers(cache_path, tmp_path):
    remote = open_store("cache")
    upload_cache(cache_path, remote)
    name = "arrays/image/c/1/0/0/0"
    content = remote.read(name)[0]
    remote.put(name, content[:100] + bytes([content[100] ^ 4]) + content[101:])
    with Mirror(tmp_path / "mirror", remote, max_bytes=BOUND) as mirror:
        mirror.sync()
        here = verify(mirror.path, mirror=mirror)
        assert [(part.array, part.shard) for part in here.bad] == [("image", 1)]
        there = partial(digest_on_workers, ClusterHere(order=-1), mirror.path, reopen=remote.reopen)
        assert verify(mirror.path, mirror=mirror, digest_files=there) == here
        elsewhere = partial(
            digest_on_workers,
            ClusterHere(),
            mirror.path,
            reopen=partial(open_store, "another"),
        )
        with pytest.raises(ClusterError, match=r"finds no cache at memory://another.*AWS_ENDPOINT"):
            verify(mirror.path, mirror=mirror, digest_files=elsewhere)


def test_a_worker_whose_copy_of_the_images_is_another_one_is_refused(blocks, tmp_path):
    class Changed(ClusterHere):
        def run(self, function, tasks, *, name, gpu=False):
            if name == "slices":
                handles = [replace(tasks[0].handles[0], digests=lambda: {"phantom": "0" * 64})]
                tasks = [replace(tasks[0], handles=tuple(handles))]
            return super().run(function, tasks, name=name, gpu=gpu)

    with pytest.raises(ClusterError, match=r"has another phantom than.*data\.source=FOLDER"):
        run(blocks, tmp_path / "mirror", Changed())


@pytest.fixture
def known(tmp_path):
    return WorkerMirror(
        url="memory://empty",
        reopen=partial(open_store, "empty"),
        folder=tmp_path / "workers",
        max_bytes=BOUND,
    )


def test_a_worker_with_another_store_is_named(known, tmp_path):
    with pytest.raises(ClusterError, match=r"finds no cache at memory://empty.*store_options"):
        cache_of(tmp_path, "token", known)
    # Its mirror is free again.
    with known.open() as mirror:
        assert mirror.path.parent.name.endswith("-0")
        assert mirror.remote.read(LOCK_OBJECT) is None


def test_a_folder_that_a_worker_cannot_make_is_named(known, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"cannot use .*file/workers .*cache\.mirror\.path"):
        cache_of(tmp_path, "token", replace(known, folder=tmp_path / "file/workers"))


def test_a_worker_that_does_not_reach_the_store_is_named(known, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(worker_mirror, "_FIRST_ANSWER_S", 0.0)
    options = {"endpoint": "http://127.0.0.1:1", "region": "us-east-1"}
    away = replace(known, reopen=partial(open_remote, "s3://bucket/x", options))
    with pytest.raises(
        CacheUnreachableError, match=r"^worker .*: s3://bucket/x .*AWS_ACCESS_KEY_ID"
    ):
        cache_of(tmp_path, "token", away)
