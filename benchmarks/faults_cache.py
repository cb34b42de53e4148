"""A small cache whose every value is a function of its place, and who tells whether one is sound.

13 slices in 2 views, prompts and tracks, 4 rows a shard, arrays of every encoding, a teacher's
weights and splits beside them: small enough to be judged thousands of times.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache import (
    ArraySpec,
    CacheError,
    CacheIndex,
    CacheReader,
    CacheSpec,
    CacheWriter,
    CaseRow,
    PromptRow,
    SliceRow,
    TeacherIdentity,
    TrackRow,
    verify,
)
from cache.durable import write_durably
from cache.encoding import array_specs
from cache.schema import ROW_SPACES, RowSpace
from cache.side_files import checked_file, record_side_files

__all__ = [
    "FORMATS",
    "Format",
    "Verdict",
    "files_of",
    "fill",
    "index",
    "judge",
    "spec",
    "values",
    "write",
]

Format = Literal["zarr", "hdf5"]
FORMATS: tuple[Format, ...] = ("zarr", "hdf5")

_DEPTH = 13

_ARRAYS = (
    ArraySpec(name="image", rows="slices", shape=(1, 8, 8), dtype="uint8"),
    *array_specs("features_s8", "slices", (2, 16, 16), "int8"),
    *array_specs("features_s16", "slices", (3, 4, 4), "fp16"),
    *array_specs("mask_logits", "prompts", (6, 6), "bf16"),
    *array_specs("track_memory_s16", "tracks", (2, 4, 4), "fp32"),
)


def spec(store: Format, *, data: str = "d") -> CacheSpec:
    """Give the identity of the cache in a format, ``zarr`` or ``hdf5``; of other ``data`` too."""
    return CacheSpec(
        teacher=TeacherIdentity(name="noise", weights_sha256="0" * 64, config={}),
        preprocessing={},
        precompute={},
        data_sha256=data * 64,
        arrays=_ARRAYS,
        format=store,
        rows_per_shard=4,
        created_by="benchmarks",
    )


def index() -> CacheIndex:
    """Give its index: one case, every slice twice, prompts on some, two tracks."""
    case = CaseRow(
        case_id="noise",
        patient_id="noise",
        split="train",
        modality="CT",
        depth=_DEPTH,
        height=8,
        width=8,
        spacing_mm=(1.0, 1.0, 1.0),
    )
    moved = (1.0, 0.0, 0.5, 0.0, 1.0, 0.25)
    slices = [
        SliceRow(row=2 * k + view, case_id="noise", slice_index=k, view=view)
        if view == 0
        else SliceRow(row=2 * k + 1, case_id="noise", slice_index=k, view=1, affine=moved)
        for k in range(_DEPTH)
        for view in (0, 1)
    ]
    prompts = [
        PromptRow(
            row=k,
            case_id="noise",
            slice_index=k,
            view=0,
            object_id=1,
            kind="box",
            points=((1.0, 1.0), (5.0, float(k % 7))),
            labels=(2, 3),
            slice_row=2 * k,
        )
        for k in range(9)
    ]
    tracks = [
        TrackRow(
            row=5 * track + step,
            track=track,
            case_id="noise",
            object_id=1,
            prompted_slice=6,
            direction=1 if direction > 0 else -1,
            step=step,
            slice_index=6 + direction * step,
            slice_row=2 * (6 + direction * step),
            num_frames=_DEPTH,
            kind="points",
            points=((2.0, 3.0),),
            labels=(1,),
        )
        for track, direction in enumerate((1, -1))
        for step in range(5)
    ]
    return CacheIndex.from_rows(cases=[case], slices=slices, prompts=prompts, tracks=tracks)


def values(array: ArraySpec, rows: range, *, data: str = "d") -> np.ndarray[Any, Any]:
    """Give what rows of an array hold, in the stored type."""
    made = np.empty((len(rows), *array.shape), dtype=array.dtype)
    for place, row in enumerate(rows):
        stream = np.random.default_rng([*map(ord, array.name + data), row])
        if made.dtype.kind == "f":
            made[place] = stream.uniform(0.1, 2.0, array.shape)
        elif array.encoding == "bf16":  # bits of finite values
            made[place] = stream.integers(0x3E00, 0x4200, array.shape)
        else:
            made[place] = stream.integers(1, 100, array.shape)
    return made


def side_files(*, data: str = "d") -> dict[str, bytes]:
    """Give what lies beside the rows: name → content."""
    weights = np.random.default_rng([*map(ord, data)]).bytes(2000)
    splits = json.dumps({"seed": 0, "assignment": {"noise": f"train-{data}"}}).encode()
    return {"splits.json": splits, "teacher/model.safetensors": weights}


def write_side_files(path: Path, *, data: str = "d") -> None:
    """Write and record them, as ``precompute`` does."""
    (path / "teacher").mkdir(exist_ok=True)
    wanted = side_files(data=data)
    for name, content in wanted.items():
        write_durably(path / name, content)
    record_side_files(path, wanted)


def fill(writer: CacheWriter, *, data: str = "d") -> str:
    """Write what is missing and finish; gives the digest."""
    write_side_files(writer.path, data=data)
    for space in ROW_SPACES:
        for shard in writer.missing_shards(space):
            rows = writer.rows_of_shard(space, shard)
            arrays = {a.name: values(a, rows, data=data) for a in writer.spec.arrays_of(space)}
            writer.write_shard(space, shard, arrays)
    return writer.finish()


def write(path: Path, store: Format, *, data: str = "d") -> str:
    """Write the cache, or what of it is missing; gives the digest."""
    with CacheWriter.create_or_resume(path, spec(store, data=data), index()) as writer:
        return fill(writer, data=data)


@dataclass(kw_only=True)
class Verdict:
    """What reading and verifying a cache came to.

    Attributes:
        finished: rows that can be read and hold the truth, by space.
        named: errors of the cache, as they name the damage.
        wrong: what nobody may ever see: other values without an error, an error that is no
            ``CacheError``, or damage that the reader names and ``verify`` does not.
    """

    finished: dict[RowSpace, int] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """``silent``, ``detected`` or ``survived``."""
        return "silent" if self.wrong else "detected" if self.named else "survived"


def judge(path: Path, *, digest: str | None, live: bool = False) -> Verdict:
    """Read all rows of a cache of this module, compare each with the truth, and verify it.

    Args:
        path: the cache folder.
        digest: that of the whole cache, which is complete; ``None`` while it is being written.
        live: a writer is at work: what the reader misses may be there when ``verify`` looks.
    """
    found = Verdict()
    with _named(found, "reader"):
        _read_all(path, digest, found)
    by_reader = len(found.named)
    bad: tuple[Any, ...] = ()
    with _named(found, "verify"):
        bad = verify(path).bad
    found.named += [f"verify: {part}" for part in bad]
    if by_reader and len(found.named) == by_reader and not live:
        found.wrong.append(f"verify finds nothing where the reader tells: {found.named[0]}")
    return found


@contextlib.contextmanager
def _named(found: Verdict, who: str) -> Iterator[None]:
    try:
        yield
    except CacheError as error:
        found.named.append(f"{who}: {error}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it has no name and no mend
        found.wrong.append(f"{who}: {type(error).__name__}: {error}")


def _read_all(path: Path, digest: str | None, found: Verdict) -> None:
    reader = CacheReader(path)
    complete = reader.complete
    if digest is not None and complete and reader.digest() != digest:
        found.wrong.append("reader: complete, with another digest")
    for name, content in side_files().items():
        # A writer that was killed at once has not recorded them yet.
        with _named(found, name):
            place = checked_file(path, name)
            if complete and place.read_bytes() != content:
                found.wrong.append(f"{name}: other bytes without an error")
    truth = index()
    with _named(found, "index"):
        if reader.index.content_sha256 != truth.content_sha256:
            found.wrong.append("index: other rows without an error")
    if complete:
        with _named(found, "statistics"):
            names = {a.name for a in reader.spec.arrays if a.has_channel_statistics}
            if reader.statistics.keys() != names:
                found.wrong.append("statistics: other arrays without an error")
    for space, count in truth.counts().items():
        finished = reader.finished_rows(space)
        for array in reader.spec.arrays_of(space):
            with _named(found, array.name):
                rows = np.arange(count) if digest is not None else finished
                got = reader.read(array.name, rows)
                wanted = values(array, range(count))[rows]
                if got.tobytes() != wanted.tobytes():
                    found.wrong.append(f"{array.name}: other values without an error")
        found.finished[space] = len(finished)


def files_of(path: Path) -> dict[str, tuple[int, int, int]]:
    """Every file of finished shards → inode, time in ns, bytes: the same while nobody rewrites."""
    seen = {}
    for entry in sorted(path.glob("ledger/*.json")):
        for line in entry.read_text().splitlines()[:1]:
            for array in json.loads(line)["entry"]["arrays"].values():
                status = (path / array["file"]).stat()
                seen[array["file"]] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return seen
