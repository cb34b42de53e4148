"""A small cache whose every value is known: 2 cases of 7 slices, 2 views, 5 rows a shard.

Run as a script it fills a cache, one shard for each line that it is given: ``python example.py
FOLDER``.
"""

import sys
from pathlib import Path

import numpy as np

from cache import (
    IDENTITY_AFFINE,
    ArraySpec,
    CacheIndex,
    CacheReader,
    CacheSpec,
    CacheWriter,
    CaseRow,
    PromptRow,
    SliceRow,
    TeacherIdentity,
    TrackRow,
)

SPACES = ("slices", "prompts", "tracks")
SIZE = 16
DEPTH = 7


def _array(name, rows, shape, dtype):
    return ArraySpec(name=name, rows=rows, shape=shape, dtype=dtype)


ARRAYS = (
    _array("image", "slices", (3, SIZE, SIZE), "uint8"),
    _array("label", "slices", (SIZE, SIZE), "uint16"),
    _array("features_s4", "slices", (2, 4, 4), "float16"),
    _array("features_s8", "slices", (3, 2, 2), "float16"),
    _array("features_s16", "slices", (4, 1, 1), "float16"),
    _array("mask_logits", "prompts", (4, 4), "float16"),
    _array("mask_iou", "prompts", (1,), "float32"),
    _array("track_conditioned_s16", "tracks", (4, 1, 1), "float16"),
    _array("track_memory_s16", "tracks", (2, 1, 1), "float16"),
    _array("track_object_pointer", "tracks", (4,), "float32"),
    _array("track_object_score", "tracks", (1,), "float32"),
    _array("track_mask_logits", "tracks", (4, 4), "float16"),
    _array("track_mask_iou", "tracks", (1,), "float32"),
)


def make_spec(**changes):
    values = {
        "teacher": TeacherIdentity(
            name="tiny", weights_sha256="0" * 64, config={"hidden": 4, "sizes": [4, 2, 1]}
        ),
        "preprocessing": {"size": SIZE, "window_hu": [-160.0, 240.0]},
        "precompute": {"views": 2, "dtype": "fp16"},
        "data_sha256": "d" * 64,
        "arrays": ARRAYS,
        "rows_per_shard": 5,
        "created_by": "the tests",
    }
    return CacheSpec(**{**values, **changes})


def case_rows():
    return [
        CaseRow(
            case_id=f"case{number}",
            patient_id=f"patient{number}",
            split=split,
            modality="CT",
            depth=DEPTH,
            height=20,
            width=30,
            spacing_mm=(2.5, 0.7, 0.7),
            files={f"case{number}.npz": f"{number}" * 64},
            object_names={1: "liver", 10: "spleen"},
        )
        for number, split in enumerate(("train", "val"))
    ]


def slice_rows():
    mirrored = (-1.0, 0.0, SIZE - 1.1, 0.0, 1.0, 0.0)
    # The second case comes first, so that nothing works by luck of the order.
    keys = [(c, d, v) for c in ("case1", "case0") for d in range(DEPTH) for v in (0, 1)]
    return [
        SliceRow(
            row=row,
            case_id=case_id,
            slice_index=slice_index,
            view=view,
            affine=mirrored if view else IDENTITY_AFFINE,
        )
        for row, (case_id, slice_index, view) in enumerate(keys)
    ]


def _slice_row(case_id, slice_index, view=0):
    return next(
        row.row
        for row in slice_rows()
        if (row.case_id, row.slice_index, row.view) == (case_id, slice_index, view)
    )


def prompt_rows():
    prompts = [
        ("box", ((1.5, 2.25), (8.0, 9.0)), (2, 3)),
        ("points", ((4.0, 4.0), (1.0, 1.0), (2.0, 7.5)), (1, 0, 1)),
        ("mask", (), ()),
    ]
    keys = [(d, prompt) for d in range(1, 4) for prompt in prompts]
    return [
        PromptRow(
            row=row,
            case_id="case0",
            slice_index=slice_index,
            view=1,
            object_id=10,
            kind=kind,
            points=points,
            labels=labels,
            slice_row=_slice_row("case0", slice_index, 1),
        )
        for row, (slice_index, (kind, points, labels)) in enumerate(keys)
    ]


def track_rows():
    # (case, prompted slice, direction, steps, prompt)
    tracks = [
        ("case0", 3, 1, 4, (((2.0, 2.0), (9.0, 9.0)), (2, 3))),
        ("case0", 3, -1, 3, (((2.0, 2.0), (9.0, 9.0)), (2, 3))),
        ("case1", 0, 1, 5, (((5.0, 5.0),), (1,))),
    ]
    rows = []
    for track, (case_id, prompted, direction, steps, (points, labels)) in enumerate(tracks):
        for step in range(steps):
            slice_index = prompted + direction * step
            rows.append(
                TrackRow(
                    row=len(rows),
                    track=track,
                    case_id=case_id,
                    object_id=1 + track,
                    prompted_slice=prompted,
                    direction=direction,
                    step=step,
                    slice_index=slice_index,
                    slice_row=_slice_row(case_id, slice_index),
                    num_frames=DEPTH,
                    kind="box" if len(labels) == 2 else "points",
                    points=points,
                    labels=labels,
                )
            )
    return rows


def make_index(**changes):
    values = {
        "cases": case_rows(),
        "slices": slice_rows(),
        "prompts": prompt_rows(),
        "tracks": track_rows(),
    }
    return CacheIndex.from_rows(**{**values, **changes})


def values_of(array, rows):
    """Give the values that rows of an array are filled with: a function of name and row."""
    values = [
        np.random.default_rng([sum(map(ord, array.name)), row]).normal(20.0, 9.0, array.shape)
        for row in rows
    ]
    return np.abs(np.array(values)).reshape(-1, *array.shape).astype(array.dtype)


def shard_values(writer, space, k):
    rows = writer.rows_of_shard(space, k)
    return {array.name: values_of(array, rows) for array in writer.spec.arrays_of(space)}


def fill(writer, *, wait=lambda: None):
    for space in SPACES:
        for k in writer.missing_shards(space):
            wait()
            writer.write_shard(space, k, shard_values(writer, space, k))
    return writer.finish()


def make_cache(path, **changes):
    """Write the whole cache and open it."""
    with CacheWriter.create_or_resume(path, make_spec(**changes), make_index()) as writer:
        fill(writer)
    return CacheReader(path)


def content_of(path):
    """Give every file of a cache by relative name, but for the lock."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


if __name__ == "__main__":
    with CacheWriter.create_or_resume(Path(sys.argv[1]), make_spec(), make_index()) as own:
        print("writing", flush=True)
        fill(own, wait=sys.stdin.readline)
