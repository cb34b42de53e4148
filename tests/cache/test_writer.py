import json
import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from cache import (
    ArraySpec,
    CacheCorruptError,
    CacheDataError,
    CacheLockedError,
    CacheMissingError,
    CacheReader,
    CacheSpaceError,
    CacheStaleError,
    CacheWriter,
    TeacherIdentity,
    discard_bad,
    required_bytes,
    verify,
)
from cache.creation import prepare_folder
from cache.layout import encode_checked
from cache.zarr_store import ZarrStore
from tests.cache import example
from tests.cache.example import (
    content_of,
    fill,
    make_cache,
    make_index,
    make_spec,
    shard_values,
    values_of,
)

SCRIPTS = Path(__file__).parent


def resume(path, **options):
    return CacheWriter.create_or_resume(path, make_spec(), make_index(), **options)


def test_shards_are_offered_until_written(tmp_path):
    with resume(tmp_path / "new.cache") as writer:
        assert writer.missing_shards("slices") == (0, 1, 2, 3, 4, 5)
        assert writer.rows_of_shard("slices", 5) == range(25, 28)
        writer.write_shard("slices", 4, shard_values(writer, "slices", 4))
        assert writer.missing_shards("slices") == (0, 1, 2, 3, 5)
        with pytest.raises(ValueError, match="slices shard 4 is finished"):
            writer.write_shard("slices", 4, shard_values(writer, "slices", 4))
        with pytest.raises(ValueError, match="slices shard 6 is finished or does not exist"):
            writer.write_shard("slices", 6, {})
        with pytest.raises(CacheMissingError, match=r"5 of 6 slices shards.*first: 0.*precompute"):
            writer.finish()


def test_size_is_known_exactly_before_writing(finished):
    sizes = required_bytes(make_spec(), make_index().counts())
    for name, expected in sizes.items():
        pattern = "arrays/*/c/**/*" if name == "total" else f"arrays/{name}/c/**/*"
        files = [file for file in finished.glob(pattern) if file.is_file()]
        assert sum(file.stat().st_size for file in files) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("label"), "slices needs arrays"),
        (lambda arrays: arrays.update(extra=arrays["label"]), "slices needs arrays"),
        (lambda arrays: arrays.update(label=arrays["label"][:-1]), r"not uint16 \(5, 16, 16\)"),
        (lambda arrays: arrays.update(label=arrays["label"].astype("int64")), "label .* int64"),
    ],
)
def test_arrays_must_fit_the_spec(tmp_path, change, message):
    with resume(tmp_path / "new.cache") as writer:
        arrays = shard_values(writer, "slices", 0)
        change(arrays)
        with pytest.raises(ValueError, match=message):
            writer.write_shard("slices", 0, arrays)
        assert len(writer.missing_shards("slices")) == 6


def test_values_that_are_not_finite_are_refused_by_row(tmp_path):
    with resume(tmp_path / "new.cache") as writer:
        arrays = shard_values(writer, "slices", 1)
        arrays["features_s8"][2, 0, 0, 0] = np.inf
        with pytest.raises(CacheDataError, match=r"features_s8 row 7 of slices.*65504.*fp32"):
            writer.write_shard("slices", 1, arrays)


def test_writers_killed_at_random_points_leave_the_same_cache(finished, tmp_path, start):
    path = tmp_path / "killed.cache"
    process = start(SCRIPTS / "killed_writers.py", path, 11)
    printed, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    assert int(printed) >= 5  # eleven shards, two in each life
    assert content_of(path) == content_of(finished)
    assert CacheReader(path).complete


def test_an_interrupted_shard_leaves_nothing(tmp_path):
    path = tmp_path / "new.cache"
    with resume(path) as writer:
        writer.write_shard("slices", 0, shard_values(writer, "slices", 0))
        before = content_of(path)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(CacheSpaceError) as caught:
                writer.write_shard("slices", 1, shard_values(writer, "slices", 1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert content_of(path) == before
        message = str(caught.value)
        assert str(path) in message
        assert f"{sum_of_shard():,} bytes needed" in message
        assert "type the same command again" in message
        writer.write_shard("slices", 1, shard_values(writer, "slices", 1))
        assert 1 not in writer.missing_shards("slices")


def sum_of_shard():
    spec = make_spec()
    return sum(spec.shard_file_bytes(array, 5) for array in spec.arrays_of("slices"))


def test_a_cache_that_cannot_fit_is_refused_before_anything_is_written(tmp_path):
    huge = ArraySpec(name="image", rows="slices", shape=(1 << 13,) * 3, dtype="float32")
    spec = make_spec(arrays=(huge,))
    with pytest.raises(
        CacheSpaceError,
        match=r"not enough free disk: 61,\d+,\d+,\d+,\d+ bytes and 1,048,576 in reserve needed, \d",
    ):
        CacheWriter.create_or_resume(tmp_path / "new.cache", spec, make_index())
    assert content_of(tmp_path / "new.cache") == {}


def test_another_cache_is_refused_and_named(copy):
    teacher = TeacherIdentity(name="other", weights_sha256="0" * 64, config={})
    before = content_of(copy)
    with pytest.raises(CacheStaleError) as caught:
        CacheWriter.create_or_resume(copy, make_spec(teacher=teacher), make_index())
    message = str(caught.value)
    assert "teacher.config is None there, {} now (and 3 more keys)" in message
    assert "--force precompute" in message
    assert "cache.path" in message
    renamed = make_spec().teacher.model_copy(update={"name": "big"})
    with pytest.raises(CacheStaleError, match=r"teacher.name is 'tiny' there, 'big' now"):
        CacheWriter.create_or_resume(copy, make_spec(teacher=renamed), make_index())
    with pytest.raises(CacheStaleError, match="index is"):
        CacheWriter.create_or_resume(copy, make_spec(), make_index(prompts=()))
    assert content_of(copy) == before


def test_replace_throws_the_other_cache_away_and_nothing_else(copy, tmp_path):
    (copy / "teacher").mkdir()
    (copy / "teacher" / "model.safetensors").write_bytes(b"weights")
    changes = {"data_sha256": "e" * 64}
    with CacheWriter.create_or_resume(
        copy, make_spec(**changes), make_index(), replace=True
    ) as writer:
        assert len(writer.missing_shards("slices")) == 6
        fill(writer)
    expected = make_cache(tmp_path / "fresh.cache", **changes)
    assert CacheReader(copy).digest() == expected.digest()
    assert (copy / "teacher" / "model.safetensors").read_bytes() == b"weights"


def test_a_folder_of_other_things_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(CacheMissingError, match=r"not empty and holds no cache \(it has thesis"):
        resume(tmp_path, replace=True)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_finished_cache_has_nothing_to_do(copy):
    before = content_of(copy)
    with resume(copy) as writer:
        assert [writer.missing_shards(space) for space in example.SPACES] == [(), (), ()]
        assert writer.discarded == ()
        writer.finish()
    assert content_of(copy) == before


def _shard(path, array="features_s8", k=1):
    return next(file for file in (path / f"arrays/{array}/c/{k}").rglob("*") if file.is_file())


def _truncate(path):
    _shard(path).write_bytes(_shard(path).read_bytes()[:-20])


def _flip_entry(path):
    file = path / "ledger" / "prompts-000001.json"
    file.write_bytes(file.read_bytes().replace(b'"start":5', b'"start":4'))


def _foreign_entry(path):
    other = make_cache(path.with_name("other.cache"), data_sha256="e" * 64).path
    shutil.copy(other / "ledger" / "slices-000002.json", path / "ledger")
    shutil.copytree(other / "arrays", path / "arrays", dirs_exist_ok=True)


def _exchange_entries(path):
    first, second = (path / "ledger" / f"slices-00000{k}.json" for k in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _break_metadata(path):
    file = path / "arrays" / "label" / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["shape"][0] = 5
    file.write_text(json.dumps(metadata))


DAMAGES = {
    "shard deleted": (lambda path: _shard(path).unlink(), "slices shard 1.*is missing"),
    "shard cut off": (_truncate, "slices shard 1.*features_s8.* bytes, not"),
    "entry deleted": (
        lambda path: (path / "ledger" / "tracks-000002.json").unlink(),
        "track_mask_iou/c/2/0: not in the ledger",
    ),
    "entry damaged": (_flip_entry, "prompts-000001.json is damaged"),
    "entry of another cache": (_foreign_entry, "slices-000002.json: belongs to another cache"),
    "entries exchanged": (_exchange_entries, "it is the entry of slices shard 1"),
    "unfinished file of zarr": (
        lambda path: _shard(path).with_name("0.abc.partial").write_bytes(b"half"),
        "leftover of a stopped writer",
    ),
    "unfinished file of ours": (
        lambda path: (path / "ledger" / "slices-000003.json.77.tmp").write_bytes(b"{"),
        None,
    ),
    "no statistics": (lambda path: (path / "statistics.json").unlink(), None),
    "index deleted": (lambda path: (path / "index" / "tracks.parquet").unlink(), None),
    "metadata deleted": (lambda path: (path / "arrays/image/zarr.json").unlink(), None),
    "metadata of another shape": (_break_metadata, None),
    "group metadata deleted": (lambda path: (path / "arrays/zarr.json").unlink(), None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_resume_mends(copy, finished, damage):
    break_it, told = DAMAGES[damage]
    break_it(copy)
    assert content_of(copy) != content_of(finished)
    with resume(copy) as writer:
        if told:
            assert any(re.search(told, line) for line in writer.discarded), writer.discarded
        else:
            assert writer.discarded == ()
        if damage == "entry of another cache":
            # Its other shards have the right sizes; only comparing all bytes can tell them.
            return
        fill(writer)
    assert content_of(copy) == content_of(finished)


def test_taking_up_a_cache_with_a_lost_entry_makes_it_an_honest_unfinished_one(copy):
    (copy / "ledger" / "tracks-000002.json").unlink()
    resume(copy).close()
    assert not (copy / "complete.json").exists()
    assert not list(copy.glob("arrays/track_*/c/2"))
    assert list(copy.glob("arrays/track_*/c/1"))
    report = verify(copy)
    assert report.ok
    assert report.missing["tracks"] == 1


class ForgetfulStore(ZarrStore):
    """A store on a disk that flips a bit after the checksum was taken."""

    def read_rows(self, array, shard, rows):
        values = super().read_rows(array, shard, rows)
        if array.name == "label":
            values.flat[0] ^= 1
        return values


@pytest.mark.parametrize("alignment", [None, 64])
def test_shards_made_again_have_the_bytes_they_had(tmp_path, alignment):
    """Rows of caches of earlier versions, whose header names no alignment, lie close together."""
    wide = ArraySpec(name="wide", rows="slices", shape=(4157,), dtype="uint8")
    spec = make_spec(arrays=(wide,))
    index = make_index(prompts=[], tracks=[])
    CacheWriter.create_or_resume(tmp_path, spec, index).close()
    header = tmp_path / "cache.json"
    record = json.loads(header.read_bytes())
    assert record.pop("row_alignment") == 64
    if alignment is None:
        del record["sha256"]
        header.write_bytes(encode_checked(record))

    def write():
        with CacheWriter.create_or_resume(tmp_path, spec, index) as writer:
            for shard in writer.missing_shards("slices"):
                writer.write_shard("slices", shard, shard_values(writer, "slices", shard))
            writer.finish()

    write()
    stride = 4157 + 4 if alignment is None else 4224
    shard = tmp_path / "arrays/wide/c/1/0"
    assert shard.stat().st_size == 5 * stride + 16 * 5 + 4
    digest, content = CacheReader(tmp_path).digest(), shard.read_bytes()
    shard.write_bytes(content[:100] + b"?" + content[101:])
    (tmp_path / "index" / "slices.parquet").unlink()  # written again as well, header and all
    discard_bad(tmp_path, verify(tmp_path))
    write()
    assert shard.read_bytes() == content
    reader = CacheReader(tmp_path)
    assert reader.digest() == digest
    np.testing.assert_array_equal(reader.read("wide", [7, 6, 27]), values_of(wide, [7, 6, 27]))


def test_a_disk_that_gives_other_values_back_is_found_at_once(tmp_path):
    lock, header, _ = prepare_folder(tmp_path, make_spec(), make_index(), replace=False)
    with CacheWriter(
        path=tmp_path,
        header=header,
        index=make_index(),
        store=ForgetfulStore(tmp_path, header.spec, header.counts),
        lock=lock,
        finished={},
        discarded=(),
    ) as writer:
        before = content_of(tmp_path)
        with pytest.raises(CacheCorruptError, match=r"label/c/0/0/0: reread values differ.*disk"):
            writer.write_shard("slices", 0, shard_values(writer, "slices", 0))
        assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    ("old", "new"), [(b'"tiny"', b'"tony"'), (b'"slices": 28', b'"slices": 27')]
)
def test_a_damaged_header_is_named_and_written_again(copy, finished, old, new):
    file = copy / "cache.json"
    file.write_bytes(file.read_bytes().replace(old, new))
    with pytest.raises(CacheCorruptError, match=r"is damaged.*cache repair .* -c CONFIG"):
        CacheReader(copy)
    with resume(copy) as writer:  # the ledger says that all shards are of this very cache
        assert not any(writer.missing_shards(space) for space in example.SPACES)
        writer.finish()
    assert content_of(copy) == content_of(finished)


def test_a_header_that_is_gone_is_written_again_and_no_row_lost(copy, finished):
    (copy / "cache.json").unlink()
    with pytest.raises(CacheCorruptError, match=r"cache\.json is missing.*cache repair .*CONFIG"):
        CacheReader(copy)
    with resume(copy) as writer:
        assert not any(writer.missing_shards(space) for space in example.SPACES)
        writer.finish()
    assert content_of(copy) == content_of(finished)


def test_a_cache_without_header_of_other_settings_is_left_alone(copy):
    (copy / "cache.json").unlink()
    before = content_of(copy)
    for replace in (False, True):
        with pytest.raises(CacheStaleError, match=r"lost its cache\.json.*of other settings"):
            CacheWriter.create_or_resume(
                copy, make_spec(data_sha256="e" * 64), make_index(), replace=replace
            )
    assert content_of(copy) == before


@pytest.mark.parametrize("ledger", ["foreign", "empty"])
def test_a_damaged_header_without_a_ledger_that_fits_is_refused(copy, ledger):
    (copy / "cache.json").write_bytes(b"{")
    if ledger == "empty":
        shutil.rmtree(copy / "ledger")
    before = content_of(copy)
    spec = make_spec(data_sha256="e" * 64) if ledger == "foreign" else make_spec()
    with pytest.raises(CacheCorruptError, match=r"cache.json is damaged"):
        CacheWriter.create_or_resume(copy, spec, make_index())
    assert content_of(copy) == before
    with CacheWriter.create_or_resume(copy, spec, make_index(), replace=True) as writer:
        assert len(writer.missing_shards("slices")) == 6


def test_one_writer_at_a_time(tmp_path, start):
    path = tmp_path / "new.cache"
    other = start(SCRIPTS / "example.py", path)
    assert other.stdout.readline() == "writing\n"
    with pytest.raises(CacheLockedError, match=f"process {other.pid} is writing"):
        resume(path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    with resume(path) as writer, pytest.raises(CacheLockedError):
        resume(writer.path)
    resume(path).close()
