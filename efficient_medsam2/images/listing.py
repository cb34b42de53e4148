"""A listing: a CSV or YAML file that names each case's files.

Columns (CSV) or keys (YAML: a list of mappings, or ``cases:`` with such a list):

- ``image`` (required): a file, or a folder that holds one DICOM series or a video's frames;
- ``label``: label map or masks, several separated by ``;`` (YAML: also a list); of a video the
  folder of its masks;
- ``case``: the case's name, else the image's file name without suffix;
- ``patient``, ``split`` (train, validation, test) and ``modality``: optional.

Paths are relative to the listing file.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import MODALITIES, Modality
from efficient_medsam2.images.source import Split

__all__ = ["ListedCase", "read_listing"]

_COLUMNS = ("image", "label", "case", "patient", "split", "modality")


@dataclass(frozen=True, kw_only=True)
class ListedCase:
    """One row of a listing, paths resolved against its folder; not yet checked to exist."""

    where: str
    image: Path
    labels: tuple[Path, ...]
    case: str | None
    patient: str | None
    split: Split | None
    modality: Modality | None


def read_listing(file: Path) -> tuple[ListedCase, ...]:
    """Read a ``.csv``, ``.yaml`` or ``.yml`` listing.

    Raises:
        DataError: the file cannot be parsed, has an unknown column, or a row has no image.
    """
    try:
        rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _yaml_rows(file)
    except (OSError, UnicodeDecodeError, csv.Error, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as a listing ({error}). Mend the file") from error
    if not rows:
        raise DataError(f"{file}: the listing names no case. Add a row with at least `image`")
    return tuple(_listed(row, f"{file}, {where}", file.parent) for where, row in rows)


def _csv_rows(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, restkey="(more fields than columns)")
        return [(f"line {reader.line_num}", row) for row in reader]


def _yaml_rows(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    if isinstance(document, dict) and set(document) == {"cases"}:
        document = document["cases"]
    if document is None:
        return []
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise DataError(
            f"{file}: a YAML listing is a list of mappings with `image`, or `cases:` with such a "
            "list"
        )
    return [(f"entry {index}", row) for index, row in enumerate(document, start=1)]


def _listed(row: Mapping[str, Any], where: str, folder: Path) -> ListedCase:
    unknown = sorted(str(key) for key in row if key not in _COLUMNS)
    if unknown:
        raise DataError(
            f"{where}: unknown column {', '.join(unknown)}; the known ones are "
            f"{', '.join(_COLUMNS)}"
        )
    image = _text(row, "image")
    if image is None:
        raise DataError(f"{where}: no `image`. Name the image file, relative to the listing")
    stored = row.get("label")
    names = stored if isinstance(stored, list) else (_text(row, "label") or "").split(";")
    split = _choice(row, "split", get_args(Split), where)
    modality = _choice(row, "modality", MODALITIES, where)
    return ListedCase(
        where=where,
        image=folder / image,
        labels=tuple(folder / str(name).strip() for name in names if str(name).strip()),
        case=_text(row, "case"),
        patient=_text(row, "patient"),
        split=split,  # type: ignore[arg-type]  # checked against the literal's values
        modality=modality,  # type: ignore[arg-type]  # checked against the literal's values
    )


def _text(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    text = "" if value is None else str(value).strip()
    return text or None


def _choice(row: Mapping[str, Any], key: str, allowed: tuple[str, ...], where: str) -> str | None:
    value = _text(row, key)
    if value is not None and value not in allowed:
        raise DataError(f"{where}: {key} {value!r} is not one of {', '.join(allowed)}")
    return value
