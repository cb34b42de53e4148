import shutil
from dataclasses import replace

import pytest

from cache.errors import CacheSpaceError
from cache.sizes import NO_END, free_bytes
from stages import precompute
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.estimate import estimate
from stages.estimate_clock import Cost
from stages.estimate_records import readable
from stages.estimate_sample import SampleTimes
from stages.estimate_size import refusal
from stages.estimate_time import extrapolate
from stages.row_settings import PromptConfig, TrackConfig, ViewConfig
from tests.stages.conftest import make_cache, make_context

RESERVE = 1 << 20
"""Bytes that a writer wants to be left."""

CONFIGS = {
    "small": {},
    "shards of 3": {"cache": CacheConfig(rows_per_shard=3)},
    "fp32": {"cache": CacheConfig(rows_per_shard=8, dtype="fp32")},
    "mixed": {"cache": CacheConfig(rows_per_shard=8, dtype={"s4": "int8", "tracks": "bf16"})},
    "views, no tracks": {
        "precompute": PrecomputeConfig(
            views=ViewConfig(count=2),
            prompts=PromptConfig(per_object=3),
            tracks=TrackConfig(per_object=0),
        )
    },
}


def asked(blocks, folder, **options):
    return estimate(
        blocks.data, blocks.teacher, blocks.cache, blocks.precompute, folder=folder, **options
    )


def written(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_bytes_are_within_3_percent_of_what_is_then_written(blocks, tmp_path, change):
    blocks = replace(blocks, **change)
    size = asked(blocks, tmp_path / "cache", sample=False).size
    assert not (tmp_path / "cache").exists()
    make_cache(blocks, tmp_path / "cache")
    # Without the teacher, which is most of so small a folder, and as part of the whole.
    weights = written(tmp_path / "cache" / "teacher")
    assert size.overhead["teacher"] == pytest.approx(weights, rel=0.01)
    rest = size.total_bytes - size.overhead["teacher"]
    assert rest == pytest.approx(written(tmp_path / "cache") - weights, rel=0.03)
    for array in size.arrays:
        files = (tmp_path / "cache" / "arrays" / array.name / "c").rglob("*")
        assert sum(file.stat().st_size for file in files if file.is_file()) == array.bytes


def test_the_sample_gives_a_time_and_leaves_nothing(blocks, tmp_path):
    made = asked(blocks, tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []
    time = made.time
    assert time.total_s == pytest.approx(sum(time.parts_s.values()))
    assert time.slices_per_second > 0
    assert sum(time.shares.values()) == pytest.approx(1)
    assert time.sampled["prompts"] >= 1
    assert time.sampled["track_steps"] >= 2
    assert any(line.startswith("pace: ") and f"{time.bound}-bound" in line for line in made.lines())
    assert made.to_json()["time"]["bound"] == time.bound


def test_a_finished_cache_needs_neither_room_nor_time(blocks, cache_path):
    made = asked(blocks, cache_path, free_bytes=2_000_000)
    assert made.size.present_bytes == written(cache_path)
    assert made.size.needed_bytes < 0.01 * made.size.total_bytes
    assert made.time.parts_s["slices"] == made.time.parts_s["tracks"] == 0


def test_an_object_store_has_room_without_end(blocks, tmp_path):
    made = asked(blocks, tmp_path, sample=False, free_bytes=NO_END)
    assert made.size.fits
    assert "free: an object store tells no end of its room" in made.lines()


def test_what_does_not_fit_names_settings_that_do_and_their_size(blocks, tmp_path):
    wide = replace(
        blocks,
        cache=CacheConfig(rows_per_shard=8, dtype="fp32"),
        precompute=PrecomputeConfig(
            views=ViewConfig(count=3),
            prompts=PromptConfig(per_object=3),
            tracks=TrackConfig(per_object=2, length=4),
        ),
    )
    whole = asked(wide, tmp_path, sample=False).size
    made = asked(wide, tmp_path, free_bytes=whole.total_bytes + RESERVE - 10_000)
    assert not made.size.fits
    assert made.time is None
    assert {setting for each in made.alternatives for setting in each.settings} == {
        "cache.dtype=fp16",
        "cache.dtype=int8",
        "precompute.views.count=1",
        "precompute.prompts.per_object=1",
        "precompute.tracks.per_object=1",
        "precompute.tracks.per_object=0",
        "precompute.prompts.per_object=0",
    }
    by_setting = {each.settings[0]: each.total_bytes for each in made.alternatives}
    for setting, block in {
        "cache.dtype=fp16": {"cache": CacheConfig(rows_per_shard=8)},
        "cache.dtype=int8": {"cache": CacheConfig(rows_per_shard=8, dtype="int8")},
        "precompute.views.count=1": {"precompute": {"views": ViewConfig(count=1)}},
        "precompute.prompts.per_object=1": {"precompute": {"prompts": PromptConfig(per_object=1)}},
        "precompute.tracks.per_object=1": {
            "precompute": {"tracks": TrackConfig(per_object=1, length=4)}
        },
    }.items():
        changed = {
            name: wide.precompute.model_copy(update=value) if isinstance(value, dict) else value
            for name, value in block.items()
        }
        smaller = asked(replace(wide, **changed), tmp_path, sample=False).size.total_bytes
        assert by_setting[setting] == pytest.approx(smaller, rel=0.01), setting
    message = str(refusal(made.size, made.alternatives))
    assert "--set precompute.views.count=1 (" in message
    assert CacheSpaceError.exit_code == 5


def test_where_one_setting_is_not_enough_several_are_named(blocks, tmp_path):
    wide = replace(
        blocks,
        data=blocks.data.model_copy(update={"slices": "all"}),
        precompute=PrecomputeConfig(
            prompts=PromptConfig(per_object=2), tracks=TrackConfig(per_object=2, length=4)
        ),
    )
    size = asked(wide, tmp_path, sample=False).size
    smallest = asked(
        replace(
            wide,
            data=blocks.data,
            precompute=PrecomputeConfig(
                prompts=PromptConfig(per_object=1), tracks=TrackConfig(per_object=0)
            ),
        ),
        tmp_path,
        sample=False,
    ).size
    room = smallest.total_bytes + RESERVE + 20_000
    (both,) = asked(wide, tmp_path, sample=False, free_bytes=room).alternatives
    assert both.settings[0] == "data.slices=labelled"
    assert "precompute.tracks.per_object=0" in both.settings
    assert len(set(both.settings)) == len(both.settings) >= 2
    assert both.total_bytes <= room < size.total_bytes
    nothing = asked(wide, tmp_path, sample=False, free_bytes=1000)
    assert nothing.alternatives == ()
    assert "cache.path=FOLDER" in str(refusal(nothing.size, ()))


def test_precompute_refuses_before_anything_is_written(blocks, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    size = asked(blocks, tmp_path / "cache", sample=False).size
    tight = usage._replace(free=size.total_bytes + RESERVE - 50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: tight)
    assert free_bytes(tmp_path) == tight.free
    context = make_context(tmp_path, tmp_path / "cache")
    with pytest.raises(CacheSpaceError, match=r"What fits: .*tracks\.per_object=0"):
        precompute.run(blocks.data, blocks.teacher, blocks.cache, blocks.precompute, context)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_is_not_trained_yet_has_no_size(blocks, tmp_path):
    blocks = replace(blocks, teacher=blocks.teacher.model_copy(update={"train": True}))
    made = asked(blocks, tmp_path, trained_teacher=tmp_path / "teacher" / "model")
    assert made.size is None
    assert "once the teacher is trained" in made.lines()[0]
    assert made.to_json()["size"] is None


def test_a_pass_takes_as_long_as_its_slowest_part_or_its_processor_time(reader):
    index = reader.index
    rows = index.counts()
    none = Cost(wall_s=0, cpu_s=0)
    times = SampleTimes(
        open=none,
        open_voxels=1.0,
        read=Cost(wall_s=0.5, cpu_s=0.5),
        encode=Cost(wall_s=2.0, cpu_s=4.0),
        write={"slices": Cost(wall_s=1.0, cpu_s=0.1), "prompts": none, "tracks": none},
        fetch=none,
        answer=none,
        steps=(Cost(wall_s=1.0, cpu_s=1.0), Cost(wall_s=3.0, cpu_s=1.0)),
        counts={"slices": 1, "prompts": 1, "track_steps": 1},
    )
    all_missing = {"slices": 1.0, "prompts": 1.0, "tracks": 1.0}
    made = extrapolate(times, index, missing=all_missing, start_s=7.0, sample_s=1.0, cores=8)
    assert made.parts_s["slices"] == pytest.approx(2.0 * rows["slices"])
    first_steps = int((index.tracks.step == 0).sum())
    assert made.parts_s["tracks"] == pytest.approx(first_steps + 3 * (rows["tracks"] - first_steps))
    assert made.bound == "teacher"
    assert made.total_s == pytest.approx(7 + made.parts_s["slices"] + made.parts_s["tracks"])
    made = extrapolate(times, index, missing=all_missing, start_s=7.0, sample_s=1.0, cores=2)
    assert made.parts_s["slices"] == pytest.approx(4.6 / 2 * rows["slices"])


@pytest.mark.parametrize(
    ("size", "text"), [(4, "4 B"), (2048, "2.0 kB"), (1.25e9, "1.2 GB"), (3e12, "3.0 TB")]
)
def test_sizes_as_people_read_them(size, text):
    assert readable(size) == text
