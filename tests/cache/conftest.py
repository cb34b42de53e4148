import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cache import CacheReader
from tests.cache import example

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
