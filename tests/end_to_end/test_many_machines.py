"""Precompute, verify and evaluate on workers: the same results, whoever is killed on the way."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dask_processes import DaskProcesses
from cache import CacheReader
from cache.worker_token import SHARD_LOCK_SUFFIX, TOKEN_NAME, hold_shard
from tests.end_to_end import small

pytestmark = pytest.mark.slow

MAIN = "import sys; from pipeline.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def dask():
    with DaskProcesses(workers=2) as processes:
        yield processes
    assert processes.running() == []


def shards(cache):
    return len(list(cache.glob("ledger/*.json")))


WAITING = f"""
from cache import CacheWriter
share = CacheWriter.share

def share_and_wait(self):
    token = share(self)
    print("shared", flush=True)
    input()
    return token

CacheWriter.share = share_and_wait
{MAIN}
"""


def test_a_worker_killed_in_the_middle_changes_no_byte(dask, finished, teacher, tmp_path):
    run_dir = tmp_path / "run"
    words = small.words(("precompute",), small.settings(run_dir, teacher))
    process = small.start(WAITING, [*words, "--scheduler", dask.address])
    cache = run_dir / "cache"
    assert process.stdout.readline() == "shared\n", process.communicate()
    with hold_shard(cache, "tracks", 0):  # the run cannot end before it is given back
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None and shards(cache) < 4:
            time.sleep(0.002)
        dask.kill_worker(0)
        left = shards(cache)
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    assert 4 <= left < shards(cache)
    assert "dashboard: http://127.0.0.1" in errors
    assert CacheReader(cache).digest() == CacheReader(finished / "cache").digest()
    for name in ("statistics.json", "cache.json", "complete.json"):
        assert (cache / name).read_bytes() == (finished / "cache" / name).read_bytes(), name
    assert not (cache / TOKEN_NAME).exists()
    assert not list(cache.glob(f"ledger/*{SHARD_LOCK_SUFFIX}"))


def run(words, *, first=""):
    done = subprocess.run(
        [sys.executable, "-c", first + MAIN, *words],
        env=small.environment(),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_workers_find_what_one_process_finds(dask, finished, tmp_path):
    damaged = Path(shutil.copytree(finished / "cache", tmp_path / "damaged.cache"))
    file = damaged / "arrays" / "image" / "c" / "1" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    file.write_bytes(content)
    words = ["cache", "verify", str(damaged)]
    here = run(words)
    assert here[0] == 4
    assert "slices shard 1, image: has other bytes" in here[1]
    assert run([*words, "--scheduler", dask.address])[:2] == here[:2]


def test_evaluation_on_workers_gives_the_same_figures(dask, finished, teacher, tmp_path):
    again = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(again / "evaluate")  # else figures of the same weights would be taken over
    words = small.words(("evaluate",), small.settings(again, teacher))
    code, _, errors = run([*words, "--scheduler", dask.address])
    assert code == 0, errors
    mine, wanted = (json.loads((d / "evaluate/rows.json").read_text()) for d in (again, finished))
    for row, other in zip(mine["rows"], wanted["rows"], strict=True):
        for key in ("model", "dsc", "nsd", "dsc_3d", "per_structure"):
            assert row[key] == other[key], key
    pictures, others = (np.load(d / "evaluate/samples.npz") for d in (again, finished))
    assert pictures.files == others.files
    for name in others.files:
        np.testing.assert_array_equal(pictures[name], others[name])


def test_workers_of_this_machine_end_with_the_command(finished, teacher, tmp_path):
    values = small.settings(tmp_path / "run", teacher)
    code, _, errors = run([*small.words(("precompute",), values), "--workers", "2"])
    assert code == 0, errors
    assert "dask: 2 workers" in errors
    assert CacheReader(tmp_path / "run/cache").digest() == CacheReader(finished / "cache").digest()


def test_no_scheduler_no_run(teacher, tmp_path):
    words = small.words(("precompute",), small.settings(tmp_path / "run", teacher))
    impatient = "from stages import cluster; cluster._CONNECT_S = '2s'; "
    code, _, errors = run([*words, "--scheduler", "tcp://127.0.0.1:1"], first=impatient)
    assert code == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in errors
    code, _, errors = run([*words, "--scheduler", "tcp://127.0.0.1:1", "--workers", "2"])
    assert code == 2
    assert "--workers and --scheduler exclude each other" in errors
