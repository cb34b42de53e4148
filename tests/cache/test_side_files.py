"""What lies beside the rows is compared like the rows."""

import shutil
from pathlib import Path

import pytest

from cache import CacheCorruptError, CacheReader, CacheWriter, verify
from cache.layout import read_complete_mark
from cache.side_files import (
    SIDE_FILES_NAME,
    checked_file,
    checked_folder,
    glance_at_side_files,
    read_side_files,
    record_side_files,
)
from tests.cache import example
from tests.cache.test_verify import flip, places

NAMES = ("splits.json", "teacher/config.json", "teacher/model.safetensors")


def make_covered(path, *, text="", **changes):
    """The example's cache with files beside its rows, recorded as precompute does."""
    spec, index = example.make_spec(**changes), example.make_index()
    with CacheWriter.create_or_resume(path, spec, index) as writer:
        (path / "teacher").mkdir(exist_ok=True)
        for number, name in enumerate(NAMES):
            (path / name).write_text(f"{text}{number}" * 50)
        record_side_files(path, NAMES)
        example.fill(writer)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_covered(tmp_path_factory.mktemp("covered") / "whole.cache")


@pytest.fixture
def covered(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "covered.cache"))


def test_a_sound_cache_gives_its_files(whole):
    report = verify(whole)
    assert (report.ok, report.side_files) == (True, 3)
    assert checked_file(whole, "splits.json") == whole / "splits.json"
    assert checked_folder(whole, "teacher") == whole / "teacher"
    assert glance_at_side_files(whole) == {}


def test_damage_is_found_by_verify_and_by_who_reads(covered):
    flip(covered / "teacher/model.safetensors", 7)
    (covered / "splits.json").unlink()
    assert places(verify(covered, sample=0.01)) == [
        ("files", None, "splits.json"),
        ("files", None, "teacher/model.safetensors"),
    ]
    mend = r"\. Make it again: efficient-medsam2 cache repair .*covered\.cache -c CONFIG"
    with pytest.raises(CacheCorruptError, match=r"model\.safetensors has other bytes.*" + mend):
        checked_folder(covered, "teacher")
    with pytest.raises(CacheCorruptError, match=r"splits\.json is missing" + mend):
        checked_file(covered, "splits.json")
    assert {*glance_at_side_files(covered)} == {"splits.json", "teacher/model.safetensors"}


def test_a_large_file_is_compared_in_full_only_where_it_is_read(covered):
    with CacheWriter.create_or_resume(covered, example.make_spec(), example.make_index()) as writer:
        (covered / NAMES[2]).write_bytes(bytes((1 << 20) + 1))
        record_side_files(covered, NAMES)
        writer.finish()
    flip(covered / NAMES[2], 9)
    assert glance_at_side_files(covered) == {}
    with pytest.raises(CacheCorruptError, match="other bytes"):
        checked_folder(covered, "teacher")


def test_the_record_itself_cannot_go_or_change_unseen(covered, tmp_path):
    record = covered / SIDE_FILES_NAME
    content = record.read_bytes()
    flip(record, 60)
    assert places(verify(covered)) == [("files", None, SIDE_FILES_NAME)]
    record.unlink()
    with pytest.raises(CacheCorruptError, match=r"side_files\.json is missing"):
        checked_file(covered, "splits.json")
    # Splits and record of another run of the very same settings: sound by themselves.
    other = make_covered(tmp_path / "other", text="x")
    for name in ("splits.json", *NAMES, SIDE_FILES_NAME):
        shutil.copy(other / name, covered / name)
    assert places(verify(covered)) == [("files", None, SIDE_FILES_NAME)]
    with pytest.raises(CacheCorruptError, match="not the one that the cache was finished with"):
        checked_file(covered, "splits.json")
    record.write_bytes(content)
    assert len(places(verify(covered))) == 3


def test_the_record_of_another_cache_is_refused_before_a_cache_is_finished(covered, tmp_path):
    other = make_covered(tmp_path / "other", data_sha256="e" * 64)
    (covered / "complete.json").unlink()
    assert verify(covered).ok
    shutil.copy(other / SIDE_FILES_NAME, covered)
    assert places(verify(covered)) == [("files", None, SIDE_FILES_NAME)]


def test_caches_of_earlier_versions_are_read_as_they_are(finished):
    report = verify(finished)
    assert (report.ok, report.side_files, read_side_files(finished)) == (True, None, None)
    assert checked_file(finished, "splits.json") == finished / "splits.json"
    assert CacheReader(finished).complete
    assert read_complete_mark(finished).side_files_sha256 is None


def test_another_record_makes_a_cache_unfinished_until_it_is_finished_again(covered):
    record_side_files(covered, NAMES)
    assert (covered / "complete.json").is_file()
    (covered / "splits.json").write_text("other splits")
    record_side_files(covered, NAMES)
    assert not CacheReader(covered).complete
    with CacheWriter.create_or_resume(covered, example.make_spec(), example.make_index()) as writer:
        writer.finish()
    assert CacheReader(covered).complete
    assert verify(covered).ok


def test_what_nobody_wrote_anew_keeps_its_record(covered):
    flip(covered / "splits.json", 3)
    record_side_files(covered, NAMES, kept=("splits.json",))
    assert places(verify(covered)) == [("files", None, "splits.json")]


def test_replacing_a_cache_forgets_the_record(covered):
    spec = example.make_spec(data_sha256="e" * 64)
    with CacheWriter.create_or_resume(covered, spec, example.make_index(), replace=True) as writer:
        example.fill(writer)
    report = verify(covered)
    assert (report.ok, report.side_files) == (True, None)
