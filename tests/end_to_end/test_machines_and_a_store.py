"""Precompute on workers into a cache on an object store, and train from it: no shared cache folder.

The store holds uploads back at chosen moments, so that a worker is killed in the middle of a shard
and not a moment sooner or later.
"""

import time

import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from benchmarks.dask_processes import DaskProcesses
from cache import CacheReader
from cache.remote_lock import LOCK_OBJECT
from pipeline.cli import main
from tests.cache import example
from tests.cache.s3_server import S3Server
from tests.end_to_end import small

pytestmark = pytest.mark.slow

MAIN = "import sys; from pipeline.cli import main; sys.exit(main())"
SECRET = "hidden-word-of-the-environment"
URL = "s3://bucket/a/cache"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    (tmp_path / "bucket").mkdir()
    with S3Server(tmp_path / "bucket") as server:
        yield server


def _objects(server):
    return sorted(server.keys())


def _shards_begun(server):
    return [key for key in _objects(server) if "/workers/" in key]


def test_a_worker_killed_in_the_middle_of_a_shard_changes_no_byte(
    server, teacher, tmp_path, capsys
):
    local = small.settings(tmp_path / "local", teacher)
    there = small.settings(tmp_path / "there", teacher) | {
        "cache.path": URL,
        "cache.mirror.path": tmp_path / "mirror",
        "cache.mirror.max_gb": 700_000 / 1e9,
        # Workers learn of it from here: their environment has credentials alone.
        "cache.store_options": f"{{endpoint: '{server.url}', region: us-east-1}}",
    }
    server.hold("/arrays/image/c/")
    with DaskProcesses(workers=2) as dask:
        words = [*small.words(("precompute",), there), "--scheduler", dask.address]
        process = small.start(MAIN, words)
        assert main(small.words(["precompute"], local)) == 0
        while len(_shards_begun(server)) < 2:  # both are uploading, and cannot end it
            assert process.poll() is None
            time.sleep(0.02)
        second = there | {"run.dir": tmp_path / "second", "cache.mirror.path": tmp_path / "third"}
        capsys.readouterr()
        assert main([*small.words(["precompute"], second), "--scheduler", dask.address]) == 4
        assert f"{URL}: process {process.pid} on" in capsys.readouterr().err
        dask.kill_worker(0)
        server.hold()
        printed = process.communicate(timeout=300)
        assert process.returncode == 0, printed[1]
    content = {
        key.removeprefix("a/cache/"): server.file(key).read_bytes() for key in _objects(server)
    }
    assert content == example.content_of(tmp_path / "local/cache")
    mirrors = list((tmp_path / "mirror/workers").iterdir())
    assert len(mirrors) == 2
    assert not [key for key in _objects(server) if "/workers/" in key or key.endswith(LOCK_OBJECT)]

    assert main(small.words(["train", "encoder"], there)) == 0
    digest = CacheReader(tmp_path / "mirror/cache").digest()
    assert digest == CacheReader(tmp_path / "local/cache").digest()

    printed = [*printed, *capsys.readouterr()]
    files = [
        file.read_bytes()
        for place in ("bucket", "mirror", "there")
        for file in (tmp_path / place).rglob("*")
        if file.is_file()
    ]
    assert not [text for text in printed if SECRET in text]
    assert not [content for content in files if SECRET.encode() in content]
