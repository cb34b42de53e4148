"""What differs between a cache and what a run wants, by its key."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cache import CacheReader
from cache.layout import read_complete_mark, read_header, write_complete_mark, write_header
from efficient_medsam2.errors import DataError
from stages import precompute
from stages.cache_examine import examine
from stages.cache_settings import CacheConfig, LevelTypes, PrecomputeConfig
from stages.cases import DataConfig
from stages.row_settings import PromptConfig, TrackConfig
from tests.end_to_end import files, small
from tests.stages.conftest import make_cache, make_context

FULL = LevelTypes.model_validate("fp32")
MIXED = LevelTypes(s4="int8", logits="bf16")


def look(blocks, path, *, trained=None):
    return examine(
        blocks.data,
        blocks.teacher,
        blocks.cache,
        blocks.precompute,
        path=path,
        trained_teacher=trained,
    )


def keys(blocks, path, **changes):
    return [key for key, _, _ in look(blocks, path, **changes)[1]]


def changed(blocks, block, **values):
    return replace(blocks, **{block: getattr(blocks, block).model_copy(update=values)})


def test_the_wanted_cache_has_an_identity_and_no_difference(blocks, cache_path, reader):
    assert look(blocks, cache_path) == (reader.digest(), [], "")


def test_no_cache_is_no_difference(blocks, tmp_path):
    assert look(blocks, tmp_path) == (None, [], "")


@pytest.mark.parametrize(
    ("block", "values", "key", "old", "new"),
    [
        ("data", {"margin": 2}, "data.margin", 1, 2),
        ("data", {"splits": (0.6, 0.2, 0.2)}, "data.splits", [0.7, 0.1, 0.2], [0.6, 0.2, 0.2]),
        ("cache", {"dtype": FULL}, "cache.dtype", "fp16", "fp32"),
        ("cache", {"dtype": MIXED}, "cache.dtype", "fp16", MIXED.by_level()),
        ("cache", {"format": "hdf5"}, "cache.format", "zarr", "hdf5"),
        ("cache", {"rows_per_shard": 64}, "cache.rows_per_shard", 8, 64),
        (
            "precompute",
            {"prompts": PromptConfig(per_object=1, seed=4)},
            "precompute.prompts.seed",
            0,
            4,
        ),
        (
            "precompute",
            {"tracks": TrackConfig(per_object=1, length=4)},
            "precompute.tracks.length",
            3,
            4,
        ),
        ("precompute", {"precision": "bf16"}, "precompute.precision", "no", "bf16"),
        ("teacher", {"kind": "medsam2"}, "teacher.kind", "scratch", "medsam2"),
    ],
)
def test_a_difference_has_its_key_and_both_values(blocks, cache_path, block, values, key, old, new):
    found = look(changed(blocks, block, **values), cache_path)
    assert found[1] == [(key, old, new)]
    assert found[0] is not None


def test_settings_without_effect_make_no_difference(blocks, cache_path):
    for block, values in (
        ("precompute", {"batch_size": 3}),
        ("data", {"on_error": "skip"}),
        ("cache", {"path": Path("elsewhere")}),
    ):
        assert keys(changed(blocks, block, **values), cache_path) == []


def test_another_phantom_is_told_by_settings_and_source(blocks, cache_path):
    wanted = changed(blocks, "data", phantom_size=64)
    assert keys(wanted, cache_path) == ["data.phantom_size", "data.source"]


def test_another_teacher_is_told_by_its_digest(blocks, cache_path, tmp_path):
    small.save_tiny_teacher(tmp_path / "other" / "model")
    weights = tmp_path / "other" / "model" / "model.safetensors"
    wanted = changed(blocks, "teacher", checkpoint=tmp_path / "other" / "model")
    assert keys(wanted, cache_path) == []
    assert keys(blocks, cache_path, trained=tmp_path / "other") == []
    weights.write_bytes(weights.read_bytes() + b" ")
    assert keys(wanted, cache_path) == ["teacher.checkpoint"]
    assert keys(blocks, cache_path, trained=tmp_path / "other") == ["teacher.checkpoint"]


def test_what_is_not_here_is_a_note(blocks, cache_path, tmp_path):
    wanted = changed(blocks, "teacher", checkpoint=tmp_path / "absent")
    identity, differing, note = look(wanted, cache_path)
    assert identity is not None
    assert differing == []
    assert "checkpoint is not here" in note


def test_an_unfinished_cache_has_no_identity_and_says_how_far_it_is(blocks, cache_path, tmp_path):
    copy = shutil.copytree(cache_path, tmp_path / "copy")
    for entry in (copy / "ledger").glob("tracks-*.json"):
        entry.unlink()
    identity, differing, note = look(blocks, copy)
    counts = CacheReader(cache_path).counts
    done = counts["slices"] + counts["prompts"]
    assert (identity, differing) == (None, [])
    assert note == f"{done} of {sum(counts.values())} rows are written"


@pytest.fixture(scope="module")
def folder_cache(blocks, tmp_path_factory):
    """Blocks on a folder of four npz cases, and its cache."""
    root = tmp_path_factory.mktemp("folder")
    source = files.write_npz_folder(root / "data")
    data = DataConfig(source=str(source), smallest=5)
    found = replace(
        blocks,
        data=data,
        precompute=PrecomputeConfig(
            prompts=PromptConfig(per_object=1), tracks=TrackConfig(per_object=0)
        ),
    )
    make_cache(found, root / "cache")
    return found, root


@pytest.fixture
def folder(folder_cache, tmp_path):
    """The same to change: (blocks, source, cache)."""
    found, root = folder_cache
    source = shutil.copytree(root / "data", tmp_path / "data")
    return changed(found, "data", source=str(source)), source, root / "cache"


def test_a_folder_that_was_copied_is_the_same_data(folder):
    wanted, _, cache = folder
    assert look(wanted, cache)[1:] == ([], "")


def test_changes_of_a_folder_are_named_by_file_or_case(folder):
    wanted, source, cache = folder
    files.write_npz(source, "3D_case1", seed=50)
    files.write_npz(source, "3D_new")
    (source / "3D_case3.npz").unlink()
    found = look(wanted, cache)[1]
    assert [key for key, _, _ in found] == [
        "data.source, file 3D_case1.npz",
        "data.source, case 3D_case3",
        "data.source, case 3D_new",
    ]
    assert found[1][1:] == ("in the cache", "not found")
    assert found[2][1:] == ("not in the cache", "found")


def test_many_changes_are_counted(folder):
    wanted, source, cache = folder
    for number in range(6):
        files.write_npz(source, f"3D_new{number}")
    found = look(wanted, cache)[1]
    assert len(found) == 4
    assert found[-1][2] == "and 3 more cases or files"


def test_absent_raw_data_are_a_note(folder):
    wanted, source, cache = folder
    shutil.rmtree(source)
    identity, differing, note = look(wanted, cache)
    assert identity is not None
    assert differing == []
    assert "raw data are not here" in note
    source.mkdir()
    assert look(wanted, cache) == (identity, differing, note)


def test_raw_data_that_became_unusable_are_a_difference(folder):
    wanted, source, cache = folder
    (source / "3D_case0.npz").write_bytes(b"cut")
    ((key, _, reason),) = look(wanted, cache)[1]
    assert key == "data.source"
    assert "3D_case0.npz" in reason


def test_bad_data_leave_no_cache(blocks, tmp_path):
    files.write_npz(tmp_path / "data", "3D_blank", label=files.volume(0)[1] * 0)
    wanted = changed(blocks, "data", source=str(tmp_path / "data"))
    context = make_context(tmp_path / "cache", tmp_path / "cache")
    with pytest.raises(DataError, match="no object"):
        precompute.run(wanted.data, wanted.teacher, wanted.cache, wanted.precompute, context)
    assert not (tmp_path / "cache").exists()


def test_batch_size_does_not_decide_what_is_cached(blocks, cache_path, tmp_path):
    """Tracks and prompts run side by side without changing each other, to rounding."""
    wanted = changed(blocks, "precompute", batch_size=1)
    wanted = replace(wanted, cache=CacheConfig(rows_per_shard=5))
    make_cache(wanted, tmp_path / "cache")
    mine, other = CacheReader(tmp_path / "cache"), CacheReader(cache_path)
    for array in other.spec.arrays:
        rows = range(other.counts[array.rows])
        first = mine.read(array.name, rows).astype(float)
        second = other.read(array.name, rows).astype(float)
        assert abs(first - second).max() <= 2e-3 * max(abs(second).max(), 1), array.name


@pytest.mark.parametrize(
    ("settings", "made_by", "differing"),
    [
        ({"kind": "sam2.1", "size": "s"}, {"size": "t", "image_size": 1024}, "teacher.size"),
        ({"kind": "sam2.1"}, {"size": "t", "image_size": 512}, "teacher.image_size"),
        (
            {"kind": "sam2.1", "image_size": 256},
            {"size": "t", "image_size": 512},
            "teacher.image_size",
        ),
        ({"kind": "medsam2"}, {"size": "t", "image_size": 512}, None),
    ],
)
def test_sizes_are_compared_without_the_checkpoint(
    blocks, cache_path, tmp_path, settings, made_by, differing
):
    copy = tmp_path / "copy"
    shutil.copytree(cache_path, copy)
    header = read_header(copy)
    identity = header.spec.teacher.model_copy(update={"name": settings["kind"], "config": made_by})
    write_header(copy, replace(header, spec=header.spec.model_copy(update={"teacher": identity})))
    (copy / "side_files.json").unlink()  # it is of the header as it was
    write_complete_mark(copy, replace(read_complete_mark(copy), side_files_sha256=None))
    wanted = changed(blocks, "teacher", **settings)
    assert keys(wanted, copy) == ([] if differing is None else [differing])


@pytest.mark.parametrize("name", ["splits.json", "teacher/runner.json", "files.json"])
def test_a_cache_that_lacks_a_file_beside_its_rows_is_half_done(blocks, cache_path, tmp_path, name):
    copy = Path(shutil.copytree(cache_path, tmp_path / "copy"))
    (copy / name).unlink()
    assert look(blocks, copy) == (None, [], f"{name} is missing")
    make_cache(blocks, copy)
    assert look(blocks, copy) == (CacheReader(cache_path).digest(), [], "")
    assert (copy / name).read_bytes() == (cache_path / name).read_bytes()


def test_a_header_that_is_gone_comes_back_with_the_same_config(blocks, cache_path, tmp_path):
    copy = Path(shutil.copytree(cache_path, tmp_path / "copy"))
    (copy / "cache.json").unlink()
    assert look(blocks, copy) == (None, [], "")
    make_cache(blocks, copy)
    assert (copy / "cache.json").read_bytes() == (cache_path / "cache.json").read_bytes()
    assert look(blocks, copy)[0] == CacheReader(cache_path).digest()
