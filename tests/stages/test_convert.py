"""Caches written anew in other types and formats, and students that learn from them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from cache import CacheReader, CacheWriter, verify
from cache.dataset import Levels
from cache.errors import CacheMissingError, CacheStaleError
from cache.levels import level_of
from cache.stored import read_stored
from efficient_medsam2.networks.student import StudentConfig
from stages import distill_encoder, distill_memory
from stages.cache_examine import examine
from stages.cache_prompt_pass import prompts_of
from stages.cache_settings import CacheConfig, LevelTypes
from stages.convert import convert, types_of
from stages.convert_report import compare_caches
from stages.distill_encoder import EncoderConfig
from stages.distill_memory import MemoryConfig
from stages.errors import StageConfigError
from stages.training.batches import TrackStream, decoded_features
from stages.training.student import TeacherHeads
from tests.cache.example import content_of
from tests.stages.conftest import Notes, make_cache, make_context

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
