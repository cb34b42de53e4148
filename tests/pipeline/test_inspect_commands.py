"""Looking at caches and at the machine."""

import json
import shutil
from pathlib import Path

import pytest

from cache.native_library import native_library
from pipeline.cli import main
from pipeline.doctor import examine_machine
from pipeline.inspect_commands import _print_tree
from tests.cache import example
from tests.end_to_end import small


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "my.cache"
    example.make_cache(path)
    return path


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(finished, tmp_path / "damaged.cache"))
    shard = path / "arrays" / "image" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    return path


def test_cache_info(finished, capsys):
    assert main(["cache", "info", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert "state: complete" in printed
    assert "\n  slices: " in printed
    assert "\nconverted_from: -\n" in printed
    assert main(["cache", "info", str(finished), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["state"] == "complete"
    assert info["teacher"]["name"] == "tiny"


def test_booleans_are_words_and_numbers_have_their_thousands_apart(capsys):
    _print_tree({"a": {"fill": True, "open": False}, "rows": 12345, "from": ["x", "y"], "none": {}})
    assert capsys.readouterr().out == (
        "a:\n  fill: yes\n  open: no\nrows: 12,345\nfrom: x, y\nnone: -\n"
    )


def test_the_group_says_what_it_is_for(capsys):
    assert main(["cache", "--help"]) == 0
    assert "Look at, check, mend, convert and copy an embedding cache." in capsys.readouterr().out


def test_cache_info_of_no_cache(tmp_path, capsys):
    assert main(["cache", "info", str(tmp_path)]) == 4
    assert capsys.readouterr().err.startswith("error: ")


def test_cache_verify_of_a_sound_cache(finished, capsys):
    assert main(["cache", "verify", str(finished), "--progress", "none"]) == 0
    assert "0 bad" in capsys.readouterr().out
    assert main(["cache", "verify", str(finished), "--sample", "10%"]) == 0


def test_cache_verify_names_damage_and_repairs_when_told(damaged, capsys):
    assert main(["cache", "verify", str(damaged), "--full", "--progress", "none"]) == 4
    printed = capsys.readouterr()
    assert "bad: slices shard" in printed.out
    assert "cache repair" in printed.err
    assert main(["cache", "verify", str(damaged), "--repair", "--progress", "none"]) == 0
    assert "will be written again" in capsys.readouterr().out
    assert main(["cache", "verify", str(damaged), "--progress", "none"]) == 4
    printed = capsys.readouterr()
    assert (
        "unfinished: 10 of 11 shards are there (slices 5 of 6, prompts 2 of 2, tracks 3 of 3)"
        in (printed.out)
    )
    assert printed.err == (
        f"go on: efficient-medsam2 precompute -c CONFIG --set cache.path={damaged}\n"
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save_tiny_teacher(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture
def values(tmp_path: Path, teacher: Path) -> dict[str, object]:
    return small.settings(tmp_path / "run", teacher)


def test_plan_tells_bytes_and_time_for_people_and_machines(values, capsys):
    words = small.words(("plan",), values)
    assert main([*words, "--no-sample"]) == 0
    printed = capsys.readouterr().out
    assert "\nfeatures_s4 " in printed
    assert "\nfree: " in printed
    assert "time: " not in printed
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["estimate"]
    assert told["size"]["fits"] is True
    assert told["size"]["arrays"]["features_s4"]["bytes"] > 0
    assert told["time"]["bound"] in ("teacher", "reader", "disk")


def test_what_does_not_fit_ends_with_5_wherever_it_is_asked(values, capsys, monkeypatch):
    full = shutil.disk_usage(values["run.dir"].parent)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    for command in (("plan",), ("plan", "--json"), ("precompute", "--estimate"), ("precompute",)):
        assert main([*small.words(command[:1], values), *command[1:]]) == 5, command
        printed = capsys.readouterr()
        assert "make room, or --set cache.path=FOLDER" in printed.err
        if "--json" in command:
            assert json.loads(printed.out)["estimate"]["size"]["fits"] is False
    assert not any((values["run.dir"] / "cache").iterdir())


@pytest.mark.slow
def test_doctor_looks_at_packages_and_disk(tmp_path):
    checks = {check.name: check for check in examine_machine(tmp_path / "not" / "yet")}
    assert {"python", "torch", "torchvision", "gpu", "memory", "disk", "presets"} <= checks.keys()
    assert checks["torch"].verdict == "ok"
    assert str(tmp_path) in checks["disk"].found
    assert all(check.mend for check in checks.values() if check.verdict != "ok")


def test_doctor_says_how_a_cache_is_read(tmp_path, monkeypatch):
    def check():
        return next(c for c in examine_machine(tmp_path) if c.name == "cache reader")

    assert check().verdict == ("warn" if native_library() is None else "ok")
    for module in ("direct_read", "native_library"):
        monkeypatch.setattr(f"cache.{module}.native_library", lambda: None)
    assert check().found.startswith("portable")
    assert "C compiler" in check().mend
