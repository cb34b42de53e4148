"""Workers write shards of a cache as long as the writer that let them is at work."""

import threading

import pytest

from cache import CacheReader, CacheWriter, worker_token, worker_writer
from cache.errors import CacheLockedError, CacheMissingError
from cache.ledger import entry_path
from cache.worker_token import SHARD_LOCK_SUFFIX, TOKEN_NAME, hold_token
from cache.worker_writer import WorkerWriter
from tests.cache import example


@pytest.fixture
def path(tmp_path):
    return tmp_path / "my.cache"


def open_writer(path):
    return CacheWriter.create_or_resume(path, example.make_spec(), example.make_index())


def arrays_of(writer, space, shard):
    return example.shard_values(writer, space, shard)


def fill_by(worker, writer):
    for space in example.SPACES:
        missing = writer.missing_shards(space)
        worker.assign(space, missing)
        for shard in worker.missing_shards(space):
            worker.write_shard(space, shard, arrays_of(worker, space, shard))
        writer.adopt(space, missing)


def test_a_cache_filled_by_a_worker_is_the_same(path, finished):
    with open_writer(path) as writer:
        worker = WorkerWriter(path, writer.share())
        fill_by(worker, writer)
        assert writer.finish() == CacheReader(finished).digest()
    assert (path / "statistics.json").read_bytes() == (finished / "statistics.json").read_bytes()
    assert not (path / TOKEN_NAME).exists()
    assert not list(path.glob(f"ledger/*{SHARD_LOCK_SUFFIX}"))


def test_a_worker_sees_the_index_and_the_rows(path):
    with open_writer(path) as writer:
        worker = WorkerWriter(path, writer.share())
        assert worker.read_index().content_sha256 == writer.index.content_sha256
        assert worker.counts == writer.index.counts()
        assert worker.rows_of_shard("slices", 1) == writer.rows_of_shard("slices", 1)
        assert worker.missing_shards("slices") == ()
        worker.assign("slices", (0, 2))
        worker.write_shard("slices", 2, arrays_of(worker, "slices", 2))
        assert worker.missing_shards("slices") == (0,)
        assert worker.missing_bytes() == 0


def test_a_published_shard_is_left_as_it_is(path):
    with open_writer(path) as writer:
        token = writer.share()
        one, other = WorkerWriter(path, token), WorkerWriter(path, token)
        arrays = arrays_of(one, "slices", 0)
        one.write_shard("slices", 0, arrays)
        file = entry_path(path, "slices", 0)
        before = file.stat().st_ino
        other.write_shard("slices", 0, arrays)
        assert file.stat().st_ino == before


def test_two_workers_never_write_one_shard_at_a_time(path):
    with open_writer(path) as writer:
        token = writer.share()
        workers = [WorkerWriter(path, token) for _ in range(4)]
        arrays = arrays_of(writer, "slices", 1)
        threads = [
            threading.Thread(target=worker.write_shard, args=("slices", 1, arrays))
            for worker in workers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.adopt("slices", [1])
    assert CacheReader(path).read("image", [5]).shape == (1, 3, example.SIZE, example.SIZE)


@pytest.mark.parametrize("end", ["closed", "another", "replaced"])
def test_an_old_token_publishes_nothing(path, end):
    writer = open_writer(path)
    worker = WorkerWriter(path, writer.share())
    arrays = arrays_of(worker, "slices", 0)
    if end == "another":
        writer.share()
    else:
        writer.close()
    if end == "replaced":
        writer = open_writer(path)
    with pytest.raises(CacheLockedError, match=r"permission to write is over.*precompute"):
        worker.write_shard("slices", 0, arrays)
    with pytest.raises(CacheLockedError, match="permission"):
        WorkerWriter(path, "0" * 32)
    assert not entry_path(path, "slices", 0).exists()
    writer.close()


def test_a_killed_writers_workers_are_refused_by_the_next_one(path):
    writer = open_writer(path)
    worker = WorkerWriter(path, writer.share())
    writer._lock.release()  # what the kernel does for a killed process
    with open_writer(path):
        with pytest.raises(CacheLockedError, match="permission"):
            worker.write_shard("slices", 0, arrays_of(worker, "slices", 0))
        assert not (path / TOKEN_NAME).exists()


def test_a_second_coordinator_is_refused(path):
    with open_writer(path) as writer:
        writer.share()
        with pytest.raises(CacheLockedError, match="is writing this cache"):
            open_writer(path)


def test_a_new_writer_waits_for_a_worker_in_the_middle_of_a_shard(path, monkeypatch):
    writer = open_writer(path)
    token = writer.share()
    writer._lock.release()
    monkeypatch.setattr(worker_token, "PATIENCE_S", 0.05)
    with (
        hold_token(path, token),
        pytest.raises(CacheLockedError, match=r"has been writing a shard.*End the workers"),
    ):
        open_writer(path)
    open_writer(path).close()


def test_a_shard_whose_files_are_not_here_is_not_adopted(path):
    with open_writer(path) as writer:
        worker = WorkerWriter(path, writer.share())
        worker.write_shard("slices", 0, arrays_of(worker, "slices", 0))
        (path / "arrays" / "image" / "c" / "0" / "0" / "0" / "0").unlink()
        with pytest.raises(CacheMissingError, match="name one that all machines share"):
            writer.adopt("slices", [0])
        assert 0 in writer.missing_shards("slices")


def test_an_entry_that_never_comes_is_named(path, monkeypatch):
    monkeypatch.setattr(worker_writer, "SEEN_LATE_S", 0.0)
    with (
        open_writer(path) as writer,
        pytest.raises(CacheMissingError, match=r"000000\.json is missing, though"),
    ):
        writer.adopt("slices", [0])


def test_no_cache_no_worker(path):
    with pytest.raises(CacheMissingError, match="no cache here"):
        WorkerWriter(path, "0")
