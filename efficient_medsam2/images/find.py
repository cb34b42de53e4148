"""Find the cases of a folder, a listing or a single file. Nothing is loaded here."""

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Literal

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.collect import LISTINGS, UNREAD_FORMATS, Search, format_of, walk
from efficient_medsam2.images.dicom_index import index_dicom, is_dicom
from efficient_medsam2.images.listing import ListedCase, read_listing
from efficient_medsam2.images.pairing import file_stem
from efficient_medsam2.images.source import CaseList, CaseSource, LabelNeed
from efficient_medsam2.images.video import frame_order

__all__ = ["DEFAULT_PATIENT_PATTERN", "find_cases"]

DEFAULT_PATIENT_PATTERN = r"(.*patient\d+|.*CT_Lesion_\d+|amos_\d{4}|Image_\d+(?=[LR]$))"
"""Begins a case id with its patient: ACDC ``patient002_frame01``, DeepLesion
``CT_Lesion_000015_01_...``, AMOS slices ``amos_0004_75``, CHASE_DB1 eyes ``Image_01L``."""


def find_cases(
    source: Path | str,
    *,
    labels: LabelNeed = "required",
    on_error: Literal["stop", "skip"] = "stop",
    patient_pattern: str | None = None,
) -> CaseList:
    """Find every case under a folder (recursively), in a listing, or in one file.

    Challenge npz, NIfTI, DICOM series with DICOM SEG, pictures, and videos as folders of numbered
    pictures are recognised; ``pairing`` says how names join images and labels. Hidden files are
    not data. The case id is the file's stem (of a DICOM series its UID, of a video its folder's
    name), so it does not depend on where the search began.

    Args:
        source: folder, listing (``.csv``, ``.yaml``, ``.yml``) or image file.
        labels: ``required`` for training and evaluation; ``optional`` also takes images
            without ground truth.
        on_error: ``stop`` at what cannot be used, or ``skip`` it and tell it in ``skipped``.
        patient_pattern: regular expression with one group, matched at the beginning of the case
            id; the group is the patient. None takes ``DEFAULT_PATIENT_PATTERN``. A case that
            does not match is its own patient. A listing's ``patient`` and DICOM's PatientID win.

    Returns:
        The cases by id.

    Raises:
        DataError: there is nothing to find, a file cannot be used, an image and its label do
            not meet, two files give one case id, or the pattern is no use.
    """
    path = Path(source)
    pattern = _compiled(patient_pattern)
    if path.is_dir():
        search = Search(root=path, labels=labels)
        _search_folder(search)
    elif path.is_file() and path.suffix.lower() in LISTINGS:
        search = Search(root=path.parent, labels=labels)
        for listed in read_listing(path):
            _add_listed(search, listed)
    elif path.is_file():
        search = Search(root=path.parent, labels=labels)
        search.add_files([path])
    else:
        raise DataError(f"{path}: no such file or folder. Check the path of the data")
    _settle(search, pattern, is_given=patient_pattern is not None)
    return _finish(search, path, on_error)


def _compiled(pattern: str | None) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern or DEFAULT_PATIENT_PATTERN)
    except re.error as error:
        raise DataError(
            f"patient_pattern {pattern!r} is not a regular expression: {error}"
        ) from error
    if compiled.groups != 1:
        raise DataError(
            f"patient_pattern {pattern!r} has {compiled.groups} groups; put the patient, and "
            "nothing else, in one (...)"
        )
    return compiled


def _search_folder(search: Search) -> None:
    files = walk(search.root)
    unread = [file for file in files if file.suffix.lower() in UNREAD_FORMATS]
    if unread:
        search.notes.append(
            f"{search.root}: {len(unread)} files of formats that are not read, such as "
            f"{unread[0].name}. Convert them to NIfTI to use them"
        )
    search.add_files(files)


def _add_listed(search: Search, listed: ListedCase) -> None:
    missing = [file for file in (listed.image, *listed.labels) if not file.exists()]
    if missing:
        search.problem(
            listed.where,
            f"{listed.where}: {missing[0]} does not exist. Paths are relative to the listing",
        )
        return
    before = len(search.sources)
    if listed.image.is_dir():
        frames = [file for file in walk(listed.image) if format_of(file) == "picture"]
        if frames:
            _add_listed_video(search, listed, frames)
        else:
            _add_listed_series(search, listed)
    else:
        _add_listed_file(search, listed)
    for position in range(before, len(search.sources)):
        search.sources[position] = replace(
            search.sources[position],
            case_id=listed.case or search.sources[position].case_id,
            patient_id=listed.patient or search.sources[position].patient_id,
            split=listed.split,
            modality=listed.modality,
        )


def _add_listed_file(search: Search, listed: ListedCase) -> None:
    kind = format_of(listed.image)
    stem = file_stem(listed.image)
    if kind is None:
        search.problem(
            listed.where,
            f"{listed.where}: {listed.image} is of a format that is not read. Convert it to NIfTI",
        )
    elif kind == "npz" and listed.labels:
        search.problem(
            listed.where,
            f"{listed.where}: an npz case holds its own labels. Remove the label column's entry",
        )
    elif kind == "npz":
        search.add_npz(listed.image, stem)
    elif any(format_of(label) != kind for label in listed.labels):
        search.problem(
            listed.where,
            f"{listed.where}: image and label are of different formats. Convert the label to the "
            "image's format",
        )
    elif not listed.labels and search.labels == "required":
        search.problem(
            listed.where,
            f"{listed.where}: no `label`, and labels are required here. Fill in the column",
        )
    else:
        search.add(kind, stem, [listed.image], listed.labels)


def _add_listed_series(search: Search, listed: ListedCase) -> None:
    index = index_dicom(file for file in walk(listed.image) if is_dicom(file))
    labels = listed.labels or (index.series[0].segmentations if len(index.series) == 1 else ())
    if len(index.series) != 1 or index.unreadable:
        search.problem(
            listed.where,
            f"{listed.where}: {listed.image} holds {len(index.series)} DICOM series and "
            f"{len(index.unreadable)} unreadable files, not one series. Give each series a folder",
        )
    elif search.labels == "required" and not labels:
        search.problem(
            listed.where,
            f"{listed.where}: no `label`, and labels are required here. Name the DICOM SEG file",
        )
    else:
        series = index.series[0]
        patient = series.patient
        search.add("dicom", series.series_uid, series.files, labels, patient_id=patient)


def _add_listed_video(search: Search, listed: ListedCase, frames: list[Path]) -> None:
    if any(not label.is_dir() for label in listed.labels) or len(listed.labels) > 1:
        search.problem(
            listed.where,
            f"{listed.where}: {listed.image} holds the frames of a video; its label is one folder "
            "of masks named as the frames are",
        )
        return
    masks = [file for label in listed.labels for file in walk(label)]
    frames = sorted(frames, key=frame_order)
    search.add_video(
        listed.image.name, frames, [file for file in masks if format_of(file) == "picture"]
    )


def _settle(search: Search, pattern: re.Pattern[str], *, is_given: bool) -> None:
    """Give every case its patient."""
    matched = 0
    unnamed = 0
    for position, source in enumerate(search.sources):
        if source.patient_id:
            continue
        unnamed += 1
        match = pattern.match(source.case_id)
        matched += match is not None
        search.sources[position] = replace(
            source, patient_id=(match[1] if match and match[1] else source.case_id)
        )
    if is_given and unnamed and not matched:
        raise DataError(
            f"patient_pattern {pattern.pattern!r} matches none of {unnamed} case ids, such as "
            f"{search.sources[0].case_id!r}. Mend the pattern"
        )
    if is_given and matched < unnamed:
        search.notes.append(
            f"patient_pattern {pattern.pattern!r} does not match {unnamed - matched} of {unnamed} "
            "case ids; each of those is its own patient"
        )


def _finish(search: Search, path: Path, on_error: Literal["stop", "skip"]) -> CaseList:
    """Refuse doubled ids and problems, or set them apart, and sort."""
    by_id: dict[str, list[CaseSource]] = defaultdict(list)
    for source in search.sources:
        by_id[source.case_id].append(source)
    for case_id in sorted(case_id for case_id, found in by_id.items() if len(found) > 1):
        files = " and ".join(str(source.image_files[0]) for source in by_id.pop(case_id))
        search.problem(
            files,
            f"case {case_id!r} comes from {files}: a case id must be unique. Rename one file, or "
            "write a listing with a column `case`",
        )
    if search.problems and on_error == "stop":
        more = len(search.problems) - 1
        also = f" ({more} more files cannot be used)" if more else ""
        raise DataError(
            f"{search.problems[0].reason}{also}. Or go on without such files: on_error = skip"
        )
    if not by_id:
        hint = search.problems[0].reason if search.problems else " ".join(search.notes)
        raise DataError(
            f"{path}: no case found. It must hold npz, NIfTI, DICOM or picture files, images "
            f"beside masks. {hint}".rstrip()
        )
    return CaseList(
        sources=tuple(by_id[case_id][0] for case_id in sorted(by_id)),
        skipped=tuple(sorted(search.problems, key=lambda skipped: skipped.name)),
        notes=tuple(search.notes),
    )
