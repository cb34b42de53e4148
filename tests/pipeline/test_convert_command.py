"""The command cache convert, from words to files."""

import json

import pytest

from cache import CacheReader
from pipeline.cli import main
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.cases import DataConfig
from stages.row_settings import PromptConfig, TrackConfig
from stages.teacher_source import TeacherConfig
from tests.end_to_end import small
from tests.stages.conftest import Blocks, make_cache


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
