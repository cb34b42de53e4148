"""Precompute and train on a loopback S3 server that is killed in the middle of both."""

import json
import re
import socket
import threading
import time

import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from pipeline.cli import main
from tests.cache.s3_server import S3Server
from tests.end_to_end import small

pytestmark = pytest.mark.slow


def _interrupt(server, *, when):
    """Kill the server once something is so, and bring it back a moment later."""

    def run():
        while not when():
            time.sleep(0.01)
        server.kill()
        time.sleep(1.0)
        server.start()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_precompute_and_an_encoder_epoch_from_a_store_that_is_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "bucket").mkdir()
    server = S3Server(tmp_path / "bucket", port)
    monkeypatch.setenv("AWS_ENDPOINT", server.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    teacher = small.save_tiny_teacher(tmp_path / "teacher")
    bound = 700_000
    here = small.settings(tmp_path / "here", teacher)
    there = small.settings(tmp_path / "there", teacher) | {
        "cache.path": "s3://bucket/a/cache",
        "cache.mirror.path": tmp_path / "mirror",
        "cache.mirror.max_gb": bound / 1e9,
    }
    assert main(small.words(["precompute"], here)) == 0
    assert main(small.words(["train", "encoder"], here)) == 0
    server.start()
    try:
        killer = _interrupt(server, when=lambda: len(server.keys()) > 20)
        assert main(small.words(["precompute"], there)) == 0
        killer.join()
        printed = capsys.readouterr()
        assert "does not answer" in printed.out + printed.err
        figures = _figures(printed)
        assert figures["peak_bytes"] <= bound
        assert figures["evicted"] > 0
        bound = 2 * max(
            server.file(key).stat().st_size for key in sorted(server.keys()) if "/c/" in key
        )
        other = there | {
            "cache.mirror.path": tmp_path / "other",
            "cache.mirror.max_gb": bound / 1e9,
        }
        shards = (tmp_path / "other").rglob
        killer = _interrupt(server, when=lambda: any("/c/" in str(file) for file in shards("0")))
        assert main(small.words(["train", "encoder"], other)) == 0
        killer.join()
        printed = capsys.readouterr()
        assert "does not answer" in printed.out + printed.err
        figures = _figures(printed)
        assert figures["peak_bytes"] <= bound
        assert figures["evicted"] > 0
        assert main(["cache", "verify", "s3://bucket/a/cache"]) == 0
        assert "0 bad" in capsys.readouterr().out
    finally:
        server.kill()
    summaries = [
        json.loads((tmp_path / place / "encoder" / "manifest.json").read_text())
        for place in ("here", "there")
    ]
    assert summaries[0]["upstream"] == summaries[1]["upstream"]
    assert summaries[0]["files"] == summaries[1]["files"]


def _figures(printed):
    line = re.search(r"MirrorFigures\((.*)\)", printed.out + printed.err)
    assert line is not None
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line[1])}
