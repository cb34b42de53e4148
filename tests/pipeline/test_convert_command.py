"""The command cache convert, from words to files."""

import json
import resource
import shlex
import shutil

import pytest

from cache import CacheReader
from pipeline.cli import main
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.cases import DataConfig
from stages.row_settings import PromptConfig, TrackConfig
from stages.teacher_source import TeacherConfig
from tests.end_to_end import small
from tests.stages.conftest import Blocks, make_cache
from tests.stages.spoiled import spoil_decoder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    blocks = Blocks(
        data=DataConfig(source="phantom", phantom_size=48, phantom_depth=24, smallest=5),
        teacher=TeacherConfig(checkpoint=small.save_tiny_teacher(folder / "model")),
        cache=CacheConfig(rows_per_shard=8),
        precompute=PrecomputeConfig(
            prompts=PromptConfig(per_object=1), tracks=TrackConfig(per_object=1, length=2)
        ),
    )
    make_cache(blocks, folder / "source.cache")
    return folder / "source.cache"


def convert(*words):
    return main(["cache", "convert", *map(str, words), "--progress", "none"])


def test_it_converts_and_reports(source, tmp_path, capsys):
    target, report = tmp_path / "new.cache", tmp_path / "report.json"
    assert convert(source, target, "--dtype", "int8", "--levels", "s16,s8", "--json", report) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[1]: line.split() for line in printed.splitlines() if line[:1] == "s"}
    assert lines["features_s8"][2:4] == ["fp16", "int8"]
    assert lines["features_s4"][2:5] == ["fp16", "fp16", "0.00e+00"]
    assert "decoder on " in printed
    wanted = "{s4: fp16, s8: int8, s16: int8, logits: fp16, tracks: fp16}"
    assert f"--set 'cache.dtype={wanted}'" in printed
    record = json.loads(report.read_text())
    assert record["digest"] == CacheReader(target).digest()
    assert record["target_bytes"] < record["source_bytes"]
    assert [array["level"] for array in record["arrays"]][:3] == ["s4", "s8", "s16"]
    assert record["decoder"]["mean"] > 0.98
    assert main(["cache", "info", str(target)]) == 0
    assert "\ns8       int8 " in capsys.readouterr().out


def test_training_on_a_converted_cache_first_names_the_settings_that_take_it(
    source, tmp_path, capsys
):
    target = tmp_path / "new.cache"
    assert convert(source, target, "--dtype", "int8", "--levels", "s8", "--to", "hdf5") == 0
    values = small.settings(tmp_path / "run", source.parent / "model")
    values |= {"cache.path": target, "precompute.tracks.length": 2}
    words = small.words(("train", "encoder"), values)
    capsys.readouterr()
    assert main(words) == 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("Take the cache as it is stored: efficient-medsam2 train encoder ")
    assert lines[2] == "or make what it needs first:"
    _program, *again = shlex.split(lines[1].partition(": ")[2])
    assert again[-6:] == [
        *("--set", "cache.dtype={s4: fp16, s8: int8, s16: fp16, logits: fp16, tracks: fp16}"),
        *("--set", "cache.format=hdf5"),
        *("--progress", "plain"),
    ]
    assert main(again) == 0
    assert main([*small.words(("precompute",), values)]) == 4
    lines = capsys.readouterr().err.splitlines()
    again = shlex.split(next(line for line in lines if line.startswith("Take the cache")))
    assert again[again.index("efficient-medsam2") + 1] == "precompute"
    assert main(again[again.index("precompute") :]) == 0


def test_a_full_disk_is_said_of_the_new_cache_and_of_no_other_command(source, tmp_path, capsys):
    target = tmp_path / "new.cache"
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert convert(source, target, "--to", "hdf5") == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: no space left at {target}/teacher/")
    assert str(source) not in printed
    assert convert(source, target, "--to", "hdf5") == 0


def test_a_report_that_cannot_be_written_is_refused_at_the_beginning(source, tmp_path, capsys):
    target, file = tmp_path / "new.cache", tmp_path / "nowhere" / "x.json"
    assert convert(source, target, "--dtype", "int8", "--json", file) == 2
    assert f"there is no folder {file.parent}" in capsys.readouterr().err
    assert convert(source, target, "--dtype", "int8", "--json", tmp_path) == 2
    assert not target.exists()


def test_a_way_back_says_that_it_is_none(source, tmp_path, capsys):
    there, back = tmp_path / "int8.cache", tmp_path / "fp16.cache"
    assert convert(source, there, "--dtype", "int8", "--levels", "s8", "--rows", 2) == 0
    assert "accept_rounded" not in capsys.readouterr().out
    assert convert(there, back, "--dtype", "fp16", "--rows", 2) == 0
    printed = capsys.readouterr().out
    assert "rounded before, and so for good: s8 from int8\n" in printed
    assert printed.rstrip().endswith("--set cache.format=zarr --set cache.accept_rounded=true")
    assert main(["cache", "info", str(back)]) == 0
    printed = capsys.readouterr().out
    assert "\nrounded:\n  s8: int8\n" in printed
    assert f"\nconverted_from: {CacheReader(source).digest()[:12]} (zarr, fp16), " in printed


def test_answers_that_are_not_finite_end_with_4(source, tmp_path, capsys):
    spoiled, target = tmp_path / "spoiled.cache", tmp_path / "new.cache"
    shutil.copytree(source, spoiled)
    spoil_decoder(spoiled)
    assert convert(spoiled, target, "--dtype", "bf16", "--rows", 2) == 4
    printed = capsys.readouterr()
    assert "2 of 2 prompts get answers that are NaN or infinite. Do not use" in printed.err
    assert "use it: " not in printed.out


def test_wrong_words_are_refused(source, tmp_path, capsys):
    target = tmp_path / "new.cache"
    assert convert(source, target) == 2
    assert "nothing to convert" in capsys.readouterr().err
    assert convert(source, target, "--to", "hdf5", "--levels", "s4") == 2
    assert "give --dtype too" in capsys.readouterr().err
    assert convert(source, target, "--dtype", "int8", "--levels", "s4,s32") == 2
    assert "'s32' is none of s4, s8, s16, logits, tracks" in capsys.readouterr().err
    assert convert(tmp_path / "nowhere", target, "--dtype", "int8") == 4
    assert "no cache here" in capsys.readouterr().err
    assert not target.exists()
