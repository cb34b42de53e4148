"""Precompute and train on a loopback S3 server that is killed in the middle of both."""

import itertools
import json
import re
import threading

import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from cache.patience import Asking
from cache.remote import RemoteFolder
from pipeline.cli import main
from tests.cache.s3_server import S3Server
from tests.end_to_end import small

pytestmark = pytest.mark.slow


def _interrupt(server, monkeypatch, method, *, shard):
    """Kill the server when a shard's transfer begins; it comes back once that was noticed."""
    call, waits = getattr(RemoteFolder, method), Asking._waits
    numbers, back = itertools.count(1), threading.Thread(target=server.start)
    killed, starting = threading.Event(), threading.Lock()

    def counted(self, name, *rest):
        if "/c/" in name and next(numbers) == shard:
            server.kill()
            killed.set()
        return call(self, name, *rest)

    def noticed(self, seconds):
        waits(self, seconds)
        if killed.is_set():  # and not slow alone
            with starting:
                if back.ident is None:  # no other thread noticed it first
                    back.start()

    monkeypatch.setattr(RemoteFolder, method, counted)
    monkeypatch.setattr(Asking, "_waits", noticed)
    return back


def test_precompute_and_an_encoder_epoch_from_a_store_that_is_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    (tmp_path / "bucket").mkdir()
    server = S3Server(tmp_path / "bucket")
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
    with server:
        with monkeypatch.context() as patch:
            back = _interrupt(server, patch, "put", shard=10)
            assert main(small.words(["precompute"], there)) == 0
            back.join()
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
        with monkeypatch.context() as patch:
            back = _interrupt(server, patch, "download", shard=3)
            assert main(small.words(["train", "encoder"], other)) == 0
            back.join()
        printed = capsys.readouterr()
        assert "does not answer" in printed.out + printed.err
        figures = _figures(printed)
        assert figures["peak_bytes"] <= bound
        assert figures["evicted"] > 0
        assert main(["cache", "verify", "s3://bucket/a/cache"]) == 0
        assert "0 bad" in capsys.readouterr().out
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
