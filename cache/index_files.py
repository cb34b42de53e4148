"""The index on disk: four Parquet files that any reader of Parquet understands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.address import place_of
from cache.cases import CaseTable
from cache.durable import sha256_of_bytes, sha256_of_file, write_durably
from cache.errors import CacheCorruptError
from cache.index import CacheIndex
from cache.index_columns import IndexColumns
from cache.mending import repair_command
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
            kind=pa.DictionaryArray.from_arrays(index.tracks.kind_code, list(PROMPT_KINDS)),
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
                f"{place_of(folder / name)} {problem}. Write it again: "
                f"{repair_command(folder.parent)}"
            )
    try:
        cases = _decode_cases(folder / "cases.parquet")
        return CacheIndex(
            cases=cases,
            slices=_decode_slices(folder / "slices.parquet", cases),
            prompts=_decode_prompts(folder / "prompts.parquet", cases),
            tracks=_decode_tracks(folder / "tracks.parquet", cases),
        )
    except (ValueError, KeyError, OSError) as error:
        raise CacheCorruptError(
            f"{place_of(folder)}: the index does not fit together ({error}). "
            f"Write it again: {repair_command(folder.parent)}"
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


def _decode_cases(path: Path) -> CaseTable:
    with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as opened:
        return CaseTable(opened.read(use_threads=False))


def _case_codes(columns: IndexColumns, cases: CaseTable) -> Any:  # noqa: ANN401
    return columns.codes("case_id", cases.arrow["case_id"].combine_chunks(), np.int32)


def _kind_codes(columns: IndexColumns) -> Any:  # noqa: ANN401
    return columns.codes("kind", pa.array(PROMPT_KINDS, pa.string()), np.int8)


def _decode_slices(path: Path, cases: CaseTable) -> SliceTable:
    with IndexColumns(path) as columns:
        codes, affines = columns.affines("affine")
        return SliceTable(
            case_code=_case_codes(columns, cases),
            slice_index=columns.numbers("slice_index", np.int32),
            view=columns.numbers("view", np.int16),
            affine_code=codes,
            affines=affines,
        )


def _decode_prompts(path: Path, cases: CaseTable) -> PromptTable:
    with IndexColumns(path) as columns:
        return PromptTable(
            case_code=_case_codes(columns, cases),
            slice_index=columns.numbers("slice_index", np.int32),
            object_id=columns.numbers("object_id", np.int32),
            slice_row=columns.numbers("slice_row", np.int32),
            view=columns.numbers("view", np.int16),
            kind_code=_kind_codes(columns),
            prompt=columns.points(),
        )


def _decode_tracks(path: Path, cases: CaseTable) -> TrackTable:
    with IndexColumns(path) as columns:
        prompt = columns.points()
        # Tracks of older caches have no such column, and were prompted as their labels tell.
        kinds = _kind_codes(columns) if "kind" in columns else prompt.kind_codes()
        return TrackTable(
            track=columns.numbers("track", np.int32),
            case_code=_case_codes(columns, cases),
            object_id=columns.numbers("object_id", np.int32),
            prompted_slice=columns.numbers("prompted_slice", np.int32),
            step=columns.numbers("step", np.int32),
            slice_index=columns.numbers("slice_index", np.int32),
            slice_row=columns.numbers("slice_row", np.int32),
            num_frames=columns.numbers("num_frames", np.int32),
            direction=columns.numbers("direction", np.int8),
            kind_code=kinds,
            prompt=prompt,
        )
