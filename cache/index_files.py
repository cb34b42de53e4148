"""The index on disk: four Parquet files that any reader of Parquet understands."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache.cases import CaseTable
from cache.durable import sha256_of_bytes, sha256_of_file, write_durably
from cache.errors import CacheCorruptError
from cache.index import CacheIndex
from cache.tables import PROMPT_KINDS, PointLists, PromptTable, SliceTable, TrackTable

__all__ = ["INDEX_FOLDER", "encode_index", "index_file_problem", "read_index", "write_index"]

INDEX_FOLDER = "index"


def encode_index(index: CacheIndex) -> dict[str, bytes]:
    """Give the content of the index's files by name (``slices.parquet`` and so on)."""
    cases = index.cases
    tables = {
        "cases": cases.arrow,
        "slices": _with_cases(
            cases,
            index.slices.case_code,
            slice_index=index.slices.slice_index,
            view=index.slices.view,
            affine=pa.FixedSizeListArray.from_arrays(
                index.slices.affines[index.slices.affine_code].reshape(-1), 6
            ),
        ),
        "prompts": _with_cases(
            cases,
            index.prompts.case_code,
            slice_index=index.prompts.slice_index,
            view=index.prompts.view,
            object_id=index.prompts.object_id,
            kind=pa.DictionaryArray.from_arrays(index.prompts.kind_code, list(PROMPT_KINDS)),
            slice_row=index.prompts.slice_row,
            **_encode_points(index.prompts.prompt),
        ),
        "tracks": _with_cases(
            cases,
            index.tracks.case_code,
            track=index.tracks.track,
            object_id=index.tracks.object_id,
            prompted_slice=index.tracks.prompted_slice,
            direction=index.tracks.direction,
            step=index.tracks.step,
            slice_index=index.tracks.slice_index,
            slice_row=index.tracks.slice_row,
            num_frames=index.tracks.num_frames,
            **_encode_points(index.tracks.prompt),
        ),
    }
    return {f"{name}.parquet": _encode(table) for name, table in tables.items()}


def write_index(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Write encoded index files durably and give each one's ``bytes`` and ``sha256``."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        write_durably(folder / name, content)
    return {
        name: {"bytes": len(content), "sha256": sha256_of_bytes(content)}
        for name, content in files.items()
    }


def index_file_problem(folder: Path, name: str, record: Mapping[str, Any]) -> str | None:
    """Say what is wrong with an index file, or give ``None``."""
    path = folder / name
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != record["bytes"]:
        return f"has {path.stat().st_size} bytes, not {record['bytes']}"
    if sha256_of_file(path) != record["sha256"]:
        return "has other bytes than were written (SHA-256 differs)"
    return None


def read_index(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> CacheIndex:
    """Read the index and check every file against its recorded digest.

    Args:
        folder: the ``index`` folder.
        records: file name → ``{"bytes", "sha256"}`` as ``write_index`` gave them.

    Raises:
        CacheCorruptError: a file is missing, damaged, or not what this version writes.
    """
    for name, record in records.items():
        problem = index_file_problem(folder, name, record)
        if problem:
            raise CacheCorruptError(
                f"{folder / name} {problem}. Write it again: efficient-medsam2 precompute"
            )
    try:
        cases = CaseTable(_decode(folder / "cases.parquet"))
        return CacheIndex(
            cases=cases,
            slices=_decode_slices(_decode(folder / "slices.parquet"), cases),
            prompts=_decode_prompts(_decode(folder / "prompts.parquet"), cases),
            tracks=_decode_tracks(_decode(folder / "tracks.parquet"), cases),
        )
    except (ValueError, KeyError, OSError) as error:
        raise CacheCorruptError(
            f"{folder}: the index does not fit together ({error}). "
            "Write it again: efficient-medsam2 precompute"
        ) from error


def _with_cases(cases: CaseTable, codes: Any, **columns: Any) -> Any:  # noqa: ANN401
    names = pa.DictionaryArray.from_arrays(
        pa.array(codes), cases.arrow["case_id"].combine_chunks().cast(pa.string())
    )
    row = np.arange(len(codes), dtype=np.int64)
    return pa.table({"row": row, "case_id": names, **columns})


def _encode_points(lists: PointLists) -> dict[str, Any]:
    pairs = pa.FixedSizeListArray.from_arrays(lists.points.reshape(-1), 2)
    return {
        "points": pa.LargeListArray.from_arrays(lists.offsets, pairs),
        "labels": pa.LargeListArray.from_arrays(lists.offsets, lists.labels),
    }


def _encode(table: Any) -> bytes:  # noqa: ANN401
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _decode(path: Path) -> Any:  # noqa: ANN401
    return pq.read_table(path, memory_map=False).combine_chunks()


def _numbers(table: Any, name: str, dtype: type[np.generic]) -> Any:  # noqa: ANN401
    return np.ascontiguousarray(table[name].to_numpy(), dtype=dtype)


def _codes(table: Any, name: str, order: Callable[[str], int], dtype: type[np.generic]) -> Any:  # noqa: ANN401
    if len(table) == 0:
        return np.zeros(0, dtype=dtype)
    column = pc.dictionary_encode(table[name]).combine_chunks()
    if hasattr(column, "chunks"):
        column = column.chunk(0)
    mapping = np.asarray([order(value) for value in column.dictionary.to_pylist()], dtype=dtype)
    return mapping[column.indices.to_numpy()]


def _case_codes(table: Any, cases: CaseTable) -> Any:  # noqa: ANN401
    return _codes(table, "case_id", cases.codes.__getitem__, np.int32)


def _decode_points(table: Any) -> PointLists:  # noqa: ANN401
    count = len(table)
    if count == 0:
        return PointLists.of(())
    points, labels = table["points"].combine_chunks(), table["labels"].combine_chunks()
    if hasattr(points, "chunks"):
        points, labels = points.chunk(0), labels.chunk(0)
    return PointLists(
        offsets=np.ascontiguousarray(points.offsets.to_numpy(), dtype=np.int64),
        points=np.ascontiguousarray(
            points.flatten().flatten().to_numpy(), dtype=np.float32
        ).reshape(-1, 2),
        labels=np.ascontiguousarray(labels.flatten().to_numpy(), dtype=np.int8),
    )


def _decode_slices(table: Any, cases: CaseTable) -> SliceTable:  # noqa: ANN401
    affine = table["affine"].combine_chunks().flatten().to_numpy().reshape(-1, 6)
    distinct, first, code = np.unique(affine, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # order of first appearance, as when it was written
    return SliceTable(
        case_code=_case_codes(table, cases),
        slice_index=_numbers(table, "slice_index", np.int32),
        view=_numbers(table, "view", np.int16),
        affine_code=np.argsort(order)[code.reshape(-1)].astype(np.int32),
        affines=np.ascontiguousarray(distinct[order], dtype=np.float64),
    )


def _kind_code(kind: str) -> int:
    return [*map(str, PROMPT_KINDS)].index(kind)


def _decode_prompts(table: Any, cases: CaseTable) -> PromptTable:  # noqa: ANN401
    return PromptTable(
        case_code=_case_codes(table, cases),
        slice_index=_numbers(table, "slice_index", np.int32),
        object_id=_numbers(table, "object_id", np.int32),
        slice_row=_numbers(table, "slice_row", np.int32),
        view=_numbers(table, "view", np.int16),
        kind_code=_codes(table, "kind", _kind_code, np.int8),
        prompt=_decode_points(table),
    )


def _decode_tracks(table: Any, cases: CaseTable) -> TrackTable:  # noqa: ANN401
    return TrackTable(
        track=_numbers(table, "track", np.int32),
        case_code=_case_codes(table, cases),
        object_id=_numbers(table, "object_id", np.int32),
        prompted_slice=_numbers(table, "prompted_slice", np.int32),
        step=_numbers(table, "step", np.int32),
        slice_index=_numbers(table, "slice_index", np.int32),
        slice_row=_numbers(table, "slice_row", np.int32),
        num_frames=_numbers(table, "num_frames", np.int32),
        direction=_numbers(table, "direction", np.int8),
        prompt=_decode_points(table),
    )
