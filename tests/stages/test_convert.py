"""Caches written anew in other types and formats, and students that learn from them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache import CacheReader, CacheWriter, describe, verify
from cache.dataset import Levels
from cache.errors import CacheCorruptError, CacheMissingError, CacheStaleError
from cache.layout import read_complete_mark, write_complete_mark
from cache.levels import level_of
from cache.stored import read_stored, to_stored
from efficient_medsam2.networks.student import StudentConfig
from stages import distill_encoder, distill_memory, precompute
from stages.cache_examine import examine
from stages.cache_prompt_pass import prompts_of
from stages.cache_settings import CacheConfig, LevelTypes
from stages.convert import convert, types_of
from stages.convert_report import compare_caches
from stages.distill_encoder import EncoderConfig
from stages.distill_memory import MemoryConfig
from stages.errors import StageConfigError
from stages.training.heads import TeacherHeads
from stages.training.slice_batches import decoded_features
from stages.training.track_batches import TrackStream
from tests.cache.example import content_of
from tests.stages.conftest import Notes, make_cache, make_context
from tests.stages.spoiled import spoil_decoder

SHORT = {"steps": 2, "batch_size": 4, "log_every": 1}


def converted(source, target, **options):
    return convert(source, target, progress=Notes(), **options)


@pytest.fixture(scope="module")
def int8_path(cache_path, tmp_path_factory):
    """The phantom's cache in int8; no test may change it."""
    path = tmp_path_factory.mktemp("converted") / "int8.cache"
    converted(cache_path, path, dtype="int8")
    return path


def state(blocks, path, **cache):
    """What the run is told of a cache by a config that wants it stored like this."""
    wanted = CacheConfig(rows_per_shard=8, **cache)
    return examine(
        blocks.data, blocks.teacher, wanted, blocks.precompute, path=path, trained_teacher=None
    )


def test_a_converted_cache_is_fresh_for_a_config_that_says_so(blocks, reader, int8_path):
    int8 = CacheReader(int8_path)
    assert state(blocks, int8_path, dtype="int8") == (int8.digest(), [], "")
    assert state(blocks, int8_path)[1] == [("cache.dtype", "int8", "fp16")]
    assert int8.complete
    assert verify(int8_path).ok
    assert int8.digest() != reader.digest()
    for name in ("splits.json", "files.json", "teacher/model.safetensors"):
        assert (int8_path / name).read_bytes() == (reader.path / name).read_bytes()


def test_it_has_the_arrays_that_precompute_would_have_made(blocks, int8_path, tmp_path):
    make_cache(replace(blocks, cache=CacheConfig(rows_per_shard=8, dtype="int8")), tmp_path)
    made, ours = CacheReader(tmp_path), CacheReader(int8_path)
    assert made.spec.differences(ours.spec) == ()
    # Precompute has the teacher's float32; a conversion has what the source stored.
    for name in ("features_s4", "track_memory_s16"):
        rows = range(ours.counts[ours.spec.array(name).rows])
        np.testing.assert_allclose(
            ours.read_decoded(name, rows), made.read_decoded(name, rows), rtol=0.02, atol=0.02
        )
    assert ours.read("label", range(8)).tobytes() == made.read("label", range(8)).tobytes()


def test_precompute_answers_prompts_from_what_it_stored(blocks, reader, tmp_path):
    """Students see the decoded features: the teacher's answers must be to these."""
    words = {"s4": "int8", "s8": "int8", "s16": "int8", "logits": "fp32"}
    make_cache(replace(blocks, cache=CacheConfig(rows_per_shard=8, dtype=words)), tmp_path)
    mixed = CacheReader(tmp_path)
    table = mixed.index.prompts
    rows = np.flatnonzero(np.diff(table.prompt.offsets) == 2)[:8]
    prompts = prompts_of(table.prompt, rows)
    heads = TeacherHeads.of_cache(mixed)
    answers = {}
    for name, cache in (("mixed", mixed), ("half", reader)):
        levels = Levels(
            **{
                level: read_stored(cache, f"features_{level}", table.slice_row[rows].astype(int))
                for level in ("s4", "s8", "s16")
            }
        )
        features = decoded_features(levels, torch.device("cpu"))
        answers[name] = heads.answer(features, prompts).mask_logits[:, 0].numpy()
    stored = mixed.read("mask_logits", rows)
    errors = {name: np.abs(answer - stored).max() for name, answer in answers.items()}
    assert errors["mixed"] < 0.05 * errors["half"]


def test_errors_are_reported_by_array(reader, int8_path):
    comparison = compare_caches(reader, CacheReader(int8_path))
    names = [array.name for array in reader.spec.arrays if level_of(array.name)]
    assert sorted(array.name for array in comparison.arrays) == sorted(names)
    for array in comparison.arrays:
        assert (array.before, array.after) == ("fp16", "int8")
        assert 1e-4 < array.relative_rms < 1.1e-2
        # Half a step of the tile with the largest value.
        assert array.largest <= 0.5 / 127 * 1.001
        assert array.cosine > 0.9999
        assert (array.dsc is None) == (array.level != "logits")
        assert array.dsc is None or array.dsc > 0.98
    assert comparison.decoder.prompts == len(reader.index.prompts)
    assert comparison.decoder.mean > 0.98
    few = compare_caches(reader, CacheReader(int8_path), rows=5)
    assert {array.rows for array in few.arrays} == {5}
    assert few.decoder.prompts == 5


def test_a_cache_equals_itself(reader):
    comparison = compare_caches(reader, reader, rows=9)
    assert {(array.relative_rms, array.largest) for array in comparison.arrays} == {(0.0, 0.0)}
    assert comparison.decoder.smallest == 1.0


def test_some_levels_alone(blocks, reader, cache_path, tmp_path):
    made = converted(cache_path, tmp_path / "mixed", dtype="bf16", levels=("s4", "tracks"))
    wanted = {"s4": "bf16", "s8": "fp16", "s16": "fp16", "logits": "fp16", "tracks": "bf16"}
    mixed = CacheReader(tmp_path / "mixed")
    assert made.types.by_level() == types_of(mixed.spec).by_level() == wanted
    assert state(blocks, mixed.path, dtype=wanted)[1] == []
    for name in ("features_s8", "mask_logits", "image"):
        rows = range(reader.counts[reader.spec.array(name).rows])
        assert mixed.read(name, rows).tobytes() == reader.read(name, rows).tobytes()
    errors = {array.name: array.relative_rms for array in compare_caches(reader, mixed).arrays}
    assert errors["features_s8"] == errors["mask_logits"] == 0
    assert 1e-4 < errors["features_s4"] < 1.8e-3
    assert 1e-4 < errors["track_memory_s16"] < 1.8e-3


def test_the_other_format_keeps_every_byte(blocks, reader, cache_path, tmp_path):
    made = converted(cache_path, tmp_path / "hdf5", format="hdf5")
    assert made.types == LevelTypes()
    other = CacheReader(tmp_path / "hdf5")
    for array in reader.spec.arrays:
        rows = range(reader.counts[array.rows])
        assert other.read(array.name, rows).tobytes() == reader.read(array.name, rows).tobytes()
    assert state(blocks, other.path, format="hdf5")[1] == []
    back = converted(other.path, tmp_path / "zarr", format="zarr")
    assert back.digest == reader.digest()
    assert back.target_bytes == made.source_bytes


def test_a_stopped_conversion_goes_on(cache_path, int8_path, tmp_path, monkeypatch):
    write, written = CacheWriter.write_shard, []

    def stop_after_3(writer, space, k, arrays):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append((space, k))
        write(writer, space, k, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write_shard", stop_after_3)
        with pytest.raises(KeyboardInterrupt):
            converted(cache_path, tmp_path / "new", dtype="int8")
    rows = sum(CacheReader(cache_path).counts.values())
    made = converted(cache_path, tmp_path / "new", dtype="int8")
    assert 0 < made.written_rows < rows
    assert content_of(tmp_path / "new") == content_of(int8_path)
    assert converted(cache_path, tmp_path / "new", dtype="int8").written_rows == 0


def test_what_is_not_a_conversion_of_this_cache_is_refused(blocks, cache_path, int8_path, tmp_path):
    with pytest.raises(CacheStaleError, match="holds another cache"):
        converted(int8_path, cache_path, dtype="int8")
    with pytest.raises(
        CacheStaleError, match=r"converted otherwise: to zarr with cache\.dtype=int8"
    ):
        converted(cache_path, int8_path, dtype="bf16")
    with pytest.raises(StageConfigError, match="lie in each other"):
        converted(cache_path, cache_path / "inside", dtype="int8")
    with pytest.raises(StageConfigError, match="lie in each other"):
        converted(cache_path, cache_path, dtype="int8")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "home.txt").write_text("dear")
    with pytest.raises(CacheMissingError, match="holds no cache"):
        converted(cache_path, tmp_path / "letters", dtype="int8")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(cache_path, unfinished)
    (unfinished / "complete.json").unlink()
    with pytest.raises(CacheMissingError, match=r"not complete.*efficient-medsam2 precompute"):
        converted(unfinished, tmp_path / "new", dtype="int8")
    # The same settings from another source: nothing of the two may be mixed.
    other = tmp_path / "other"
    make_cache(replace(blocks, cache=CacheConfig(rows_per_shard=8, dtype="fp32")), other)
    with pytest.raises(CacheStaleError, match="no conversion of"):
        converted(other, int8_path, dtype="int8")


@pytest.fixture(scope="module")
def back_path(int8_path, tmp_path_factory):
    """The int8 cache in fp16 again."""
    path = tmp_path_factory.mktemp("back") / "fp16.cache"
    converted(int8_path, path, dtype="fp16")
    return path


def test_rounded_numbers_never_pass_for_the_teachers_own(blocks, reader, int8_path, back_path):
    back = CacheReader(back_path)
    assert back.spec.fingerprint() == reader.spec.fingerprint()
    (key, there, wanted), *others = state(blocks, back_path)[1]
    assert (key, others) == ("cache.dtype", [])
    assert "numbers are rounded: s4 from int8, s8 from int8" in there
    assert "--set cache.accept_rounded=true" in wanted
    identity, differing, note = state(blocks, back_path, accept_rounded=True)
    assert (identity, differing) == (back.digest(), [])
    assert "numbers are rounded, as cache.accept_rounded allows: s4 from int8" in note
    info = describe(back_path)
    assert info.rounded == dict.fromkeys(("s4", "s8", "s16", "logits", "tracks"), "int8")
    assert info.converted_from == (
        f"{reader.digest()[:12]} (zarr, fp16)",
        f"{CacheReader(int8_path).digest()[:12]} (zarr, int8)",
    )
    assert (describe(int8_path).rounded, describe(reader.path).converted_from) == ({}, ())


def test_making_a_rounded_cache_anew_forgets_where_it_came_from(blocks, back_path, tmp_path):
    copy = Path(shutil.copytree(back_path, tmp_path / "copy"))
    precompute.run(
        blocks.data,
        blocks.teacher,
        blocks.cache,
        blocks.precompute,
        make_context(copy, copy, resume=False),
    )
    assert state(blocks, copy)[1:] == ([], "")
    assert describe(copy).converted_from == ()


def test_an_origin_that_is_lost_is_no_clean_record(blocks, back_path, tmp_path):
    copy = Path(shutil.copytree(back_path, tmp_path / "copy"))
    (copy / "converted.json").unlink()
    assert [part.array for part in verify(copy).bad] == ["converted.json"]
    with pytest.raises(CacheCorruptError, match="what this cache was converted from"):
        state(blocks, copy)
    make_cache(blocks, copy)  # precompute knows nothing of it either
    assert [part.array for part in verify(copy).bad] == ["converted.json"]


def test_a_conversion_of_an_earlier_version_is_taken_and_named(blocks, int8_path, tmp_path):
    copy = Path(shutil.copytree(int8_path, tmp_path / "copy"))
    record = json.loads((copy / "converted.json").read_text())
    (copy / "converted.json").write_text(json.dumps({"source_digest": record["source_digest"]}))
    (copy / "side_files.json").unlink()
    mark = read_complete_mark(copy)
    write_complete_mark(copy, replace(mark, side_files_sha256=None))
    identity, differing, note = state(blocks, copy, dtype="int8")
    assert (identity, differing) == (mark.cache_digest, [])
    assert "converted by an earlier version" in note
    assert "stored types were not recorded" in describe(copy).converted_from[0]


def test_a_damaged_teacher_is_not_copied(int8_path, tmp_path):
    copy = Path(shutil.copytree(int8_path, tmp_path / "copy"))
    (copy / "teacher" / "runner.json").unlink()
    with pytest.raises(CacheCorruptError, match=r"runner\.json is missing.*cache repair"):
        converted(copy, tmp_path / "new", dtype="bf16")


def test_answers_that_are_not_finite_are_damage(cache_path, reader, tmp_path):
    copy = Path(shutil.copytree(cache_path, tmp_path / "copy"))
    spoil_decoder(copy)
    comparison = compare_caches(CacheReader(copy), reader, rows=6)
    decoder = comparison.decoder
    assert (decoder.not_finite, decoder.mean, decoder.smallest) == (6, 0.0, 0.0)
    assert comparison.damage == ("6 of 6 prompts get answers that are NaN or infinite",)
    assert {array.not_finite for array in comparison.arrays} == {0}
    assert compare_caches(reader, reader, rows=6).damage == ()


def test_stored_values_that_are_not_finite_are_damage(reader, monkeypatch):
    """No writer takes such values; should one come, it must not read as an empty mask."""

    def spoiled(*arguments):
        values = to_stored(*arguments)
        values.view(-1)[0] = float("nan")
        return values

    monkeypatch.setattr("stages.convert_report.to_stored", spoiled)
    comparison = compare_caches(reader, reader, rows=3)
    assert {array.not_finite for array in comparison.arrays} == {1}
    logits = [array for array in comparison.arrays if array.level == "logits"]
    assert all(array.dsc < 1 and array.relative_rms == 0 for array in logits)
    assert f"{logits[0].name} has 1 values that are NaN or infinite" in comparison.damage


@pytest.mark.parametrize("size", [None, 32])
def test_students_learn_from_int8(int8_path, tmp_path, size):
    student = StudentConfig(image_size=size, resize_targets=size and "area")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "memory").mkdir()
    context = make_context(tmp_path / "encoder", int8_path)
    made = distill_encoder.run(student, EncoderConfig(**SHORT), context)
    assert made.summary["steps"] == 2
    context = make_context(tmp_path / "memory", int8_path, inputs={"encoder": tmp_path / "encoder"})
    made = distill_memory.run(student, MemoryConfig(**SHORT | {"length": 2}), context)
    assert made.summary["steps"] == 2


def test_targets_of_a_smaller_student_are_numbers_already(reader, int8_path):
    int8 = CacheReader(int8_path)

    def windows(cache):
        return TrackStream(
            cache,
            np.arange(4),
            batch_size=2,
            length=2,
            augment=0,
            labelled_rows=None,
            features=True,
            seed=1,
            size=32,
            mode="area",
        )(0).cached

    for name in ("conditioned_s16", "mask_logits", "features_s16"):
        ours, theirs = getattr(windows(int8), name), getattr(windows(reader), name)
        assert ours.shape == theirs.shape
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert 0 < error < 0.02
