"""Which DICOM files belong together, told from their headers alone."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

__all__ = ["DicomIndex", "DicomSeries", "index_dicom", "is_dicom"]

_SUFFIXES = (".dcm", ".dicom", ".ima")
_SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "Rows",
    "ReferencedSeriesSequence",
]


@dataclass(frozen=True, kw_only=True)
class DicomSeries:
    """One image series.

    Attributes:
        series_uid: SeriesInstanceUID.
        patient: PatientID, empty where the header has none.
        files: its instances in no particular order.
        segmentations: DICOM SEG files that refer to it, by name.
    """

    series_uid: str
    patient: str
    files: tuple[Path, ...]
    segmentations: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class DicomIndex:
    """What a set of DICOM files holds.

    Attributes:
        series: image series, by series UID.
        unreadable: (file, cause) of files whose header cannot be read.
        orphans: DICOM SEG files whose image series is not among the files.
        others: files that are neither images nor segmentations, such as reports.
    """

    series: tuple[DicomSeries, ...]
    unreadable: tuple[tuple[Path, str], ...]
    orphans: tuple[Path, ...]
    others: tuple[Path, ...]


def is_dicom(file: Path) -> bool:
    """Whether ``file`` is DICOM by its suffix or, without a suffix, by its magic bytes."""
    if file.suffix.lower() in _SUFFIXES:
        return True
    if file.suffix and not file.suffix[1:].isdigit():
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def index_dicom(files: Iterable[Path]) -> DicomIndex:
    """Group ``files`` by series and give each DICOM SEG to the series that it refers to.

    A SEG names its series in ReferencedSeriesSequence; one that does not belongs to the only
    series of the same frame of reference.
    """
    images: dict[str, list[Path]] = defaultdict(list)
    headers: dict[str, Any] = {}
    segmentations: list[tuple[Path, Any]] = []
    unreadable: list[tuple[Path, str]] = []
    others: list[Path] = []
    for file in sorted(files):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
            unreadable.append((file, str(error)))
            continue
        if header.get("SOPClassUID") == _SEGMENTATION_STORAGE:
            segmentations.append((file, header))
        elif "Rows" in header and "SeriesInstanceUID" in header:
            images[str(header.SeriesInstanceUID)].append(file)
            headers.setdefault(str(header.SeriesInstanceUID), header)
        else:
            others.append(file)
    labels: dict[str, list[Path]] = defaultdict(list)
    orphans: list[Path] = []
    for file, header in segmentations:
        uid = _series_of(header, headers)
        if uid is None:
            orphans.append(file)
        else:
            labels[uid].append(file)
    return DicomIndex(
        series=tuple(
            DicomSeries(
                series_uid=uid,
                patient=str(headers[uid].get("PatientID") or ""),
                files=tuple(images[uid]),
                segmentations=tuple(labels[uid]),
            )
            for uid in sorted(images)
        ),
        unreadable=tuple(unreadable),
        orphans=tuple(orphans),
        others=tuple(others),
    )


def _series_of(segmentation: Any, headers: dict[str, Any]) -> str | None:  # noqa: ANN401
    referenced = segmentation.get("ReferencedSeriesSequence")
    if referenced:
        uid = str(referenced[0].get("SeriesInstanceUID"))
        return uid if uid in headers else None
    frame = segmentation.get("FrameOfReferenceUID")
    same = [uid for uid, h in headers.items() if frame and h.get("FrameOfReferenceUID") == frame]
    return same[0] if len(same) == 1 else None
