"""``cache repair``: exactly what is bad is made again."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cache import CacheReader, verify
from cache.layout import read_complete_mark, write_complete_mark
from pipeline.cli import main
from tests.cache import example
from tests.end_to_end import small


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def shards_of(cache: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each shard file: the same while nobody writes it."""
    files = [file for file in (cache / "arrays").rglob("*") if file.is_file() and "c" in file.parts]
    return {
        file.relative_to(cache).as_posix(): (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in files
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A small precomputed cache, and the settings that it was made with."""
    root = tmp_path_factory.mktemp("repair")
    values = small.settings(root / "run", small.save_tiny_teacher(root / "teacher"))
    assert main(small.words(("precompute",), values)) == 0
    return root / "run" / "cache", values


@pytest.fixture
def damaged(made: tuple[Path, dict[str, object]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "damaged.cache"))


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return example.make_cache(tmp_path / "example.cache").path


def repair(cache: Path, values: dict[str, object]) -> int:
    words = small.words(("cache", "repair", str(cache)), values)
    return main(words)


def test_bad_shards_alone_are_computed_again(made, damaged, capsys):
    whole, values = made
    flip(damaged / "arrays/features_s8/c/1/0/0/0", 3)
    (damaged / "arrays/track_mask_iou/c/0/0").unlink()
    flip(damaged / "index/slices.parquet", 60)
    flip(damaged / "statistics.json", 30)
    before = shards_of(damaged)
    assert repair(damaged, values) == 0
    told = capsys.readouterr().out
    assert "bad: slices shard 1, features_s8: " in told
    assert "made again: the index, slices shard 1, tracks shard 0\n" in told
    assert told.splitlines()[-1].startswith("sound: ")
    now = shards_of(damaged)
    again = {name.split("/c/")[1].split("/")[0] for name in now if now[name] != before.get(name)}
    assert again == {"0", "1"}
    changed = [name for name in now if now[name] != before.get(name)]
    assert all(("track" in name) == ("/c/0/" in name) for name in changed)
    reader = CacheReader(damaged)
    assert reader.complete
    assert reader.digest() == CacheReader(whole).digest()


def test_a_damaged_header_is_written_again_and_no_row_lost(made, damaged, capsys):
    whole, values = made
    flip(damaged / "cache.json", 300)
    before = shards_of(damaged)
    assert repair(damaged, values) == 0
    assert "made again: the header\n" in capsys.readouterr().out
    assert shards_of(damaged) == before
    assert CacheReader(damaged).digest() == CacheReader(whole).digest()


def test_a_header_that_is_gone_is_written_again_and_no_row_lost(made, damaged, capsys):
    whole, values = made
    (damaged / "cache.json").unlink()
    before = shards_of(damaged)
    assert main(["cache", "repair", str(damaged), "--progress", "none"]) == 4
    assert "to be made again: the header" in capsys.readouterr().err
    assert repair(damaged, values) == 0
    assert shards_of(damaged) == before
    assert CacheReader(damaged).digest() == CacheReader(whole).digest()


def test_files_beside_the_rows_are_made_again(made, damaged, capsys):
    whole, values = made
    shutil.rmtree(damaged / "teacher")
    flip(damaged / "splits.json", 30)
    before = shards_of(damaged)
    assert main(["cache", "repair", str(damaged), "--progress", "none"]) == 4
    assert "to be made again: splits.json, teacher/config.json, " in capsys.readouterr().err
    assert repair(damaged, values) == 0
    told = capsys.readouterr().out
    assert "bad: files, splits.json: has other bytes than were written" in told
    assert "made again: splits.json, teacher/config.json, teacher/model.safetensors" in told
    assert shards_of(damaged) == before
    for name in ("splits.json", "teacher/model.safetensors", "side_files.json", "complete.json"):
        assert (damaged / name).read_bytes() == (whole / name).read_bytes()


def test_the_teacher_alone_takes_no_raw_data(made, damaged, tmp_path, monkeypatch, capsys):
    whole, values = made
    monkeypatch.setattr("stages.cases.source_is_present", lambda data: False)
    flip(damaged / "splits.json", 30)
    assert repair(damaged, values) == 2
    assert "the raw data are not here" in capsys.readouterr().err
    shutil.copy(whole / "splits.json", damaged)
    flip(damaged / "teacher" / "model.safetensors", -9)
    assert repair(damaged, values) == 0
    assert "made again: teacher/model.safetensors\n" in capsys.readouterr().out
    assert verify(damaged).ok
    assert CacheReader(damaged).digest() == CacheReader(whole).digest()
    other = Path(shutil.copytree(values["teacher.checkpoint"], tmp_path / "other"))
    flip(other / "model.safetensors", -9)
    (damaged / "teacher" / "config.json").unlink()
    assert repair(damaged, {**values, "teacher.checkpoint": other}) == 4


def test_a_cache_of_an_earlier_version_gets_its_digests(made, damaged, capsys):
    (damaged / "side_files.json").unlink()
    mark = read_complete_mark(damaged)
    write_complete_mark(damaged, replace(mark, side_files_sha256=None))
    assert main(["cache", "verify", str(damaged), "--progress", "none"]) == 0
    told = capsys.readouterr().out
    assert "not covered: splits.json, files.json, " in told
    assert f"Record them as they are: efficient-medsam2 cache repair {damaged}\n" in told
    before = shards_of(damaged)
    assert main(["cache", "repair", str(damaged), "--progress", "none"]) == 0
    assert "recorded as they are, for there were no digests: splits.json" in capsys.readouterr().out
    assert shards_of(damaged) == before
    assert verify(damaged).side_files == 7
    assert CacheReader(damaged).complete
    assert main(["cache", "verify", str(damaged), "--progress", "none"]) == 0
    assert " and 7 files beside them compared, 0 bad" in capsys.readouterr().out


def test_what_a_cache_was_converted_from_is_not_made_up(made, tmp_path, capsys):
    _, values = made
    other = tmp_path / "int8.cache"
    words = ["cache", "convert", str(made[0]), str(other), "--dtype", "int8"]
    assert main([*words, "--progress", "none"]) == 0
    (other / "converted.json").unlink()
    assert repair(other, values) == 4
    assert "what this cache was converted from cannot be told" in capsys.readouterr().err


def test_raw_data_that_are_needed_and_absent_are_named(made, damaged, tmp_path, capsys):
    _, values = made
    flip(damaged / "arrays/features_s8/c/1/0/0/0", 3)
    assert repair(damaged, {**values, "data.source": tmp_path / "absent"}) == 2
    assert "the raw data are not here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["statistics.json", "complete.json", "ledger/sealed.parquet", "arrays/zarr.json"]
)
def test_what_is_there_twice_needs_no_config(finished, name, capsys):
    whole = example.content_of(finished)
    flip(finished / name, 5)
    assert main(["cache", "repair", str(finished), "--progress", "none"]) == 0
    assert "completion mark are written again" in capsys.readouterr().out
    assert example.content_of(finished) == whole


def test_a_lost_completion_mark_is_written_again(finished):
    whole = example.content_of(finished)
    (finished / "complete.json").unlink()
    assert main(["cache", "repair", str(finished), "--progress", "none"]) == 0
    assert example.content_of(finished) == whole


def test_a_sound_cache_is_left_alone(finished, capsys):
    whole = example.content_of(finished)
    assert main(["cache", "repair", str(finished), "--progress", "none"]) == 0
    assert capsys.readouterr().out.startswith("sound: ")
    assert example.content_of(finished) == whole


def test_rows_without_a_config_say_what_they_take(finished, capsys):
    flip(finished / "arrays/features_s8/c/1/0/0/0", 3)
    assert main(["cache", "repair", str(finished), "--progress", "none"]) == 4
    printed = capsys.readouterr().err
    assert "to be made again: slices shard 1. That takes the raw data and the teacher" in printed
    assert f"cache repair {finished} -c CONFIG" in printed


@pytest.mark.parametrize(
    "changes",
    [{"precompute.prompts.per_object": 2}, {"teacher.checkpoint": "/nonexistent"}, {"data.x": 1}],
)
def test_nothing_is_taken_out_before_all_is_there_that_makes_it_again(made, damaged, changes):
    whole, values = made
    flip(damaged / "arrays/label/c/0/0/0", 3)
    before = {file: file.read_bytes() for file in damaged.rglob("*") if file.is_file()}
    assert repair(damaged, {**values, **changes}) in (2, 4, 7)
    assert main(["cache", "repair", str(damaged), "--progress", "none"]) == 4
    after = {file: file.read_bytes() for file in damaged.rglob("*") if file.is_file()}
    before.pop(damaged / ".lock", None)
    after.pop(damaged / ".lock", None)
    assert after == before
    assert repair(damaged, values) == 0
    assert CacheReader(damaged).digest() == CacheReader(whole).digest()


def test_another_teacher_is_refused_before_anything_is_taken_out(made, damaged, tmp_path, capsys):
    _, values = made
    other = Path(shutil.copytree(values["teacher.checkpoint"], tmp_path / "other"))
    flip(other / "model.safetensors", -9)
    flip(damaged / "arrays/label/c/0/0/0", 3)
    before = shards_of(damaged)
    assert repair(damaged, {**values, "teacher.checkpoint": other}) == 4
    assert "nothing was touched. Name those: --set teacher.checkpoint=FILE" in (
        capsys.readouterr().err
    )
    assert shards_of(damaged) == before


def test_a_repair_that_was_stopped_goes_on(made, damaged, capsys):
    whole, values = made
    flip(damaged / "arrays/label/c/0/0/0", 3)
    assert main(["cache", "verify", str(damaged), "--repair"]) in (0, 4)  # takes out, makes nothing
    capsys.readouterr()
    assert main(["cache", "repair", str(damaged), "--progress", "none"]) == 4
    assert "1 unwritten shards of slices" in capsys.readouterr().err
    assert repair(damaged, values) == 0
    assert CacheReader(damaged).digest() == CacheReader(whole).digest()


def test_a_cache_stored_otherwise_is_repaired_as_it_is_stored(made, tmp_path, capsys):
    _, values = made
    small_one = tmp_path / "int8 cache"
    words = ["cache", "convert", str(made[0]), str(small_one), "--dtype", "int8"]
    assert main([*words, "--progress", "none"]) == 0
    flip(small_one / "arrays/label/c/0/0/0", 3)
    assert repair(small_one, values) == 0
    assert "this cache was converted from another one" in capsys.readouterr().out
    assert CacheReader(small_one).complete


def test_a_file_that_the_disk_does_not_give_is_named(finished, monkeypatch, capsys):
    def failing(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(sys.modules["cache.verify"], "sha256_of_file", failing)
    report = verify(finished)
    assert not report.ok
    assert any("cannot be read: the disk gives an error" in str(part) for part in report.bad)
