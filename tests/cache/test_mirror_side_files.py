"""Files beside the rows of a cache on an object store are written anew, and that is stopped."""

import os

import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from cache import CacheCorruptError, CacheLockedError, CacheReader, CacheWriter, verify
from cache.mirror import Mirror
from cache.side_files import checked_folder, record_side_files
from tests.cache import example

NAME = "teacher/config.json"


def write(folder, remote, text):
    """Write the cache, or a teacher's folder into the one that is there."""
    with (
        Mirror(folder, remote, max_bytes=100_000) as mirror,
        CacheWriter.create_or_resume(
            mirror.path, example.make_spec(), example.make_index(), mirror=mirror
        ) as writer,
    ):
        (mirror.path / NAME).parent.mkdir(exist_ok=True)
        (mirror.path / NAME).write_text(text)
        record_side_files(mirror.path, [NAME])
        example.fill(writer)


@pytest.mark.parametrize("killed_at", range(5))
def test_a_store_never_declares_what_is_not_there(tmp_path, bucket, killed_upload, killed_at):
    write(tmp_path / "mirror", bucket(), "one")
    remote = bucket()
    with killed_upload(remote, killed_at):
        write(tmp_path / "mirror", remote, "other")
    with Mirror(tmp_path / "reader", bucket(), max_bytes=100_000) as mirror:
        mirror.sync()
        report = verify(mirror.path, mirror=mirror)
        assert report.ok or not report.finished
        assert not CacheReader(mirror.path, mirror=mirror).complete
    write(tmp_path / "mirror", bucket(), "other")
    with Mirror(tmp_path / "reader", bucket(), max_bytes=100_000) as mirror:
        mirror.sync()
        assert verify(mirror.path, mirror=mirror).ok
        assert CacheReader(mirror.path, mirror=mirror).complete
        assert (checked_folder(mirror.path, "teacher") / "config.json").read_text() == "other"


@pytest.mark.parametrize(
    "name", [NAME, "index/slices.parquet", "arrays/image/zarr.json", "cache.json"]
)
def test_what_is_damaged_on_this_disk_alone_is_fetched_again(tmp_path, bucket, name):
    write(tmp_path / "writer", bucket(), "one")
    with Mirror(tmp_path / "reader", bucket(), max_bytes=100_000) as mirror:
        mirror.sync()
        file = mirror.path / name
        whole, status = file.read_bytes(), file.stat()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        mirror.sync()
        if name == "cache.json":
            with pytest.raises(CacheCorruptError, match=r"cache\.json is damaged"):
                verify(mirror.path)
        else:
            assert not verify(mirror.path).ok
        assert verify(mirror.path, mirror=mirror).ok
        assert file.read_bytes() == whole


def test_a_mark_that_goes_while_it_is_asked_for_goes_here_too(tmp_path, bucket, monkeypatch):
    write(tmp_path / "writer", bucket(), "one")
    with Mirror(tmp_path / "reader", bucket(), max_bytes=100_000) as mirror:
        mirror.sync()
        write(tmp_path / "writer", bucket(), "other")
        read = mirror.remote.read
        monkeypatch.setattr(
            mirror.remote, "read", lambda name: None if name == "complete.json" else read(name)
        )
        mirror.sync()
        assert not CacheReader(mirror.path, mirror=mirror).complete
        assert (checked_folder(mirror.path, "teacher") / "config.json").read_text() == "other"


def test_who_only_looks_touches_nothing_of_a_writer_at_work(tmp_path, bucket):
    write(tmp_path / "mirror", bucket(), "one")
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=100_000) as mirror:
        writer = CacheWriter.create_or_resume(
            mirror.path, example.make_spec(), example.make_index(), mirror=mirror
        )
        (mirror.path / NAME).write_text("other")
        (mirror.path / "teacher" / "new.json").write_text("new")
        with Mirror(tmp_path / "mirror", bucket(), max_bytes=100_000) as looking:
            looking.sync()
            assert CacheReader(looking.path).complete
        assert (mirror.path / NAME).read_text() == "other"
        assert (mirror.path / "teacher" / "new.json").read_text() == "new"
        writer.close()
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=100_000) as looking:
        looking.sync()
        assert (looking.path / NAME).read_text() == "one"


def test_who_only_looks_waits_for_a_first_fetch(tmp_path, bucket):
    with Mirror(tmp_path / "mirror", bucket(), max_bytes=100_000) as mirror:
        _ = mirror.room
        with (
            Mirror(tmp_path / "mirror", bucket(), max_bytes=100_000) as looking,
            pytest.raises(CacheLockedError, match="Type the command again in a moment"),
        ):
            looking.sync()
