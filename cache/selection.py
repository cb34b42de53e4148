"""Which rows of a cache a training looks at."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cache.index import CacheIndex
from cache.schema import RowSpace

__all__ = ["select_rows"]

Int64 = npt.NDArray[np.int64]


def select_rows(
    index: CacheIndex,
    space: RowSpace = "slices",
    *,
    split: str | None = None,
    modality: str | None = None,
    object_id: int | None = None,
    view: int | None = None,
) -> Int64:
    """Give the rows of a space that fit every condition, ascending, int64 (n,).

    Args:
        index: the cache's index.
        space: which rows.
        split: only cases of this split.
        modality: only cases of this modality.
        object_id: only prompts and tracks of this object; of ``slices`` the rows on which a
            prompt or track of it lies.
        view: only this view.

    Raises:
        KeyError: a split, modality or object that the cache does not have; names those it has.
    """
    rows = index.select(space, split=split, view=view)
    if modality is not None:
        rows = rows[_cases_of(index, modality)[_table(index, space).case_code[rows]]]
    if object_id is not None:
        rows = rows[_rows_of_object(index, space, object_id)[rows]]
    return rows


def _table(index: CacheIndex, space: RowSpace) -> Any:  # noqa: ANN401 - one of three tables
    return {"slices": index.slices, "prompts": index.prompts, "tracks": index.tracks}[space]


def _cases_of(index: CacheIndex, modality: str) -> npt.NDArray[np.bool_]:
    known = np.array(index.cases.arrow["modality"].to_pylist(), dtype=object)
    chosen = known == modality
    if not chosen.any():
        raise KeyError(f"no case of modality {modality!r}; there are {sorted(set(known))}")
    return np.asarray(chosen, dtype=bool)


def _rows_of_object(index: CacheIndex, space: RowSpace, object_id: int) -> npt.NDArray[np.bool_]:
    tables = (index.prompts, index.tracks)
    if not any((table.object_id == object_id).any() for table in tables):
        known = sorted({int(i) for table in tables for i in np.unique(table.object_id)})
        raise KeyError(f"no object {object_id}; there are {known[:20]}")
    if space != "slices":
        return np.asarray(_table(index, space).object_id == object_id)
    chosen = np.zeros(len(index.slices), dtype=bool)
    for table in tables:
        chosen[table.slice_row[table.object_id == object_id]] = True
    return chosen
