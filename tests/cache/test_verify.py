import json
import shutil

import pytest

from cache import CacheCorruptError, CacheReader, CacheWriter, discard_bad, verify
from tests.cache.example import content_of, fill, make_cache, make_index, make_spec, shard_values

FILES = 6 * 5 + 2 * 2 + 3 * 6  # shards x arrays of the three spaces


def places(report):
    return [(part.space, part.shard, part.array) for part in report.bad]


def flip(file, place=0):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_sound_cache_passes(finished):
    seen = []
    report = verify(finished, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.checked == report.total == FILES
    assert seen == [(done, FILES) for done in range(1, FILES + 1)]
    assert report.missing == {"slices": 0, "prompts": 0, "tracks": 0}
    assert report.finished
    report.raise_if_bad(finished)


def test_verify_changes_nothing(copy):
    before = content_of(copy)
    verify(copy)
    assert content_of(copy) == before


def test_a_sample_checks_fewer_files(finished):
    report = verify(finished, sample=0.3)  # 4 of 11 shards
    assert 4 * 2 <= report.checked <= 4 * 6
    with pytest.raises(ValueError, match="share"):
        verify(finished, sample=1.5)


def test_a_flipped_byte_is_found_wherever_it_is(copy):
    flip(copy / "arrays/features_s8/c/1/0/0/0", 3)
    flip(copy / "arrays/track_mask_iou/c/2/0", -1)
    report = verify(copy)
    assert places(report) == [("slices", 1, "features_s8"), ("tracks", 2, "track_mask_iou")]
    assert "SHA-256" in report.bad[0].reason
    with pytest.raises(
        CacheCorruptError, match=r"2 bad parts: slices shard 1, features_s8.*cache repair"
    ):
        report.raise_if_bad(copy)


def test_swapped_shards_are_found(copy):
    # Same size, valid checksums inside: only the ledger's row checksums tell.
    first, second = (copy / f"arrays/image/c/{k}/0/0/0" for k in (0, 1))
    aside = copy / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    with pytest.raises(CacheCorruptError, match=r"row 0 has not the checksum.*exchanged"):
        CacheReader(copy).read("image", [0])
    assert places(verify(copy)) == [("slices", 0, "image"), ("slices", 1, "image")]


def test_deleted_and_cut_shards_are_found_even_outside_a_sample(copy):
    (copy / "arrays/label/c/0/0/0").unlink()
    file = copy / "arrays/label/c/5/0/0"
    file.write_bytes(file.read_bytes()[:-7])
    report = verify(copy, sample=0.01)
    assert places(report) == [("slices", 0, "label"), ("slices", 5, "label")]
    assert report.bad[0].reason == "is missing"


def test_a_deleted_ledger_entry_is_found(copy):
    (copy / "ledger" / "prompts-000000.json").unlink()
    report = verify(copy)
    assert places(report) == [("prompts", 0, "all")]
    assert report.missing["prompts"] == 1


def test_damaged_and_foreign_ledger_entries_are_found(copy, tmp_path):
    other = make_cache(tmp_path / "other.cache", data_sha256="e" * 64).path
    shutil.copy(other / "ledger" / "slices-000002.json", copy / "ledger")
    flip(copy / "ledger" / "tracks-000000.json", 120)
    report = verify(copy)
    assert places(report) == [
        ("ledger", None, "slices-000002.json"),
        ("ledger", None, "tracks-000000.json"),
        ("slices", 2, "all"),
        ("tracks", 0, "all"),
    ]
    assert "belongs to another cache" in report.bad[0].reason


def test_damage_outside_the_shards_is_found(copy):
    flip(copy / "index" / "slices.parquet", 100)
    flip(copy / "statistics.json", 50)
    (copy / "arrays" / "image" / "zarr.json").write_text("{}")
    assert places(verify(copy)) == [
        ("index", None, "slices.parquet"),
        ("arrays", None, "image"),
        ("cache", None, "statistics.json"),
    ]


def test_damaged_metadata_are_named_however_zarr_fails_on_them(copy):
    file = copy / "arrays" / "image" / "zarr.json"
    metadata = json.loads(file.read_bytes())
    metadata["chunk_grid"]["configuration"]["chunk_shape"][0] = 0
    file.write_text(json.dumps(metadata))
    (copy / "arrays" / "zarr.json").write_text("{}")
    assert places(verify(copy)) == [("arrays", None, "all"), ("arrays", None, "image")]
    with pytest.raises(CacheCorruptError, match="image"):
        CacheReader(copy).read("image", [0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fill_value", 7),
        ("attributes", {"note": "mine"}),
        ("dimension_names", ["rows", "channels", "height", "width"]),
    ],
)
def test_any_edit_of_metadata_is_found_and_written_back(copy, finished, key, value):
    file = copy / "arrays" / "image" / "zarr.json"
    metadata = json.loads(file.read_bytes())
    file.write_text(json.dumps({**metadata, key: value}))
    report = verify(copy)
    assert places(report) == [("arrays", None, "image")]
    assert report.bad[0].reason.startswith(f"has {key} ")
    # Rows lie where they lay: reading needs no detour for that.
    assert CacheReader(copy).read("image", [3]).tobytes() == (
        CacheReader(finished).read("image", [3]).tobytes()
    )
    with CacheWriter.create_or_resume(copy, make_spec(), make_index()) as writer:
        writer.finish()
    assert content_of(copy) == content_of(finished)


def test_a_damaged_completion_mark_is_found(copy):
    flip(copy / "complete.json", 25)
    report = verify(copy)
    assert places(report) == [("cache", None, "complete.json")]


def test_an_unfinished_cache_is_not_a_bad_one(tmp_path):
    path = tmp_path / "part.cache"
    with CacheWriter.create_or_resume(path, make_spec(), make_index()) as writer:
        writer.write_shard("slices", 1, shard_values(writer, "slices", 1))
    report = verify(path)
    assert report.ok
    assert report.checked == 5
    assert report.missing == {"slices": 5, "prompts": 2, "tracks": 3}
    assert report.shards == {"slices": 6, "prompts": 2, "tracks": 3}
    assert not report.finished


def test_dropping_bad_shards_lets_the_next_writer_mend_them(copy, finished):
    flip(copy / "arrays/features_s8/c/1/0/0/0", 3)
    flip(copy / "arrays/track_mask_iou/c/2/0", -1)
    lines = discard_bad(copy, verify(copy))
    assert lines == (
        "slices shard 1 will be written again",
        "tracks shard 2 will be written again",
    )
    with CacheWriter.create_or_resume(copy, make_spec(), make_index()) as writer:
        assert writer.missing_shards("slices") == (1,)
        fill(writer)
    assert content_of(copy) == content_of(finished)
    assert discard_bad(copy, verify(copy)) == ()
