"""The table of cases: kept in Arrow's columns, because it is mostly text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cache.records import CaseRow

__all__ = ["CASE_SCHEMA", "CaseTable"]

CASE_SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("modality", pa.string()),
        ("depth", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("spacing_mm", pa.list_(pa.float64(), 3)),
        ("files", pa.string()),  # JSON object: relative name -> SHA-256
        ("object_names", pa.string()),  # JSON object: object id -> name
    ]
)


class CaseTable:
    """All cases; a case's position in this table is its *code* in the other tables.

    Args:
        table: an Arrow table of ``CASE_SCHEMA``.

    Raises:
        ValueError: columns are not those of the schema, or a case id is there twice.
    """

    def __init__(self, table: Any) -> None:  # noqa: ANN401 - pyarrow has no types
        if not table.schema.equals(CASE_SCHEMA, check_metadata=False):
            raise ValueError(f"columns are {table.schema.names}, not {CASE_SCHEMA.names}")
        self.arrow = table.combine_chunks()
        if len(self.codes) != len(table):
            counts = pc.value_counts(table["case_id"]).to_pylist()
            twice = [item["values"] for item in counts if item["counts"] > 1]
            raise ValueError(f"case ids are there more than once: {twice[:5]}")

    @classmethod
    def of(cls, rows: Iterable[CaseRow]) -> "CaseTable":
        """Make the table of ``rows`` in their order."""
        records = [
            {
                "case_id": row.case_id,
                "patient_id": row.patient_id,
                "split": row.split,
                "modality": row.modality,
                "depth": row.depth,
                "height": row.height,
                "width": row.width,
                "spacing_mm": [float(value) for value in row.spacing_mm],
                "files": json.dumps(dict(row.files), sort_keys=True),
                "object_names": json.dumps(
                    {str(key): name for key, name in sorted(row.object_names.items())}
                ),
            }
            for row in rows
        ]
        return cls(pa.Table.from_pylist(records, schema=CASE_SCHEMA))

    def __len__(self) -> int:
        return len(self.arrow)

    def __iter__(self) -> Iterator[CaseRow]:
        return (self.row(code) for code in range(len(self)))

    @cached_property
    def codes(self) -> dict[str, int]:
        """Case id → code."""
        return {case_id: code for code, case_id in enumerate(self.arrow["case_id"].to_pylist())}

    def case_id(self, code: int) -> str:
        """Give the case id of a code."""
        return cast(str, self.arrow["case_id"][code].as_py())

    def row(self, code: int) -> CaseRow:
        """Give the record of a code."""
        record = self.arrow.slice(code, 1).to_pylist()[0]
        names = json.loads(record["object_names"])
        return CaseRow(
            **{
                **record,
                "spacing_mm": tuple(record["spacing_mm"]),
                "files": json.loads(record["files"]),
                "object_names": {int(key): name for key, name in names.items()},
            }
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that occur, sorted."""
        return tuple(sorted(pc.unique(self.arrow["split"]).to_pylist()))

    def codes_of(
        self, *, split: str | None = None, cases: Sequence[str] | None = None
    ) -> npt.NDArray[np.int64]:
        """Give the codes of one split, of some cases, or of both conditions together.

        Raises:
            KeyError: a split or case that this cache does not have; names those it has.
        """
        chosen = np.ones(len(self), dtype=bool)
        if split is not None:
            if split not in self.splits:
                raise KeyError(f"no case of split {split!r}; splits are {list(self.splits)}")
            chosen &= np.asarray(pc.equal(self.arrow["split"], split).to_pylist(), dtype=bool)
        if cases is not None:
            absent = [case_id for case_id in cases if case_id not in self.codes]
            if absent:
                raise KeyError(f"no such cases: {absent[:5]}; this cache has {len(self)} others")
            named = np.zeros(len(self), dtype=bool)
            named[[self.codes[case_id] for case_id in cases]] = True
            chosen &= named
        return np.flatnonzero(chosen).astype(np.int64)
