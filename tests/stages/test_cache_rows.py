"""Which slices, prompts and tracks a cache gets."""

from types import MappingProxyType

import numpy as np
import pytest

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import Case, Provenance, SplitReport
from efficient_medsam2.images.slices import LoadedSlices
from stages.cache_rows import decide_rows
from stages.cases import CaseHandle, DataConfig, Dataset
from stages.row_settings import PromptConfig, TrackConfig

SIZE = 32


def disc(label, slices, value, *, centre=(10, 10), radius=5):
    rows, columns = np.mgrid[: label.shape[1], : label.shape[2]]
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    for index in slices:
        label[index, inside] = value


def case_of(label, name, *, colour=False):
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


def rows_of(*labels, data=None, prompts=None, tracks=None, dataset=None, note=lambda text: None):
    if dataset is None:
        names = [f"c{number}" for number in range(len(labels))]
        cases = {n: case_of(label, n) for n, label in zip(names, labels, strict=True)}
        dataset = dataset_of(**{n: (lambda case=case: case) for n, case in cases.items()})
    return decide_rows(
        dataset,
        data=data or DataConfig(source="here", smallest=10),
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
