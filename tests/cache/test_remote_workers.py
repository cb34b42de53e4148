"""Workers upload shards of a cache on an object store; its writer alone publishes them."""

import pickle
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from cache import CacheReader, CacheWriter, verify
from cache.copying import download_cache
from cache.errors import CacheCorruptError, CacheLockedError, CacheMissingError
from cache.mirror import Mirror
from cache.remote_claims import RemotePermission
from cache.remote_lock import LOCK_OBJECT, unlock
from cache.worker_mirror import WorkerMirror
from cache.worker_writer import WorkerWriter
from pipeline.object_store import open_remote
from tests.cache import example

BOUND = 12_000  # a shard of slices takes 7 740 bytes, the whole cache 57 kB


class KilledError(Exception):
    """A worker is killed here."""


@contextmanager
def coordinator(folder, remote, **changes):
    """The writer of a remote cache and the token of its workers."""
    with (
        Mirror(folder, remote, max_bytes=BOUND) as mirror,
        CacheWriter.create_or_resume(
            mirror.path, example.make_spec(**changes), example.make_index(), mirror=mirror
        ) as writer,
    ):
        yield writer, mirror


@contextmanager
def worker(writer, mirror):
    """A worker's writer, as on another machine."""
    known = pickle.loads(pickle.dumps(WorkerMirror.beside(mirror)))
    with known.open() as own:
        yield WorkerWriter(own.path, writer.share(), mirror=own)


def values(writer, shard=0):
    return example.shard_values(writer, "slices", shard)


def others(writer, shard=0):
    """What a machine of another kind makes of a shard."""
    return {name: np.flip(rows, axis=-1).copy() for name, rows in values(writer, shard).items()}


def write_all(writer, workers):
    for space in example.SPACES:
        for shard in writer.missing_shards(space):
            one = workers[shard % len(workers)]
            one.assign(space, (shard,))
            assert one.missing_shards(space) == (shard,)
            one.write_shard(space, shard, example.shard_values(one, space, shard))
            assert one.missing_shards(space) == ()
            assert shard in writer.missing_shards(space)
            writer.adopt(space, [shard])


def of_workers(remote):
    return sorted(remote.list("workers"))


@pytest.mark.parametrize("form", ["zarr", "hdf5"])
def test_what_workers_write_is_what_is_written_to_a_folder(tmp_path, bucket, finished, form):
    bound = 3 * BOUND
    remote, spec = bucket(), example.make_spec(format=form)
    with Mirror(tmp_path / "mirror", remote, max_bytes=bound) as mirror:
        with CacheWriter.create_or_resume(
            mirror.path, spec, example.make_index(), mirror=mirror
        ) as writer:
            with worker(writer, mirror) as one, worker(writer, mirror) as other:
                assert one.path != other.path
                write_all(writer, [one, other])
                reader = CacheReader(other.path, mirror=other._shards._mirror)
                assert len(reader.finished_rows("slices")) == 0  # it was opened before
                other._shards._mirror.sync()
                reader = CacheReader(other.path, mirror=other._shards._mirror)
                array = reader.spec.array("image")
                wanted = np.arange(reader.counts["slices"])
                assert (reader.read("image", wanted) == example.values_of(array, wanted)).all()
                figures = other._shards._mirror.figures()
                assert 0 < figures.peak_bytes <= bound
            digest = writer.finish()
        assert mirror.figures().peak_bytes == 0
    local = example.make_cache(tmp_path / "local", format=form)
    assert digest == local.digest()
    content = example.content_of(tmp_path / "local")
    assert {name: remote.read(name)[0] for name in remote.list()} == content


def test_a_worker_takes_the_folder_that_another_one_has_left(tmp_path, bucket):
    with coordinator(tmp_path / "mirror", bucket()) as (writer, mirror):
        with worker(writer, mirror) as one, worker(writer, mirror) as other:
            places = {one.path, other.path}
            assert len(places) == 2
            assert all((tmp_path / "mirror/workers") in path.parents for path in places)
        with worker(writer, mirror) as again:
            assert again.path in places


def test_a_worker_that_cannot_sync_leaves_its_folder_free(tmp_path, bucket, monkeypatch):
    def fail(mirror):
        raise KilledError

    with coordinator(tmp_path / "mirror", bucket()) as (_, mirror):
        known = WorkerMirror.beside(mirror)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(Mirror, "sync", fail)
                with pytest.raises(KilledError):
                    known.open()
        with known.open() as own:
            assert [folder.name for folder in known.folder.iterdir()] == [own.path.parent.name]


def test_no_credential_goes_to_another_machine(tmp_path, server, bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-word")
    monkeypatch.setenv("AWS_ENDPOINT", server.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    remote = open_remote("s3://bucket/nothing", {})
    with Mirror(tmp_path / "mirror", remote, max_bytes=BOUND) as mirror:
        sent = pickle.dumps(WorkerMirror.beside(mirror))
    assert b"hidden-word" not in sent
    assert server.url.encode() in sent
    monkeypatch.delenv("AWS_ENDPOINT")
    monkeypatch.delenv("AWS_REGION")
    assert pickle.loads(sent).reopen().list() == {}


def test_a_killed_workers_shard_is_made_by_another_one(tmp_path, bucket, monkeypatch):
    remote = bucket()
    with (
        coordinator(tmp_path / "mirror", remote) as (writer, mirror),
        worker(writer, mirror) as first,
        worker(writer, mirror) as second,
    ):

        def die(claim, entry):
            raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr("cache.remote_claims._Claim.hand_in", die)
            with pytest.raises(KilledError):  # its files have arrived, and they are others
                first.write_shard("slices", 0, others(first))
        assert remote.list("arrays/image/c")
        assert len(of_workers(remote)) == 1
        assert not second._permission.is_made("slices", 0)
        with pytest.raises(CacheMissingError, match=r"handed in slices shard 0.*AWS_\*"):
            writer.adopt("slices", [0])
        second.write_shard("slices", 0, values(second))
        writer.adopt("slices", [0])
        second.write_shard("slices", 0, others(second))  # as if its task were given once more
        digest = example.fill(writer)
    assert digest == example.make_cache(tmp_path / "local").digest()
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=BOUND) as mirror:
        mirror.sync()
        assert verify(mirror.path, mirror=mirror).ok
    assert of_workers(remote) == []


def test_a_worker_that_lost_its_shard_and_wakes_up_changes_nothing(tmp_path, bucket):
    remote = bucket()
    with (
        coordinator(tmp_path / "mirror", remote) as (writer, mirror),
        worker(writer, mirror) as first,
        worker(writer, mirror) as second,
    ):
        with first._permission.shard("slices", 0) as hand_in:
            second.write_shard("slices", 0, values(second))
            with pytest.raises(CacheLockedError, match="another worker was given this shard"):
                first._shards.write("slices", 0, others(first), publish=hand_in)
        with first._permission.shard("slices", 1) as hand_in:
            with second._permission.shard("slices", 1):
                pass  # taken over, not a byte uploaded
            with pytest.raises(CacheLockedError, match="another worker was given this shard"):
                first._shards.write("slices", 1, values(first, 1), publish=hand_in)
        assert not list(first.path.glob("arrays/image/c/*/*/*/*"))
        writer.adopt("slices", [0])
        assert writer.missing_shards("slices") == (1, 2, 3, 4, 5)
        digest = example.fill(writer)
    assert digest == example.make_cache(tmp_path / "local").digest()
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=BOUND) as mirror:
        mirror.sync()
        assert verify(mirror.path, mirror=mirror).ok


def test_workers_of_a_killed_coordinator_are_refused_and_their_shards_taken_over(tmp_path, bucket):
    remote = bucket()
    with (
        Mirror(tmp_path / "first", remote, max_bytes=BOUND) as mirror,
        worker_of_a_coordinator_to_be_killed(mirror) as one,
    ):
        one.write_shard("slices", 2, values(one, 2))
        with one._permission.shard("slices", 0) as hand_in:
            unlock(remote, force=True)
            with coordinator(tmp_path / "second", bucket()) as (writer, _):
                assert writer.missing_shards("slices") == (0, 1, 3, 4, 5)
                assert of_workers(remote) == []
                writer.write_shard("slices", 0, values(writer))
                with pytest.raises(CacheLockedError, match=r"permission to write is over.*AWS_"):
                    one._shards.write("slices", 0, others(one), publish=hand_in)
                with pytest.raises(CacheLockedError, match="permission to write is over"):
                    one.write_shard("slices", 1, values(one, 1))
                digest = example.fill(writer)
    assert digest == example.make_cache(tmp_path / "local").digest()
    assert not [name for name in remote.list() if name.startswith("workers/")]
    with Mirror(tmp_path / "third", bucket(), max_bytes=BOUND) as mirror:
        mirror.sync()
        assert verify(mirror.path, mirror=mirror).ok


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_what_workers_have_uploaded_outlives_the_header(tmp_path, bucket, damage):
    remote = bucket()
    with (
        Mirror(tmp_path / "first", remote, max_bytes=BOUND) as mirror,
        worker_of_a_coordinator_to_be_killed(mirror) as one,
    ):
        one.write_shard("slices", 2, values(one, 2))
    unlock(remote, force=True)
    if damage == "gone":
        remote.delete("cache.json")
    else:
        remote.put("cache.json", b"{")
        with (
            pytest.raises(CacheCorruptError, match=r"cache\.json is damaged"),
            coordinator(tmp_path / "second", bucket()),
        ):
            pass
        remote.delete("cache.json")
    with coordinator(tmp_path / "second", bucket()) as (writer, _):
        assert writer.missing_shards("slices") == (0, 1, 3, 4, 5)
        assert of_workers(remote) == []
        assert example.fill(writer) == example.make_cache(tmp_path / "local").digest()


@contextmanager
def worker_of_a_coordinator_to_be_killed(mirror):
    writer = CacheWriter.create_or_resume(
        mirror.path, example.make_spec(), example.make_index(), mirror=mirror
    )
    try:
        with worker(writer, mirror) as one:
            yield one
    finally:
        writer._lock.release()
        writer._remote_lock._stop.set()
        writer._remote_lock._thread.join()


def test_an_ended_coordinators_workers_are_refused(tmp_path, bucket):
    remote = bucket()
    with (
        coordinator(tmp_path / "mirror", remote) as (writer, mirror),
        worker(writer, mirror) as one,
    ):
        token = writer.share()
        writer.close()
        with pytest.raises(
            CacheLockedError, match=r"permission to write is over.*-c CONFIG --set cache\.path=s3:"
        ):
            one.write_shard("slices", 0, values(one))
        with pytest.raises(CacheLockedError, match="permission to write is over"):
            RemotePermission(mirror, token).check()
    assert not [name for name in remote.list() if name.startswith(("workers", "arrays/image/c"))]
    assert remote.read(LOCK_OBJECT) is None


def test_what_workers_tell_is_no_part_of_the_cache(tmp_path, bucket):
    remote = bucket()
    with (
        coordinator(tmp_path / "mirror", remote) as (writer, mirror),
        worker(writer, mirror) as one,
    ):
        one.write_shard("slices", 0, values(one))
    remote.put("workers/ab/slices-000001.json", b'{"entry":{}}')
    remote.put("workers/ab/slices-000002.json", b'{"claim":"x"}')
    remote.put("workers/notes.txt", b"")
    assert len(of_workers(remote)) == 4
    download_cache(bucket(), tmp_path / "copy")
    with Mirror(tmp_path / "reader", bucket(), max_bytes=BOUND) as mirror:
        mirror.sync()
        for path in (tmp_path / "copy", mirror.path):
            assert not (path / "workers").exists()
            assert len(CacheReader(path).finished_rows("slices")) == 0
    with coordinator(tmp_path / "mirror", remote) as (writer, mirror):
        assert writer.missing_shards("slices") == (1, 2, 3, 4, 5)
        assert of_workers(remote) == []


def test_an_upload_that_arrives_damaged_is_named(tmp_path, bucket, monkeypatch):
    with (
        coordinator(tmp_path / "mirror", bucket()) as (writer, mirror),
        worker(writer, mirror) as one,
    ):
        remote = one._shards._mirror.remote
        put = remote.put_if_absent

        def flip(name, content):
            return put(name, content[:-1] + b"?" if name.startswith("arrays/image") else content)

        monkeypatch.setattr(remote, "put_if_absent", flip)
        with pytest.raises(CacheCorruptError, match=r"arrays/image.* holds other bytes than were"):
            one.write_shard("slices", 0, values(one))
        assert not one._permission.is_made("slices", 0)
