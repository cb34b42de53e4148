from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache import CacheCorruptError, CaseRow
from cache.index_files import encode_index, read_index, write_index
from cache.tables import PROMPT_KINDS, columns_of
from tests.cache.example import (
    case_rows,
    make_index,
    prompt_rows,
    slice_rows,
    track_rows,
)


@pytest.fixture
def index():
    return make_index()


def test_records_survive_the_files(index, tmp_path):
    again = read_index(tmp_path / "index", write_index(tmp_path / "index", encode_index(index)))
    assert list(again.cases) == case_rows()
    assert [again.slice_row(row) for row in range(len(slice_rows()))] == slice_rows()
    assert [again.prompt_row(row) for row in range(len(prompt_rows()))] == prompt_rows()
    assert [again.track_row(row) for row in range(len(track_rows()))] == track_rows()
    assert again.content_sha256 == index.content_sha256
    assert again.counts() == {"slices": 28, "prompts": 9, "tracks": 12}


def test_empty_tables_survive_the_files(tmp_path):
    index = make_index(prompts=(), tracks=())
    again = read_index(tmp_path / "index", write_index(tmp_path / "index", encode_index(index)))
    assert again.content_sha256 == index.content_sha256
    assert again.counts() == {"slices": 28, "prompts": 0, "tracks": 0}
    assert len(again.select("tracks")) == 0


def test_parquet_files_explain_themselves(index, tmp_path):
    write_index(tmp_path / "index", encode_index(index))
    row = pq.read_table(tmp_path / "index" / "prompts.parquet").to_pylist()[1]
    assert row == {
        "row": 1,
        "case_id": "case0",
        "slice_index": 1,
        "view": 1,
        "object_id": 10,
        "kind": "points",
        "slice_row": prompt_rows()[1].slice_row,
        "points": [[4.0, 4.0], [1.0, 1.0], [2.0, 7.5]],
        "labels": [1, 0, 1],
    }


def test_find_by_key(index):
    for row in slice_rows():
        assert index.find(row.case_id, row.slice_index, row.view) == row.row


@pytest.mark.parametrize(
    "key", [("case0", 7, 0), ("case1", 0, 2), ("case2", 0, 0), ("case0", 0, -1), ("case1", -1, 1)]
)
def test_absent_keys_are_not_found(index, key):
    with pytest.raises(KeyError, match=key[0]):
        index.find(*key)


def test_select(index):
    by_hand = [row.row for row in slice_rows() if row.case_id == "case0" and row.view == 0]
    assert index.select(split="train", view=0).tolist() == by_hand
    assert index.select(cases=["case0"], view=0).tolist() == by_hand
    assert index.select("tracks", split="val").tolist() == [7, 8, 9, 10, 11]
    assert index.select("prompts", view=0).tolist() == []
    assert index.select("prompts", view=1).tolist() == list(range(9))
    assert index.select(split="train", cases=["case1"]).tolist() == []


def test_select_refuses_what_does_not_exist(index):
    with pytest.raises(KeyError, match=r"\['train', 'val'\]"):
        index.select(split="test")
    with pytest.raises(KeyError, match="case7"):
        index.select(cases=["case0", "case7"])


def _changed(rows, position, **changes):
    return [*rows[:position], replace(rows[position], **changes), *rows[position + 1 :]]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"slices": _changed(slice_rows(), 3, row=4)}, "SliceRow 4 stands at place 3"),
        ({"slices": _changed(slice_rows(), 2, slice_index=0)}, "is there twice"),
        ({"slices": _changed(slice_rows(), 1, affine=(1.0, 0.0))}, "6 numbers"),
        ({"prompts": _changed(prompt_rows(), 1, slice_row=0)}, "another case or slice"),
        ({"prompts": _changed(prompt_rows(), 1, slice_row=28)}, "there are 28 slice rows"),
        ({"prompts": _changed(prompt_rows(), 1, view=0)}, "view of another"),
        ({"prompts": _changed(prompt_rows(), 1, labels=(1,))}, "3 points but 1 labels"),
        ({"tracks": track_rows()[1:]}, "TrackRow 1 stands at place 0"),
        ({"tracks": _changed(track_rows(), 0, step=1)}, "in order of its steps"),
        ({"tracks": _changed(track_rows(), 2, step=3)}, "track 0 step 3"),
        ({"tracks": _changed(track_rows(), 2, track=1)}, "track 1 step 2"),
        ({"tracks": _changed(track_rows(), 5, direction=1)}, "in direction 1"),
        ({"cases": [*case_rows(), case_rows()[0]]}, "more than once: .'case0'"),
    ],
)
def test_contradictions_are_refused(tables, message):
    with pytest.raises(ValueError, match=message):
        make_index(**tables)


def test_content_digest_sees_every_value(index):
    others = [
        make_index(cases=[replace(case_rows()[0], split="test"), case_rows()[1]]),
        make_index(prompts=_changed(prompt_rows(), 0, points=((1.5, 2.5), (8.0, 9.0)))),
        make_index(tracks=_changed(track_rows(), 0, num_frames=8)),
        make_index(slices=_changed(slice_rows(), 1, affine=(1.0, 0.0, 1.0, 0.0, 1.0, 0.0))),
    ]
    digests = {index.content_sha256, *(other.content_sha256 for other in others)}
    assert len(digests) == 5
    assert make_index().content_sha256 == index.content_sha256


def test_an_index_of_before_tracks_had_a_kind_is_the_same_index(index, tmp_path):
    # Of the version that wrote no such column: caches name this digest.
    before = "c288bbac1a42de9663af7165f7683155144dc6354e6b1c8209cc2351cb840b51"
    assert index.content_sha256 == before
    files = encode_index(index)
    table = pq.read_table(pa.BufferReader(files["tracks.parquet"])).drop_columns("kind")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    files["tracks.parquet"] = bytes(sink.getvalue())
    again = read_index(tmp_path / "index", write_index(tmp_path / "index", files))
    assert again.content_sha256 == before
    assert [again.track_row(row) for row in range(len(track_rows()))] == track_rows()


@pytest.mark.parametrize(
    ("points", "labels", "told"), [(((5.0, 5.0),), (1,), "points"), ((), (), "mask")]
)
def test_a_tracks_kind_counts_where_its_labels_do_not_tell_it(tmp_path, points, labels, told):
    def index_of(kind):
        rows = [replace(row, points=points, labels=labels, kind=kind) for row in track_rows()]
        return make_index(tracks=rows)

    plain, other = index_of(told), index_of("recist")
    assert plain.tracks.kinds_are_plain
    assert not other.tracks.kinds_are_plain
    assert plain.content_sha256 != other.content_sha256
    again = read_index(tmp_path / "index", write_index(tmp_path / "index", encode_index(other)))
    assert again.track_row(0).kind == "recist"
    assert again.content_sha256 == other.content_sha256


def test_codes_of_kinds_are_stored_and_keep_their_order():
    assert PROMPT_KINDS == ("box", "points", "mask", "recist")


def test_damaged_index_file_is_named(index, tmp_path):
    folder = tmp_path / "index"
    records = write_index(folder, encode_index(index))
    file = folder / "slices.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheCorruptError, match=r"slices.parquet has other bytes.*cache repair"):
        read_index(folder, records)
    file.unlink()
    with pytest.raises(CacheCorruptError, match=r"slices.parquet is missing"):
        read_index(folder, records)


def test_memory_stays_under_64_bytes_a_row():
    depth = 500
    case = CaseRow(
        case_id="long name " * 20,
        patient_id="",
        split="train",
        modality="",
        depth=depth,
        height=1,
        width=1,
        spacing_mm=(1.0, 1.0, 1.0),
    )
    row = {"case_id": case.case_id, "view": 0}
    slices = [
        replace(slice_rows()[0], **row, row=index, slice_index=index) for index in range(depth)
    ]
    prompts = [
        replace(prompt_rows()[0], **row, row=index, slice_index=index, slice_row=index)
        for index in range(depth)
    ]
    tracks = [
        replace(
            track_rows()[0],
            case_id=case.case_id,
            row=step,
            track=0,
            prompted_slice=0,
            step=step,
            slice_index=step,
            slice_row=step,
        )
        for step in range(depth)
    ]
    index = make_index(cases=[case], slices=slices, prompts=prompts, tracks=tracks)
    index.find(case.case_id, 3)
    lookup = 2 * 8
    assert _bytes_per_row(index.slices) + lookup < 64
    assert _bytes_per_row(index.prompts) < 64
    assert _bytes_per_row(index.tracks) < 64.1  # one more offset than rows


def _bytes_per_row(table):
    return sum(np.asarray(column).nbytes for column in columns_of(table).values()) / len(table)
