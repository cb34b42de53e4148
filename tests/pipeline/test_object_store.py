"""Commands that are given the address of a cache, on an S3 server in a process of its own."""

import json
import shlex
import socket
from pathlib import Path

import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from cache import CacheReader, CacheUnreachableError
from cache.layout import encode_checked
from cache.mirror_sync import is_shard
from cache.remote_lock import LOCK_OBJECT
from pipeline.cli import main
from pipeline.object_store import open_remote
from pipeline.options import Invocation
from pipeline.seed_runs import repeat_with_seeds
from tests.cache import example
from tests.cache.s3_server import S3Server
from tests.end_to_end import small


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with S3Server(tmp_path_factory.mktemp("bucket")) as server:
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small precomputed cache, and the settings that it was made with."""
    root = tmp_path_factory.mktemp("made")
    values = small.settings(root / "run", small.save_tiny_teacher(root / "teacher"))
    values |= {"precompute.tracks.length": 2}
    assert main(small.words(("precompute",), values)) == 0
    return root / "run" / "cache", values


@pytest.fixture(autouse=True)
def environment(server, monkeypatch, tmp_path):
    """What a user of the store has in the environment, and a folder for mirrors."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT", server.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def url(request):
    return f"s3://bucket/{request.node.name.replace('[', '-').strip(']')}"


@pytest.fixture
def stored(tmp_path, url):
    """The address of an example cache, which lies in ``local.cache`` too."""
    example.make_cache(tmp_path / "local.cache")
    assert main(["cache", "copy", "local.cache", url, "--progress", "none"]) == 0
    return url


def flip(url, name, place):
    remote = open_remote(url, {})
    content = bytearray(remote.read(name)[0])
    content[place] ^= 1
    remote.put(name, bytes(content))


def content_of(url):
    remote = open_remote(url, {})
    return {name: remote.read(name)[0] for name in remote.list()}


def typed(command, config=()):
    """Words of a printed command, CONFIG replaced by what the user has."""
    program, *words = shlex.split(command)
    assert program == "efficient-medsam2"
    if "CONFIG" in words:
        place = words.index("CONFIG")
        words[place - 1 : place + 1] = []
    return [*words, *config]


def test_a_cache_that_is_not_there_is_named_by_its_address(url, capsys, tmp_path):
    for words in (["info"], ["verify"], ["repair"]):
        assert main(["cache", *words, url]) == 4
        printed = capsys.readouterr().err
        assert f"error: {url}: no cache here" in printed
        assert f"precompute -c CONFIG --set cache.path={url}\n" in printed
        assert str(tmp_path) not in printed


def test_damage_is_told_by_the_address_and_mended_without_a_config(stored, capsys, tmp_path):
    whole = content_of(stored)
    flip(stored, "statistics.json", 30)
    flip(stored, "ledger/sealed.parquet", 30)
    assert main(["cache", "verify", stored, "--progress", "none"]) == 4
    printed = capsys.readouterr()
    assert str(tmp_path) not in printed.out + printed.err
    mend = printed.err.strip().removeprefix("mend: ")
    assert f"cache repair {stored} -c CONFIG" in mend
    assert main(typed(mend, ["--progress", "none"])) == 0
    assert content_of(stored) == whole
    assert main(["cache", "verify", stored, "--progress", "none"]) == 0


def test_rows_index_and_header_are_made_again_in_the_store(
    made, server, url, monkeypatch, capsys, tmp_path
):
    local, values = made
    assert main(["cache", "copy", str(local), url, "--progress", "none"]) == 0
    whole = content_of(url)
    own = small.words(("",), values)[1:]
    for name, place in (("arrays/features_s8/c/1/0/0/0", 3), ("index/slices.parquet", 60)):
        flip(url, name, place)
    capsys.readouterr()
    assert main(["cache", "verify", url, "--progress", "none"]) == 4
    mend = capsys.readouterr().err.strip().removeprefix("mend: ")
    settings = ["cache.mirror.path=other", f"cache.store_options={{endpoint: '{server.url}'}}"]
    own += [word for text in settings for word in ("--set", text)]
    with monkeypatch.context() as without:
        without.delenv("AWS_ENDPOINT")
        assert main(typed(mend, own)) == 0
    assert (tmp_path / "other" / "cache" / "cache.json").is_file()
    flip(url, "cache.json", 300)
    capsys.readouterr()
    assert main(["cache", "info", url]) == 4
    printed = capsys.readouterr().err
    assert f"error: {url}/cache.json is damaged" in printed
    assert main(typed(printed.strip().rpartition(": ")[2], own)) == 0
    now = content_of(url)
    assert {name for name in whole if now.get(name) != whole[name]} <= {"files.json"}
    assert main(["cache", "copy", url, "back.cache", "--progress", "none"]) == 0
    assert CacheReader(tmp_path / "back.cache").digest() == CacheReader(local).digest()


def test_a_header_that_is_gone_comes_back_and_other_settings_are_refused(made, server, url, capsys):
    local, values = made
    assert main(["cache", "copy", str(local), url, "--progress", "none"]) == 0
    remote = open_remote(url, {})
    whole = content_of(url)
    keys = [f"{url.removeprefix('s3://bucket/')}/{name}" for name in whole if is_shard(name)]
    written = [server.file(key).stat().st_mtime_ns for key in keys]
    remote.delete("cache.json")
    capsys.readouterr()
    assert main(["cache", "info", url]) == 4
    mend = capsys.readouterr().err.strip().rpartition(": ")[2]
    stored = {**values, "cache.path": url}
    other = {**stored, "precompute.prompts.per_object": 2}
    assert main(small.words(("precompute",), other)) == 4
    printed = capsys.readouterr().err
    assert f"error: {url} holds a cache that lost its cache.json" in printed
    assert mend in printed
    assert content_of(url) == {name: whole[name] for name in whole if name != "cache.json"}
    assert main(typed(mend, small.words(("",), values)[1:])) == 0
    remote.delete("cache.json")
    assert main(small.words(("precompute",), stored)) == 0
    now = content_of(url)
    assert {name for name in whole if now.get(name) != whole[name]} <= {"files.json"}
    assert [server.file(key).stat().st_mtime_ns for key in keys] == written


def test_files_beside_the_rows_are_recorded_and_made_again_in_the_store(
    made, url, monkeypatch, capsys
):
    local, values = made
    assert main(["cache", "copy", str(local), url, "--progress", "none"]) == 0
    whole, remote = content_of(url), open_remote(url, {})
    mark = json.loads(whole["complete.json"])
    earlier = {key: mark[key] for key in mark if key not in ("side_files_sha256", "sha256")}
    remote.put("complete.json", encode_checked(earlier))
    remote.delete("side_files.json")
    capsys.readouterr()
    assert main(["cache", "verify", url, "--progress", "none"]) == 0
    told = capsys.readouterr().out
    assert "not covered: splits.json, " in told
    assert main(typed(told.strip().rpartition(": ")[2], ["--progress", "none"])) == 0
    assert "recorded as they are" in capsys.readouterr().out
    assert content_of(url) == whole
    flip(url, "teacher/model.safetensors", -9)
    remote.delete("teacher/config.json")
    assert main(["cache", "verify", url, "--progress", "none"]) == 4
    mend = capsys.readouterr().err.strip().removeprefix("mend: ")
    with monkeypatch.context() as without:
        without.setattr("stages.cases.source_is_present", lambda data: False)
        assert main(typed(mend, small.words(("",), values)[1:])) == 0
    assert "made again: teacher/config.json, teacher/model.safetensors" in capsys.readouterr().out
    assert content_of(url) == whole
    flip(url, "splits.json", 30)
    assert main(["cache", "verify", url, "--repair", "--progress", "none"]) == 0
    command = capsys.readouterr().out.strip().rpartition("repaired: now ")[2]
    assert "complete.json" not in content_of(url)
    assert main(typed(command, small.words(("",), values)[1:])) == 0
    now = content_of(url)
    assert {name for name in whole if now.get(name) != whole[name]} <= {"files.json"}


def test_convert_says_how_to_go_through_a_folder(made, url, capsys, tmp_path):
    assert main(["cache", "copy", str(made[0]), url, "--progress", "none"]) == 0
    other = f"{url}-as-int8"
    before = set(tmp_path.iterdir())
    assert main(["cache", "convert", url, other, "--dtype", "int8", "--levels", "s4"]) == 2
    lines = [line.strip() for line in capsys.readouterr().err.splitlines() if line[:2] == "  "]
    assert [line.split()[2] for line in lines] == ["copy", "convert", "copy"]
    assert set(tmp_path.iterdir()) == before
    for line in lines:
        assert main([*typed(line), "--progress", "none"]) == 0
    header = json.loads(content_of(other)["cache.json"])
    assert header["spec"]["precompute"]["cache.dtype"]["s4"] == "int8"


@pytest.mark.parametrize("place", ["memory:///", "file:///tmp/x", "s4://bucket/x", "s3:///x"])
def test_places_that_keep_nothing_are_refused(place, capsys, tmp_path):
    example.make_cache(tmp_path / "local.cache")
    for words in (
        ["copy", "local.cache", place],
        ["copy", place, "new.cache"],
        ["unlock", place],
        ["info", place],
        ["verify", place],
        ["repair", place],
    ):
        assert main(["cache", *words]) == 2
        assert f"{place} is no address of an object store" in capsys.readouterr().err
    assert not Path("new.cache").exists()


def test_unlock(stored, capsys):
    assert main(["cache", "unlock", "local.cache"]) == 2
    assert "the lock of a folder ends with its writer" in capsys.readouterr().err
    remote = open_remote(stored, {})
    remote.put(LOCK_OBJECT, json.dumps({"host": "elsewhere", "process": 1}).encode())
    assert main(["cache", "copy", "local.cache", stored]) == 4
    command = capsys.readouterr().err.strip().rpartition(": ")[2]
    assert main([*typed(command), "--force"]) == 0
    assert "removed the lock of process 1 on elsewhere" in capsys.readouterr().out
    assert remote.read(LOCK_OBJECT) is None


def test_further_seeds_learn_from_the_address_too(monkeypatch, tmp_path):
    settings = {"run.dir": tmp_path / "run", "cache.mirror.patience_seconds": 0}
    settings |= {"cache.path": "s3://bucket/x"}
    settings |= {"cache.store_options": "{endpoint: 'http://127.0.0.1:1', region: x}"}
    overrides = tuple(f"{key}={value}" for key, value in settings.items())
    typed_again = Invocation(command=("run",), config="phantom", overrides=overrides)
    with pytest.raises(CacheUnreachableError, match="s3://bucket/x"):
        repeat_with_seeds(typed_again, 2, resume=True, again=typed_again)


def test_an_ablation_says_that_it_takes_folders(capsys):
    words = ["ablate", "-c", "phantom", "--over", "memory.enabled=true,false"]
    assert main([*words, "--set", "cache.path=s3://bucket/ct.cache"]) == 2
    printed = capsys.readouterr().err
    assert "efficient-medsam2 cache copy s3://bucket/ct.cache ct.cache, then" in printed


def test_a_dead_endpoint_is_said_and_given_up(monkeypatch, capsys, tmp_path):
    example.make_cache(tmp_path / "local.cache")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{probe.getsockname()[1]}")
        for words in (
            ["info", "s3://bucket/x"],
            ["verify", "s3://bucket/x"],
            ["repair", "s3://bucket/x"],
            ["unlock", "s3://bucket/x"],
            ["copy", "s3://bucket/x", "new.cache"],
            ["copy", "local.cache", "s3://bucket/x"],
        ):
            assert main(["cache", *words, "--patience", "0.3"]) == 4
            told, error = capsys.readouterr().err.strip().splitlines()
            assert told == (
                "s3://bucket/x does not answer and is asked again for up to 0.3 s "
                "(change it: --patience SECONDS)"
            )
            assert error.startswith("error: s3://bucket/x (")
        settings = {"cache.path": "s3://bucket/x", "cache.mirror.patience_seconds": 0.3}
        for command in (("plan",), ("status",), ("train", "encoder")):
            assert main(small.words(command, settings)) == 4
            told, error = capsys.readouterr().err.strip().splitlines()
            assert told.endswith("(change it: --set cache.mirror.patience_seconds=SECONDS)")
            assert error.startswith("error: s3://bucket/x (")
