"""Which slices, prompts and tracks a cache gets."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from cache.index_files import encode_index, read_index, write_index
from cache.tables import PROMPT_KINDS, columns_of
from efficient_medsam2.errors import DataError
from efficient_medsam2.images import Case, Provenance, SplitReport
from efficient_medsam2.images.slices import LoadedSlices
from efficient_medsam2.images.views import warp_label, warp_points
from stages.cache_rows import decide_rows
from stages.cases import CaseHandle, DataConfig, Dataset
from stages.row_settings import PromptConfig, TrackConfig, ViewConfig

SIZE = 32


def disc(label, slices, value, *, centre=(10, 10), radius=5):
    rows, columns = np.mgrid[: label.shape[1], : label.shape[2]]
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    for index in slices:
        label[index, inside] = value


def case_of(label, name, *, colour=False, recist=None):
    shape = (*label.shape, 3) if colour else label.shape
    return Case(
        case_id=name,
        patient_id=name,
        image=np.zeros(shape, np.uint8),
        label=label.astype(np.uint16),
        boxes=None,
        spacing_mm=(3.0, 1.0, 1.0),
        modality="RGB" if colour else "uint8",
        affine=None,
        source=Provenance(files=(), format="npz"),
        recist=recist,
    )


def handle_of(name, load):
    return CaseHandle(
        case_id=name,
        patient_id=name,
        split="train",
        load=load,
        open=lambda: LoadedSlices(load()),
        files=MappingProxyType({}),
        digests=lambda: {"file": "0" * 64},
        object_names=MappingProxyType({}),
    )


def dataset_of(**loads):
    handles = tuple(handle_of(name, load) for name, load in loads.items())
    report = SplitReport(assignment=dict.fromkeys(loads, "train"), shared={}, seed=0)
    return Dataset(handles=handles, splits=report, notes=())


def rows_of(
    *labels,
    data=None,
    views=None,
    prompts=None,
    tracks=None,
    dataset=None,
    note=lambda text: None,
):
    if dataset is None:
        names = [f"c{number}" for number in range(len(labels))]
        cases = {n: case_of(label, n) for n, label in zip(names, labels, strict=True)}
        dataset = dataset_of(**{n: (lambda case=case: case) for n, case in cases.items()})
    return decide_rows(
        dataset,
        data=data or DataConfig(source="here", smallest=10),
        views=views or ViewConfig(),
        prompts=prompts or PromptConfig(per_object=2),
        tracks=tracks or TrackConfig(per_object=1, length=6),
        size=SIZE,
        step=lambda: None,
        note=note,
    )


def empty(depth=10):
    return np.zeros((depth, SIZE, SIZE), np.int32)


def tracks_of(rows):
    """(prompted slice, direction) → slices of the track."""
    table = rows.index.tracks
    found = {}
    for first, length in zip(table.first_rows, table.lengths, strict=True):
        key = (int(table.prompted_slice[first]), int(table.direction[first]))
        found[key] = table.slice_index[first : first + length].tolist()
    return found


def test_a_single_slice_has_prompts_and_no_track():
    label = empty(1)
    disc(label, [0], 1)
    counts = rows_of(label).index.counts()
    assert counts == {"slices": 1, "prompts": 2, "tracks": 0}


def test_an_object_on_one_slice_is_followed_into_the_margin_alone():
    label = empty()
    disc(label, [4], 1)
    rows = rows_of(label)
    assert rows.index.slices.slice_index.tolist() == [3, 4, 5]
    assert rows.index.counts()["prompts"] == 2
    assert tracks_of(rows) == {(4, 1): [4, 5], (4, -1): [4, 3]}


def test_an_object_at_the_volumes_end_is_not_followed_out_of_it():
    label = empty(3)
    disc(label, [2], 1)
    assert tracks_of(rows_of(label)) == {(2, -1): [2, 1]}


def test_short_volumes_have_what_fits():
    for depth, expected in ((1, {}), (2, {(0, 1): [0, 1]}), (3, {(0, 1): [0, 1, 2]})):
        label = empty(depth)
        disc(label, range(depth), 1)
        rows = rows_of(label)
        assert rows.index.counts()["slices"] == depth
        assert rows.index.counts()["prompts"] == 2 * depth
        assert tracks_of(rows) == expected
        assert set(rows.index.tracks.num_frames.tolist()) <= {depth}


def test_an_object_that_comes_back_is_followed_through_the_gap():
    label = empty(12)
    disc(label, [2, 3, 8, 9], 1)
    disc(label, [3], 1, radius=7)
    rows = rows_of(label, tracks=TrackConfig(per_object=1, length=None))
    assert tracks_of(rows)[3, 1] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert set(rows.index.prompts.slice_index.tolist()) == {2, 3, 8, 9}
    bounded = tracks_of(rows_of(label, tracks=TrackConfig(per_object=1, length=7)))
    assert bounded[3, 1] == [3, 4, 5, 6, 7, 8, 9]
    starts = {start for start, _ in tracks_of(rows_of(label, tracks=TrackConfig(per_object=4)))}
    assert starts <= {2, 3, 8, 9}


def test_without_a_length_a_track_reaches_the_ends_of_the_case():
    label = empty(9)
    disc(label, [4, 5], 1)
    data = DataConfig(source="here", smallest=10, slices="all")
    found = tracks_of(rows_of(label, data=data, tracks=TrackConfig(per_object=1, length=None)))
    assert found == {(4, 1): [4, 5, 6, 7, 8], (4, -1): [4, 3, 2, 1, 0]}


def test_rules_choose_the_prompted_slice():
    label = empty(9)
    disc(label, range(1, 8), 1, radius=3)
    disc(label, [2], 1, radius=6)
    label[6, 14, 2:30] = 1  # long and thin
    label[6, 15, 2:30] = 1
    chosen = {}
    for rule in ("largest", "middle", "recist"):
        rows = rows_of(label, tracks=TrackConfig(per_object=1, prompted_slice=rule))
        chosen[rule] = {start for start, _ in tracks_of(rows)}
    assert chosen == {"largest": {2}, "middle": {4}, "recist": {6}}


def test_a_users_mark_decides_where_and_what_is_prompted():
    label = empty(6)
    disc(label, range(6), 1, radius=6)
    disc(label, [1], 1, radius=8)
    disc(label, range(6), 2, centre=(25, 25), radius=4)
    recist = np.zeros(label.shape, bool)
    recist[4, 10, 6:15] = True
    case = case_of(label, "marked", recist=recist)
    rows = rows_of(
        dataset=dataset_of(marked=lambda: case),
        prompts=PromptConfig(per_object=1, box_share=0, recist_share=1, recist_as="three"),
        tracks=TrackConfig(per_object=1, prompted_slice="recist", recist_share=1),
    )
    table = rows.index.tracks
    starts = {(int(o), int(s)) for o, s in zip(table.object_id, table.prompted_slice, strict=True)}
    assert (1, 4) in starts
    assert set(table.kind_code.tolist()) == {PROMPT_KINDS.index("recist")}
    marked = [row for row in prompts_of(rows) if (row.slice_index, row.object_id) == (4, 1)]
    assert sorted(marked[0].points) == [(6, 10), (10, 10), (14, 10)]
    others = [row for row in prompts_of(rows) if row.object_id == 2]
    lengths = [np.ptp(np.array(row.points), axis=0).max() for row in others]
    assert lengths == [8.0] * 6


def test_tracks_are_prompted_by_the_shares_of_kinds():
    labels = []
    for number in range(40):
        label = empty(4)
        disc(label, range(4), number + 1)
        labels.append(label)
    config = TrackConfig(per_object=1, mask_share=0.25, recist_share=0.25, points_share=0.25)
    prompts = PromptConfig(max_points=3, recist_as="four")
    table = rows_of(*labels, tracks=config, prompts=prompts).index.tracks
    kinds = table.kind_code[table.first_rows]
    assert (np.bincount(kinds, minlength=4) > 3).all()
    for row in range(len(table)):
        points, found = table.prompt.row(row)
        kind = PROMPT_KINDS[table.kind_code[row]]
        assert len(points) == len(found)
        assert {"box": [2, 3], "mask": [], "recist": [1] * 4}.get(kind, found.tolist()) == (
            found.tolist()
        )
        for (x, y), label in zip(points, found, strict=True):
            on = bool(((x - 10) ** 2 + (y - 10) ** 2) <= 25)
            assert kind in ("box", "recist") or on == (label == 1)


def prompts_of(rows):
    return [rows.index.prompt_row(row) for row in range(len(rows.index.prompts))]


def test_each_view_is_a_row_with_prompts_on_its_own_label():
    label = empty(7)
    disc(label, range(2, 5), 1, centre=(14, 18), radius=6)
    views = ViewConfig(count=3, rotate_degrees=20, shift=0.05)
    prompts = PromptConfig(per_object=3, box_share=0.5, jitter="none", max_points=3)
    rows = rows_of(label, views=views, prompts=prompts)
    index = rows.index
    assert index.slices.view.tolist() == [0, 1, 2] * 5
    assert index.slices.slice_index.tolist() == [n for n in range(1, 6) for _ in range(3)]
    one = rows_of(label, prompts=prompts)
    identity = [row for row in prompts_of(rows) if row.view == 0]
    plain = prompts_of(one)
    assert [(r.points, r.labels) for r in identity] == [(r.points, r.labels) for r in plain]
    assert len(prompts_of(rows)) == 3 * len(plain)
    for row in prompts_of(rows):
        record = index.slice_row(row.slice_row)
        assert (record.slice_index, record.view) == (row.slice_index, row.view)
        seen = warp_label(label[row.slice_index].astype(np.uint16), record.affine) == 1
        if row.kind == "box":
            (x0, y0), (x1, y1) = row.points
            ys, xs = np.nonzero(seen)
            assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max(), ys.max())
        else:
            assert [bool(seen[int(y), int(x)]) for x, y in row.points] == [
                value == 1 for value in row.labels
            ]
    assert set(index.slices.view[index.tracks.slice_row].tolist()) == {0}
    assert tracks_of(rows) == tracks_of(one)


def test_views_are_those_of_their_seed_case_and_slice():
    label = empty(7)
    disc(label, range(2, 5), 1)
    views = ViewConfig(count=3)

    def matrices(**changes):
        index = rows_of(label, views=views.model_copy(update=changes)).index
        return {
            (row.slice_index, row.view): row.affine
            for row in map(index.slice_row, range(len(index.slices)))
        }

    first = matrices()
    assert len({affine for (_, view), affine in first.items() if view}) == 10
    assert matrices() == first
    assert matrices(count=2).items() <= first.items()
    other = matrices(seed=1)
    assert not any(other[key] == first[key] for key in first if key[1])


def test_marks_turn_with_their_view():
    label = empty(3)
    disc(label, [1], 1, centre=(15, 15), radius=8)
    recist = np.zeros(label.shape, bool)
    recist[1, 15, 9:22] = True
    case = case_of(label, "marked", recist=recist)
    rows = rows_of(
        dataset=dataset_of(marked=lambda: case),
        views=ViewConfig(count=4),
        prompts=PromptConfig(per_object=1, box_share=0, recist_share=1, recist_as="three"),
    )
    for row in prompts_of(rows):
        affine = rows.index.slice_row(row.slice_row).affine
        ends = warp_points([[9, 15], [21, 15]], affine)
        assert np.abs(np.sort(row.points[1:], axis=0) - np.sort(ends, axis=0)).max() < 1e-4


def test_the_index_of_columns_survives_its_files(tmp_path):
    label, other = empty(7), empty(4)
    disc(label, range(2, 5), 1)
    disc(other, range(1, 3), 2)
    flips = ViewConfig(count=5, rotate_degrees=0, scale=0, shift=0)
    for views in (ViewConfig(), ViewConfig(count=3), flips):
        prompts = PromptConfig(per_object=4, box_share=0.4, recist_share=0.2, mask_share=0.2)
        tracks = TrackConfig(mask_share=0.4, recist_share=0.3)
        index = rows_of(label, other, views=views, prompts=prompts, tracks=tracks).index
        folder = tmp_path / f"{views.count}{views.shift}"
        again = read_index(folder, write_index(folder, encode_index(index)))
        assert again.content_sha256 == index.content_sha256
        for name in ("slices", "prompts", "tracks"):
            mine, read = (columns_of(getattr(each, name)) for each in (index, again))
            assert {key: value.dtype for key, value in mine.items()} == {
                key: value.dtype for key, value in read.items()
            }


def test_labels_of_any_size_are_read_in_chunks(monkeypatch):
    label = np.zeros((9, 40, 50), np.int32)
    disc(label, range(2, 8), 1, centre=(20, 25), radius=9)
    whole = rows_of(label).index.content_sha256
    monkeypatch.setattr("stages.case_labels._CHUNK_BYTES", 2 * 2 * 40 * 50 + 1)
    assert rows_of(label).index.content_sha256 == whole


def test_a_case_that_breaks_half_way_leaves_no_row():
    label = empty(5)
    disc(label, range(5), 1)

    class Torn(LoadedSlices):
        def labels(self, start, stop):
            if start:
                raise DataError("torn.npz: cannot be read")
            return super().labels(start, stop)

    good = case_of(label, "good")
    torn = handle_of("torn", lambda: good)
    torn = replace(torn, open=lambda: Torn(good))
    data = DataConfig(source="here", smallest=10, on_error="skip")
    both = dataset_of(good=lambda: good)
    both = replace(both, handles=(torn, *both.handles))
    config = TrackConfig(prompted_slice="middle", mask_share=1.0)
    rows = rows_of(dataset=both, data=data, tracks=config)
    alone = rows_of(dataset=dataset_of(good=lambda: good), data=data, tracks=config)
    assert rows.index.content_sha256 == alone.index.content_sha256
    assert list(rows.skipped) == ["torn"]


def test_slices_reach_a_margin_beyond_the_objects_or_are_all_of_them():
    label = empty()
    disc(label, [3, 4, 6], 1)
    for margin, expected in ((0, range(3, 7)), (2, range(1, 9)), (9, range(10))):
        data = DataConfig(source="here", smallest=10, margin=margin)
        assert rows_of(label, data=data).index.slices.slice_index.tolist() == list(expected)
    data = DataConfig(source="here", smallest=10, slices="all")
    assert rows_of(label, data=data).index.slices.slice_index.tolist() == list(range(10))


def test_tracks_stay_within_the_objects_extent_and_their_length():
    label = empty()
    disc(label, range(2, 8), 1)
    disc(label, [5], 1, radius=8)  # the largest slice is prompted
    data = DataConfig(source="here", smallest=10, margin=2)
    found = tracks_of(rows_of(label, data=data, tracks=TrackConfig(per_object=1, length=9)))
    assert found == {(5, 1): [5, 6, 7, 8], (5, -1): [5, 4, 3, 2, 1]}
    found = tracks_of(rows_of(label, data=data, tracks=TrackConfig(per_object=1, length=3)))
    assert found == {(5, 1): [5, 6, 7], (5, -1): [5, 4, 3]}
    config = TrackConfig(per_object=1, length=9, margin=0)
    assert tracks_of(rows_of(label, data=data, tracks=config))[5, 1] == [5, 6, 7]
    wide = TrackConfig(per_object=1, length=9, margin=5)
    assert tracks_of(rows_of(label, data=data, tracks=wide))[5, 1] == [5, 6, 7, 8, 9]


def test_several_slices_of_an_object_are_prompted():
    label = empty(12)
    disc(label, range(1, 11), 1)
    disc(label, [2], 1, radius=8)
    for count in (1, 2, 3, 4):
        found = tracks_of(rows_of(label, tracks=TrackConfig(per_object=count, length=3)))
        starts = {start for start, _ in found}
        assert 2 in starts
        assert len(starts) == count
    assert rows_of(label, tracks=TrackConfig(per_object=0)).index.counts()["tracks"] == 0


def test_objects_keep_their_own_values():
    label = empty()
    disc(label, range(2, 5), 7)
    disc(label, range(3, 6), 300, centre=(22, 22))
    rows = rows_of(label)
    assert set(rows.index.prompts.object_id.tolist()) == {7, 300}
    assert dict(next(iter(rows.index.cases)).object_names) == {7: "7", 300: "300"}
    table = rows.index.prompts
    for row in range(rows.index.counts()["prompts"]):
        points, labels = table.prompt.row(row)
        mask = label[table.slice_index[row]] == table.object_id[row]
        x, y = points[0] if len(labels) == 1 else points.mean(0)
        assert mask[round(float(y)), round(float(x))]


def test_small_objects_are_not_prompted():
    label = empty()
    disc(label, range(2, 5), 1)
    disc(label, [3], 2, centre=(25, 25), radius=1)  # 5 pixels
    data = DataConfig(source="here", smallest=6)
    assert set(rows_of(label, data=data).index.prompts.object_id.tolist()) == {1}
    data = DataConfig(source="here", smallest=5)
    assert set(rows_of(label, data=data).index.prompts.object_id.tolist()) == {1, 2}


def test_prompts_of_a_case_do_not_depend_on_the_others():
    first, second = empty(), empty()
    disc(first, range(2, 5), 1)
    disc(second, range(1, 7), 1, radius=7)
    alone = rows_of(first).index.prompts
    together = rows_of(first, second).index.prompts
    for row in range(6):
        for mine, other in zip(alone.prompt.row(row), together.prompt.row(row), strict=True):
            assert np.array_equal(mine, other)
    changed = rows_of(first, prompts=PromptConfig(per_object=2, seed=9)).index.prompts
    assert any(
        not np.array_equal(alone.prompt.row(row)[0], changed.prompt.row(row)[0]) for row in range(6)
    )


def test_one_colour_image_makes_three_channels():
    label = empty(1)
    disc(label, [0], 1)
    grey, colour = case_of(label, "grey"), case_of(label, "colour", colour=True)
    assert rows_of(dataset=dataset_of(grey=lambda: grey)).channels == 1
    assert rows_of(dataset=dataset_of(grey=lambda: grey, colour=lambda: colour)).channels == 3


def test_nothing_large_enough_is_an_error_with_its_mend():
    label = empty(1)
    disc(label, [0], 1, radius=1)
    with pytest.raises(DataError, match=r"no object of at least 10 pixels.*data\.smallest"):
        rows_of(label)


def bad():
    raise DataError("eye.png: cannot be read")


def test_a_bad_case_stops_the_run_and_says_how_to_go_on():
    with pytest.raises(DataError, match=r"eye\.png: cannot be read.*data\.on_error=skip"):
        rows_of(dataset=dataset_of(bad=bad))


def test_a_bad_case_is_skipped_counted_and_told_when_asked():
    label = empty(1)
    disc(label, [0], 1)
    told = []
    data = DataConfig(source="here", smallest=10, on_error="skip")
    good = case_of(label, "good")
    dataset = dataset_of(bad=bad, good=lambda: good)
    rows = rows_of(dataset=dataset, data=data, note=told.append)
    assert told == ["skipped case bad: eye.png: cannot be read", "skipped 1 of 2 cases"]
    assert rows.skipped["bad"].reason == "eye.png: cannot be read"
    assert rows.skipped["bad"].files == {"file": "0" * 64}
    assert [case.case_id for case in rows.index.cases] == ["good"]
    rest = dataset.without(rows.skipped)
    assert [handle.case_id for handle in rest.handles] == ["good"]
    assert rest.splits.assignment == {"good": "train"}
    with pytest.raises(DataError, match=r"none of the 1 cases can be read; first: eye\.png"):
        rows_of(dataset=dataset_of(bad=bad), data=data)
