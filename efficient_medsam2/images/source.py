"""Cases on disk: what `find_cases` found, before anything is loaded."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case, CaseFormat, Modality
from efficient_medsam2.images.dicom import open_dicom
from efficient_medsam2.images.nifti import read_nifti
from efficient_medsam2.images.nifti_stream import open_nifti
from efficient_medsam2.images.npz import read_npz
from efficient_medsam2.images.npz_stream import open_npz
from efficient_medsam2.images.pictures import read_picture
from efficient_medsam2.images.slices import CaseSlices, LoadedSlices
from efficient_medsam2.images.streamed import CaseFindings, StoredCase, StreamedSlices
from efficient_medsam2.images.video import open_video

__all__ = ["CaseList", "CaseSource", "LabelNeed", "Skipped", "Split"]

Split = Literal["train", "validation", "test"]
LabelNeed = Literal["required", "optional"]


@dataclass(frozen=True, kw_only=True)
class CaseSource:
    """The files of one case and what was told about them.

    Attributes:
        case_id: unique name of the case.
        patient_id: whom it shows.
        format: which reader loads it.
        root: the folder that relative names start from.
        image_files: one file, the instances of a DICOM series, or the frames of a video.
        label_files: label map or masks, of a video those of its frames; empty for npz, which
            holds its own.
        split: where the user put it, if the user did.
        modality: what the user says it is; the reader finds out where None.
        labels: whether a case without any labelled voxel is an error on loading.
    """

    case_id: str
    patient_id: str
    format: CaseFormat
    root: Path
    image_files: tuple[Path, ...]
    label_files: tuple[Path, ...] = ()
    split: Split | None = None
    modality: Modality | None = None
    labels: LabelNeed = "required"

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the case, images first."""
        return (*self.image_files, *self.label_files)

    @property
    def names(self) -> tuple[str, ...]:
        """``files`` relative to ``root``, with forward slashes."""
        return tuple(Path(os.path.relpath(file, self.root)).as_posix() for file in self.files)

    def load(self) -> Case:
        """Read the case.

        Raises:
            DataError: a file is damaged or mismatched, or labels are required and there is no
                label or no object in it.
        """
        case = self._read()
        has_object = case.label is not None and bool(case.label.any())
        self._check_label(has_label=case.label is not None, has_object=has_object)
        return case

    def open(self, findings: CaseFindings | None = None) -> CaseSlices:
        """Open the case to be read slice by slice, in memory that does not grow with its length.

        Args:
            findings: of an earlier opening of the same files (``StreamedSlices.findings``); where
                None every file is read once from end to end.

        Raises:
            DataError: as ``load``.
        """
        stored = self._open()
        if stored is None:
            return LoadedSlices(self.load())
        slices = StreamedSlices(stored, findings)
        try:
            self._check_label(has_label=slices.has_label, has_object=bool(slices.object_ids))
        except DataError:
            slices.close()
            raise
        return slices

    def _check_label(self, *, has_label: bool, has_object: bool) -> None:
        if self.labels == "optional":
            return
        if not has_label:
            raise DataError(
                f"case {self.case_id} ({self.image_files[0]}): no label, and labels are "
                "required here. Add the label, or leave the case out"
            )
        if not has_object:
            where = (self.label_files or self.image_files)[0]
            raise DataError(
                f"case {self.case_id} ({where}): the label map has no object, every value is "
                "0. Mend the label, or leave the case out"
            )

    def _read(self) -> Case:
        ids = {"case_id": self.case_id, "patient_id": self.patient_id}
        if self.format == "npz":
            return read_npz(self.image_files[0], modality=self.modality, **ids)
        if self.format == "nifti":
            return read_nifti(self.image_files[0], self.label_files, modality=self.modality, **ids)
        if self.format == "picture":
            return read_picture(
                self.image_files[0], self.label_files, modality=self.modality, **ids
            )
        stored = self._open()
        assert stored is not None
        return stored.load()

    def _open(self) -> StoredCase | None:
        """The case on disk; None for single pictures, which are read whole."""
        ids = {"case_id": self.case_id, "patient_id": self.patient_id}
        if self.format == "npz":
            return open_npz(self.image_files[0], modality=self.modality, **ids)
        if self.format == "nifti":
            return open_nifti(self.image_files[0], self.label_files, modality=self.modality, **ids)
        if self.format == "dicom":
            return open_dicom(self.image_files, self.label_files, modality=self.modality, **ids)
        if self.format == "video":
            return open_video(self.image_files, self.label_files, modality=self.modality, **ids)
        return None

    def digests(self) -> dict[str, str]:
        """Relative name to the SHA-256 of the file's content, hex; files are streamed.

        Raises:
            DataError: a file cannot be read.
        """
        found: dict[str, str] = {}
        for name, file in zip(self.names, self.files, strict=True):
            try:
                with file.open("rb") as stream:
                    found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise DataError(
                    f"{file}: cannot be read ({error}). Check that it still exists and that you "
                    "may read it"
                ) from error
        return found


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that was left out because the user said so, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CaseList:
    """What `find_cases` found.

    Attributes:
        sources: the cases by ``case_id``.
        skipped: what was wrong and left out under ``on_error="skip"``.
        notes: files that were rightly left unread, and why; worth one look.
    """

    sources: tuple[CaseSource, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[CaseSource]:
        return iter(self.sources)
