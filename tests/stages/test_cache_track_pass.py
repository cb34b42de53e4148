"""Tracks of a cache against the teacher's own propagation in the official order."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch

from cache import CacheReader
from cache.ledger import entry_path
from efficient_medsam2.networks.records import Prompts, SliceFeatures
from stages.cache_settings import PrecomputeConfig
from stages.cache_track_pass import TrackPass, track_groups
from tests.stages.passes import (
    DEPTHS,
    PROMPTS,
    CountedTeacher,
    Work,
    make_index,
    make_spec,
    the_runner,
)

ARRAYS = (
    "track_conditioned_s16",
    "track_memory_s16",
    "track_object_pointer",
    "track_object_score",
    "track_mask_logits",
    "track_mask_iou",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    made = Work(tmp_path_factory.mktemp("tracks") / "cache", config=PrecomputeConfig(batch_size=4))
    made.digest = made()
    return made


@pytest.fixture(scope="module")
def reader(work):
    return CacheReader(work.path)


def propagate(reader, table, track):
    """The official order: from the prompted slice to the end, by real positions, one by one."""
    runner = the_runner()
    first, length = int(table.first_rows[track]), int(table.lengths[track])
    bank, made = [], {name: [] for name in ARRAYS}
    for row in range(first, first + length):
        slice_row = int(table.slice_row[row])
        features = SliceFeatures(
            **{
                level: torch.from_numpy(reader.read(f"features_{level}", [slice_row]))
                for level in ("s4", "s8", "s16")
            }
        )
        position, mask = int(table.slice_index[row]), None
        if row > first:
            record = runner.tracked(
                features,
                bank,
                position=position,
                reverse=bool(table.direction[row] < 0),
                num_frames=int(table.num_frames[row]),
            )
        elif len(table.prompt.row(row)[1]) == 0:
            label = reader.read("label", [slice_row])
            mask = torch.from_numpy(label == table.object_id[row]).float().unsqueeze(1)
            assert mask.any()
            record = runner.mask_prompted(features, mask)
        else:
            points, labels = table.prompt.row(row)
            prompts = Prompts(
                points_BN2=torch.from_numpy(points)[None],
                labels_BN=torch.from_numpy(labels.astype(np.int64))[None],
            )
            record = runner.prompted(features, prompts)
        entry = runner.remember(
            features, record, position=position, prompted=row == first, full_mask_B1SS=mask
        )
        bank.append(entry)
        values = (
            record.conditioned_s16,
            entry.memory,
            record.object_pointer,
            record.object_score,
            record.mask_logits[:, 0],
            record.best_iou,
        )
        for name, value in zip(ARRAYS, values, strict=True):
            made[name].append(value[0].numpy())
    return {name: np.stack(values) for name, values in made.items()}


def test_every_track_is_the_official_propagation_of_its_direction(work, reader):
    """Boxes, points and masks, long and short cases side by side, forward and in reverse."""
    table = work.index.tracks
    assert len(table.first_rows) == 12
    assert set(table.num_frames.tolist()) == set(DEPTHS.values())
    for track in range(len(table.first_rows)):
        with torch.no_grad():
            wanted = propagate(reader, table, track)
        rows = range(
            int(table.first_rows[track]), int(table.first_rows[track] + table.lengths[track])
        )
        for name in ARRAYS:
            mine = reader.read(name, rows)
            limit = 1e-4 * max(np.abs(wanted[name]).max(), 1)
            assert np.abs(mine - wanted[name]).max() <= limit, (track, name)


def test_the_prompted_slice_is_the_same_in_both_directions(work, reader):
    table = work.index.tracks
    for forward in range(0, len(table.first_rows), 2):
        first, second = (int(table.first_rows[forward + k]) for k in (0, 1))
        assert table.direction[[first, second]].tolist() == [1, -1]
        for name in ARRAYS:
            one, other = reader.read(name, [first]), reader.read(name, [second])
            np.testing.assert_allclose(one, other, atol=1e-4 * max(np.abs(one).max(), 1))


def test_lost_track_shards_are_made_again_without_the_encoder(work, tmp_path):
    copy = work.but(path=tmp_path / "cache", teacher=CountedTeacher())
    copy()
    for shard in (1, 4):
        entry_path(copy.path, "tracks", shard).unlink()
    again = copy.but(teacher=CountedTeacher())
    assert again() == work.digest
    assert again.teacher.encoded == 0
    assert again.reports["tracks"].rows == 8


def groups_of(table, **settings):
    return [group.tolist() for group in track_groups(table, **settings)]


def test_groups_hold_each_track_once_and_prompts_of_one_length(work):
    table = work.index.tracks
    groups = groups_of(table, batch_size=3, rows=1000)
    assert sorted(track for group in groups for track in group) == list(range(12))
    for group in groups:
        assert len(group) <= 3
        first = table.first_rows[group]
        assert len(set(table.prompt.offsets[first + 1] - table.prompt.offsets[first])) == 1
    # Two cases share a group: their different lengths do not keep them apart.
    assert any(len(set(table.case_code[table.first_rows[group]])) == 2 for group in groups)


@pytest.mark.parametrize("rows", [1, 8, 16])
def test_groups_are_bounded_in_rows_or_one_long_track(work, rows):
    table = work.index.tracks
    for group in track_groups(table, batch_size=64, rows=rows):
        assert len(group) == 1 or table.lengths[group].sum() <= rows


class OneTrack:
    """The index of a track of many slices, and a cache that has the same slice everywhere."""

    def __init__(self, reader, length):
        of = make_index(kinds=("box",)).tracks
        rows = np.zeros(length, np.int64)
        self.tracks = replace(
            of,
            **{
                name: getattr(of, name)[rows]
                for name in (
                    "track",
                    "case_code",
                    "object_id",
                    "prompted_slice",
                    "slice_row",
                    "direction",
                    "kind_code",
                )
            },
            step=np.arange(length, dtype=np.int32),
            slice_index=np.arange(length, dtype=np.int32),
            num_frames=np.full(length, length, np.int32),
            prompt=replace(
                of.prompt,
                offsets=2 * np.arange(length + 1),
                points=np.tile(np.array(PROMPTS["box"][0], np.float32), (length, 1)),
                labels=np.tile(np.array(PROMPTS["box"][1], np.int8), length),
            ),
        )


def test_the_memory_of_a_long_track_does_not_grow(reader):
    """What is remembered is bounded, and the answer is that of the whole memory."""
    from stages.cache_calls import TeacherCalls

    teacher, length = CountedTeacher(), 40
    calls = TeacherCalls(
        teacher, device=torch.device("cpu"), precision="no", stored=make_spec(teacher).arrays
    )
    work = TrackPass(
        OneTrack(reader, length),
        lambda: reader,
        calls,
        teacher.runner,
        batch_size=4,
        rows_per_shard=4,
    )

    class Everything:
        missing = MappingProxyType({0: range(length)})

        @staticmethod
        def wants(rows):
            return np.ones(len(rows), bool)

    sizes, last = [], None
    for piece in work.pieces(Everything()):
        ((_, made),) = work.compute(piece)
        sizes.append(len(work._bank))
        last = made.arrays()
    assert max(sizes) == teacher.runner.reach + 2
    with torch.no_grad():
        wanted = propagate(reader, OneTrack(reader, length).tracks, 0)
    close = np.abs(last["track_mask_logits"][0] - wanted["track_mask_logits"][-1]).max()
    assert close <= 1e-4 * np.abs(wanted["track_mask_logits"][-1]).max()
