"""The report of a run: one page for people, one JSON file for machines.

The page needs no network and no other file. Every figure is read from the run folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import report_words
from pipeline.artifacts import write_atomically
from pipeline.report_checks import Check, run_checks
from pipeline.report_files import read_run
from pipeline.report_page import render_page
from pipeline.report_records import RunRecords, parse_rows

__all__ = ["ReportFiles", "summary_table", "write_report"]


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """What was written.

    Attributes:
        html: the page.
        json: rows, checks and context.
    """

    html: Path
    json: Path

    def __str__(self) -> str:
        return str(self.html)


def write_report(run_dir: Path) -> ReportFiles:
    """Write ``report.html`` and ``report.json`` into ``run_dir``, each completely or not at all.

    Failing checks are shown in the report; they raise nothing.

    Raises:
        ArtifactError: there is no evaluation in ``run_dir``, or one of its files is damaged.
    """
    records = read_run(run_dir)
    checks = run_checks(records)
    page = render_page(records, checks)
    files = ReportFiles(html=run_dir / "report.html", json=run_dir / "report.json")
    document = json.dumps(_document(records, checks), indent=2, allow_nan=False)
    write_atomically(files.json, document + "\n")
    write_atomically(files.html, page)
    return files


def summary_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A short plain-text table of the rows of ``report.json`` or ``evaluate/rows.json``.

    Raises:
        ValueError: a row without ``model``, or a figure that is no number.
    """
    return report_words.summary_table(parse_rows(rows))


def _document(records: RunRecords, checks: Sequence[Check]) -> dict[str, Any]:
    stored = {"cache_bytes_per_slice": records.context.cache_bytes_per_slice}
    return {
        "rows": [row.model_dump(mode="json") | stored for row in records.rows],
        "other_seeds": [each.seed for each in records.repetitions if not each.problem],
        "checks": [asdict(check) for check in checks],
        "context": records.context.model_dump(mode="json"),
    }
