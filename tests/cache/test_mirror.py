"""Caches on a real S3 server in a process of its own, which is killed and comes back."""

import json
import os
import pickle
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from cache import (
    CacheCorruptError,
    CacheLockedError,
    CacheMissingError,
    CacheReader,
    CacheSpaceError,
    CacheStaleError,
    CacheUnreachableError,
    CacheWriter,
    discard_bad,
    verify,
)
from cache.copying import download_cache, upload_cache
from cache.mirror import Mirror
from cache.remote_lock import LOCK_OBJECT, RemoteLock, unlock
from cache.side_files import checked_folder, record_side_files
from pipeline.object_store import open_remote
from tests.cache import example

BOUND = 12_000  # a shard of slices takes 7 740 bytes, the whole cache 57 kB


def make_remote(folder, remote, *, bound=BOUND, **changes):
    with (
        Mirror(folder, remote, max_bytes=bound) as mirror,
        CacheWriter.create_or_resume(
            mirror.path, example.make_spec(**changes), example.make_index(), mirror=mirror
        ) as writer,
    ):
        digest = example.fill(writer)
        return digest, mirror.figures()


def check_all(reader, *, batch=3):
    for array in reader.spec.arrays:
        rows = np.random.default_rng(0).permutation(reader.counts[array.rows])
        for start in range(0, len(rows), batch):
            wanted = rows[start : start + batch]
            given = reader.read(array.name, wanted)
            assert (given == example.values_of(array, wanted)).all()


@pytest.mark.parametrize("form", ["zarr", "hdf5"])
def test_what_is_written_through_a_mirror_is_what_is_written_to_a_folder(tmp_path, bucket, form):
    local = example.make_cache(tmp_path / "local", format=form)
    remote = bucket()
    digest, figures = make_remote(tmp_path / "mirror", remote, format=form, bound=3 * BOUND)
    assert digest == local.digest()
    assert figures.peak_bytes <= 3 * BOUND
    assert figures.evicted > 0
    objects = remote.list()
    assert set(objects) == set(example.content_of(tmp_path / "local"))
    for name, content in example.content_of(tmp_path / "local").items():
        assert remote.read(name)[0] == content
    with Mirror(tmp_path / "other", bucket(), max_bytes=3 * BOUND) as mirror:
        mirror.sync()
        reader = CacheReader(mirror.path, mirror=mirror)
        assert reader.complete
        assert reader.digest() == digest
        check_all(reader)
        assert mirror.figures().peak_bytes <= 3 * BOUND


def shard_bytes(mirror, folder):
    """What lies there at one moment, each file once, whichever of its two names it has just then.

    Removal needs the room's lock, so while that is held files come and grow, and none goes.
    """
    with mirror.room._changed:
        found = {}
        for part in (folder / "state" / "arriving", folder / "cache" / "arrays"):
            for place, _, files in os.walk(part):
                for file in files:
                    with suppress(FileNotFoundError):  # it got its other name
                        status = (Path(place) / file).stat()
                        if file != "zarr.json":
                            found[status.st_ino] = status.st_size
        return sum(found.values()), len(found)


def test_the_bound_holds_at_every_moment_and_shards_come_again(tmp_path, bucket):
    make_remote(tmp_path / "writer", bucket())
    folder = tmp_path / "mirror"
    with Mirror(folder, bucket(), max_bytes=BOUND) as mirror:
        mirror.sync()
        reader = CacheReader(mirror.path, mirror=mirror)
        stop, seen = threading.Event(), []

        def watch():
            while not (seen and stop.is_set()):
                seen.append(shard_bytes(mirror, folder)[0])

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        readers = [threading.Thread(target=check_all, args=(reader,)) for _ in range(3)]
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join()
        assert 0 < shard_bytes(mirror, folder)[0] == mirror.figures().bytes
        reader.expect(["image", "label"], np.arange(28))
    stop.set()
    watcher.join()
    figures = mirror.figures()
    assert max(seen) <= BOUND
    assert figures.peak_bytes <= BOUND
    assert shard_bytes(mirror, folder) == (figures.bytes, figures.fetched - figures.evicted)
    assert figures.evicted > 10


def test_small_files_are_fetched_once_and_shards_stay(tmp_path, bucket, monkeypatch):
    make_remote(tmp_path / "writer", bucket())
    for fetched in (52, 0):
        with Mirror(tmp_path / "mirror", bucket(), max_bytes=1_000_000) as mirror:
            read = mirror.remote.read
            asked = []

            def record(name, read=read, asked=asked):
                asked.append(name)
                return read(name)

            monkeypatch.setattr(mirror.remote, "read", record)
            mirror.sync()
            check_all(CacheReader(mirror.path, mirror=mirror))
            assert bool(asked) == bool(fetched)
            assert mirror.figures().fetched == fetched


def test_a_store_that_is_killed_and_comes_back_costs_time_only(tmp_path, bucket, server):
    remote = bucket()
    with (
        Mirror(tmp_path / "writer", remote, max_bytes=BOUND) as mirror,
        CacheWriter.create_or_resume(
            mirror.path, example.make_spec(), example.make_index(), mirror=mirror
        ) as writer,
    ):
        for k in writer.missing_shards("slices")[:2]:
            writer.write_shard("slices", k, example.shard_values(writer, "slices", k))
        server.kill()
        back = threading.Timer(1.0, server.start)
        back.start()
        digest = example.fill(writer)
        back.join()
    with Mirror(tmp_path / "reader", bucket(), max_bytes=BOUND) as mirror:
        mirror.sync()
        reader = CacheReader(mirror.path, mirror=mirror)
        assert reader.digest() == digest == example.make_cache(tmp_path / "local").digest()
        reader.read("image", [0])
        server.kill()
        back = threading.Timer(1.0, server.start)
        back.start()
        check_all(reader)
        back.join()


def test_another_machine_goes_on_where_a_killed_writer_stopped(tmp_path, bucket, start):
    remote = bucket()
    with Mirror(tmp_path / "first", remote, max_bytes=BOUND) as mirror:
        writer = CacheWriter.create_or_resume(
            mirror.path, example.make_spec(), example.make_index(), mirror=mirror
        )
        for k in (0, 2):
            writer.write_shard("slices", k, example.shard_values(writer, "slices", k))
        writer.close()
    with (
        Mirror(tmp_path / "second", bucket(), max_bytes=BOUND) as mirror,
        CacheWriter.create_or_resume(
            mirror.path, example.make_spec(), example.make_index(), mirror=mirror
        ) as writer,
    ):
        assert writer.missing_shards("slices") == (1, 3, 4, 5)
        assert writer.discarded == ()
        reader = CacheReader(mirror.path, mirror=mirror)
        assert reader.finished_rows("slices").tolist() == [*range(5), *range(10, 15)]
        assert (
            reader.read("image", [11]) == example.values_of(reader.spec.array("image"), [11])
        ).all()
        digest = example.fill(writer)
    assert digest == example.make_cache(tmp_path / "local").digest()


def test_a_shard_that_never_arrived_is_not_finished(tmp_path, bucket, monkeypatch):
    with (
        Mirror(tmp_path / "mirror", bucket(), max_bytes=BOUND) as mirror,
        CacheWriter.create_or_resume(
            mirror.path, example.make_spec(), example.make_index(), mirror=mirror
        ) as writer,
    ):
        put = mirror.remote.put

        def refuse(name, content):
            if name.startswith("arrays/features_s8"):
                raise CacheUnreachableError("away")
            return put(name, content)

        monkeypatch.setattr(mirror.remote, "put", refuse)
        with pytest.raises(CacheUnreachableError, match="away"):
            writer.write_shard("slices", 0, example.shard_values(writer, "slices", 0))
        assert 0 in writer.missing_shards("slices")
        assert mirror.figures().bytes == 0
        assert not [name for name in mirror.remote.list() if name.startswith("ledger/")]
        monkeypatch.setattr(mirror.remote, "put", put)
        assert example.fill(writer) == example.make_cache(tmp_path / "local").digest()


def test_damage_in_the_store_is_named_found_and_mended(tmp_path, bucket):
    remote = bucket()
    make_remote(tmp_path / "mirror", remote)
    name = "arrays/image/c/1/0/0/0"
    content = bytearray(remote.read(name)[0])
    content[100] ^= 1
    remote.put(name, bytes(content))
    with Mirror(tmp_path / "other", bucket(), max_bytes=BOUND) as mirror:
        mirror.sync()
        reader = CacheReader(mirror.path, mirror=mirror)
        assert reader.read("image", [0]).any()
        with pytest.raises(
            CacheCorruptError, match=rf"s3://.*{name} has other bytes.*cache repair s3:"
        ):
            reader.read("image", [5])
        mirror.remote.delete("arrays/label/c/0/0/0")
        report = verify(mirror.path, mirror=mirror)
        assert [(part.array, part.shard) for part in report.bad] == [("label", 0), ("image", 1)]
        assert len(discard_bad(mirror.path, report, mirror=mirror)) == 2
    digest, _ = make_remote(tmp_path / "third", bucket())
    assert digest == example.make_cache(tmp_path / "local").digest()
    with Mirror(tmp_path / "other", bucket(), max_bytes=BOUND) as mirror:
        mirror.sync()
        assert verify(mirror.path, mirror=mirror).ok


def test_a_copy_that_is_damaged_here_is_fetched_again(tmp_path, bucket):
    make_remote(tmp_path / "writer", bucket())
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=1_000_000) as mirror:
        mirror.sync()
        reader = CacheReader(mirror.path, mirror=mirror)
        reader.read("image", [6])
    file = mirror.path / "arrays/image/c/1/0/0/0"
    content = bytearray(file.read_bytes())
    content[900] ^= 1
    file.write_bytes(content)
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=1_000_000) as mirror:
        mirror.sync()
        reader = CacheReader(mirror.path, mirror=mirror)
        wanted = example.values_of(reader.spec.array("image"), [6])
        assert (reader.read("image", [6]) == wanted).all()
        assert mirror.figures().fetched == 1


def test_another_cache_in_the_same_place_is_noticed(tmp_path, bucket):
    make_remote(tmp_path / "writer", bucket())
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=1_000_000) as mirror:
        mirror.sync()
        check_all(CacheReader(mirror.path, mirror=mirror))
    spec = example.make_spec(data_sha256="e" * 64)
    with Mirror(tmp_path / "writer", bucket(), max_bytes=BOUND) as mirror:
        with pytest.raises(CacheStaleError, match="data_sha256"):
            CacheWriter.create_or_resume(mirror.path, spec, example.make_index(), mirror=mirror)
        assert mirror.remote.read(LOCK_OBJECT) is None
        with CacheWriter.create_or_resume(
            mirror.path, spec, example.make_index(), mirror=mirror, replace=True
        ) as writer:
            assert len(writer.missing_shards("slices")) == 6
            example.fill(writer)
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=1_000_000) as mirror:
        mirror.sync()
        reader = CacheReader(mirror.path, mirror=mirror)
        assert reader.spec.data_sha256 == "e" * 64
        check_all(reader)
        assert mirror.figures().fetched > 0


def test_one_writer_and_one_user_of_a_mirror(tmp_path, bucket):
    remote = bucket()
    lock = RemoteLock(remote, beat_seconds=0.05)
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=BOUND) as mirror:
        with pytest.raises(CacheLockedError, match="cache unlock s3://bucket/"):
            CacheWriter.create_or_resume(
                mirror.path, example.make_spec(), example.make_index(), mirror=mirror
            )
        with (
            Mirror(tmp_path / "mirror", bucket(), max_bytes=BOUND) as second,
            pytest.raises(CacheLockedError, match=r"cache\.mirror\.path=FOLDER"),
        ):
            second.lock_for_writing()
    with pytest.raises(CacheLockedError, match="--force"):
        unlock(remote)
    first = remote.read(LOCK_OBJECT)[1].e_tag
    deadline = time.monotonic() + 300
    while remote.read(LOCK_OBJECT)[1].e_tag == first and time.monotonic() < deadline:
        time.sleep(0.02)
    assert remote.read(LOCK_OBJECT)[1].e_tag != first
    lock.check()
    assert "removed the lock of process" in unlock(remote, force=True)
    deadline = time.monotonic() + 300
    while lock._problem is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(CacheLockedError, match="removed or took over"):
        lock.check()
    lock.release()
    assert "is not locked" in unlock(remote)


def test_the_lock_of_a_process_that_died_here_is_taken_over(bucket, start):
    remote = bucket()
    ended = start("-c", "pass")
    ended.wait()
    holder = {"host": socket.gethostname(), "process": ended.pid, "token": "x", "renewed": 0}
    remote.put(LOCK_OBJECT, json.dumps(holder).encode())
    lock = RemoteLock(remote)
    lock.release()
    assert remote.read(LOCK_OBJECT) is None
    remote.put(LOCK_OBJECT, json.dumps({**holder, "host": "elsewhere"}).encode())
    with pytest.raises(CacheLockedError, match="on elsewhere is writing"):
        RemoteLock(remote)


def test_a_bound_that_no_shard_fits_is_refused(tmp_path, bucket):
    make_remote(tmp_path / "writer", bucket())
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=1000) as mirror:
        mirror.sync()
        reader = CacheReader(mirror.path, mirror=mirror)
        with pytest.raises(CacheSpaceError, match=r"cache\.mirror\.max_gb"):
            reader.read("image", [0])
        with pytest.raises(TypeError, match="one process"):
            pickle.dumps(reader)


def test_copies_in_both_directions(tmp_path, bucket):
    local = example.make_cache(tmp_path / "local")
    (tmp_path / "local" / "teacher").mkdir()
    (tmp_path / "local" / "teacher" / "config.json").write_text("{}")
    with CacheWriter.create_or_resume(
        tmp_path / "local", example.make_spec(), example.make_index()
    ) as writer:
        record_side_files(tmp_path / "local", ["teacher/config.json"])
        writer.finish()
    remote = bucket()
    shards = upload_cache(tmp_path / "local", remote)
    assert shards == 11
    assert upload_cache(tmp_path / "local", bucket()) == 0
    assert download_cache(bucket(), tmp_path / "back") == shards
    assert download_cache(bucket(), tmp_path / "back") == 0
    assert example.content_of(tmp_path / "back") == example.content_of(tmp_path / "local")
    assert CacheReader(tmp_path / "back").digest() == local.digest()
    report = verify(tmp_path / "back")
    assert (report.ok, report.side_files) == (True, 1)
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=BOUND) as mirror:
        mirror.sync()
        assert checked_folder(mirror.path, "teacher").is_dir()
    (tmp_path / "back" / "teacher" / "config.json").write_text("[]")
    with pytest.raises(CacheCorruptError, match=r"teacher/config\.json has other bytes"):
        upload_cache(tmp_path / "back", bucket("damaged"))
    example.make_cache(tmp_path / "another", data_sha256="e" * 64)
    with pytest.raises(CacheStaleError, match="another cache"):
        upload_cache(tmp_path / "another", bucket())
    with pytest.raises(CacheStaleError, match="another cache"):
        download_cache(bucket(), tmp_path / "another")
    with pytest.raises(CacheMissingError, match="no cache here"):
        download_cache(bucket("nothing"), tmp_path / "nothing")


def test_a_bucket_that_does_not_exist_is_said_at_once(tmp_path, server, bucket):
    remote = open_remote("s3://no-such-bucket/x", server.options)
    with (
        Mirror(tmp_path / "mirror", remote, max_bytes=BOUND) as mirror,
        pytest.raises(CacheUnreachableError, match=r"no-such-bucket.*cache\.store_options"),
    ):
        mirror.sync()
