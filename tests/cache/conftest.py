import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cache import CacheReader
from pipeline.object_store import open_remote
from tests.cache import example
from tests.cache.s3_server import S3Server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished cache that no test may change."""
    path = tmp_path_factory.mktemp("finished") / "my.cache"
    example.make_cache(path)
    return path


@pytest.fixture
def copy(finished, tmp_path):
    """A finished cache of the test's own, to damage."""
    return Path(shutil.copytree(finished, tmp_path / "copy.cache"))


@pytest.fixture
def reader(finished):
    return CacheReader(finished)


@pytest.fixture
def start():
    """Start Python in a process of its own, with the packages importable."""
    running = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An S3 server on loopback."""
    with S3Server(tmp_path_factory.mktemp("bucket")) as server:
        yield server


@pytest.fixture
def bucket(server, monkeypatch, request):
    """Open a folder of the server; by default one of the test's own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")

    own = request.node.name.replace("[", "-").strip("]")

    def connect(name=own):
        return open_remote(f"s3://bucket/{name}", server.options)

    return connect


class KilledError(Exception):
    """The process ends here."""


@pytest.fixture
def killed_upload(monkeypatch):
    """Let whoever uploads end before the upload of this number, from 0 on."""

    def prepare(remote, number):
        put, done = remote.put, []

        def die(name, content):
            if len(done) == number:
                raise KilledError
            done.append(name)
            return put(name, content)

        monkeypatch.setattr(remote, "put", die)
        return pytest.raises(KilledError)

    return prepare
