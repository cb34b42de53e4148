"""Turn files into case sources, one format at a time, and note what does not fit."""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import CaseFormat
from efficient_medsam2.images.dicom_index import index_dicom, is_dicom
from efficient_medsam2.images.npz import npz_keys
from efficient_medsam2.images.pairing import Pair, file_stem, pair_files
from efficient_medsam2.images.source import CaseSource, LabelNeed, Skipped
from efficient_medsam2.images.video_folders import find_videos

__all__ = ["LISTINGS", "UNREAD_FORMATS", "Search", "format_of", "walk"]

LISTINGS = (".csv", ".yaml", ".yml")
UNREAD_FORMATS = (".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".img", ".hdr", ".h5", ".npy")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_WRITE_A_LISTING = "write a listing (.csv or .yaml with columns image, label) that names the pairs"


@dataclass(kw_only=True)
class Search:
    """What is found while looking, before names and patients are settled.

    Attributes:
        root: the folder that relative names start from.
        labels: whether cases without ground truth are wanted.
        sources: the cases, in the order in which they were found.
        problems: files that cannot be used.
        notes: files that are rightly left unread.
    """

    root: Path
    labels: LabelNeed
    sources: list[CaseSource] = field(default_factory=list)
    problems: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, file: Path | str, reason: str) -> None:
        """Record that ``file`` cannot be used; ``reason`` is the whole message."""
        self.problems.append(Skipped(name=str(file), reason=reason))

    def add_files(self, files: list[Path]) -> None:
        """Add what ``files`` hold, whatever the format."""
        kinds: dict[CaseFormat, list[Path]] = defaultdict(list)
        for file in files:
            kind = format_of(file)
            if kind is not None:
                kinds[kind].append(file)
        for file in kinds["npz"]:
            self.add_npz(file, file_stem(file))
        self._add_pairs("nifti", kinds["nifti"])
        self._add_pairs("picture", self._take_videos(kinds["picture"]))
        self._add_dicom(kinds["dicom"])

    def add(
        self,
        kind: CaseFormat,
        case_id: str,
        images: Iterable[Path],
        labels: Iterable[Path] = (),
        *,
        patient_id: str = "",
    ) -> None:
        """Add one case."""
        self.sources.append(
            CaseSource(
                case_id=case_id,
                patient_id=patient_id,
                format=kind,
                root=self.root,
                image_files=tuple(images),
                label_files=tuple(labels),
                labels=self.labels,
            )
        )

    def add_npz(self, file: Path, case_id: str) -> None:
        """Add a challenge file if its archive has the arrays that are needed."""
        try:
            keys = npz_keys(file)
        except DataError as error:
            self.problem(file, str(error))
            return
        if "imgs" not in keys:
            self.problem(
                file,
                f"{file}: no array `imgs` (it holds {', '.join(sorted(keys)) or 'nothing'}). "
                "It is not a case: move it out of the folder",
            )
        elif self.labels == "required" and "gts" not in keys:
            self.problem(
                file,
                f"{file}: no array `gts`, and labels are required here. Add the label map, or "
                "leave the file out",
            )
        else:
            self.add("npz", case_id, [file])

    def add_video(self, name: str, frames: Iterable[Path], masks: Iterable[Path]) -> None:
        """Add the frames of one video, whose masks are named as the frames are."""
        frames, masks = tuple(frames), tuple(masks)
        if masks or self.labels == "optional":
            self.add("video", name, frames, masks)
        else:
            self.problem(
                frames[0],
                f"{frames[0].parent}: a video of {len(frames)} frames without any mask, and "
                f"labels are required here. Put label maps of the same names into masks/{name} "
                "beside images",
            )

    def _take_videos(self, files: list[Path]) -> list[Path]:
        """Add the videos among the pictures; what is left."""
        found = find_videos(files, self.root)
        self.notes += found.notes
        for video in found.videos:
            self.add_video(video.name, video.frames, video.masks)
        for orphan in found.orphans:
            self.problem(
                orphan,
                f"{orphan}: a mask without frame: the video has no frame of its name. Add the "
                "frame, or delete the mask",
            )
        return found.rest

    def _add_pairs(self, kind: CaseFormat, files: list[Path]) -> None:
        found = pair_files(files, self.root)
        self.notes += found.notes
        pairs = found.pairs
        if self.labels == "optional":
            pairs = pairs + found.unlabelled_tests
        elif found.unlabelled_tests:
            self.notes.append(
                f"{found.unlabelled_tests[0].image.parent}: {len(found.unlabelled_tests)} test "
                "images without labels left out, since labels are required here"
            )
        has_any_label = any(pair.labels for pair in pairs)
        for pair in pairs:
            if pair.labels or self.labels == "optional":
                self.add(kind, pair.stem, [pair.image], pair.labels)
            else:
                self.problem(pair.image, _no_label(pair, len(pairs), has_any_label=has_any_label))
        for orphan in found.orphans:
            self.problem(
                orphan,
                f"{orphan}: a mask without image: no image's name begins it. Add the image, delete "
                f"the mask, or {_WRITE_A_LISTING}",
            )

    def _add_dicom(self, files: list[Path]) -> None:
        index = index_dicom(files)
        if index.others:
            self.notes.append(
                f"{index.others[0]}: left unread with {len(index.others) - 1} more DICOM files "
                "that are neither images nor segmentations"
            )
        for file, cause in index.unreadable:
            self.problem(
                file,
                f"{file}: cannot be read as DICOM ({cause}). It is truncated or damaged: copy it "
                "again, or leave it out",
            )
        for orphan in index.orphans:
            self.problem(
                orphan,
                f"{orphan}: a segmentation without image: the series that it refers to is not "
                "here. Add the series, or delete the segmentation",
            )
        for series in index.series:
            if series.segmentations or self.labels == "optional":
                self.add(
                    "dicom",
                    series.series_uid,
                    series.files,
                    series.segmentations,
                    patient_id=series.patient,
                )
            else:
                self.problem(
                    series.files[0],
                    f"{series.files[0].parent}: series {series.series_uid} is an image without "
                    "mask: no DICOM SEG refers to it. Add one, or convert the series and its "
                    "label to NIfTI",
                )


def walk(root: Path) -> list[Path]:
    """Every file that is not hidden, sorted; folders are followed through links once."""
    files: list[Path] = []
    seen: set[Path] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files)


def format_of(file: Path) -> CaseFormat | None:
    """Format by suffix (DICOM also by its magic bytes); None for what is no image."""
    name = file.name.lower()
    if name.endswith(".npz"):
        return "npz"
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith(_PICTURES):
        return "picture"
    if name.endswith((*UNREAD_FORMATS, *LISTINGS)):
        return None
    return "dicom" if is_dicom(file) else None


def _no_label(pair: Pair, count: int, *, has_any_label: bool) -> str:
    if has_any_label:
        return (
            f"{pair.image}: an image without mask. Add a mask of the same stem, delete the image, "
            f"or {_WRITE_A_LISTING}"
        )
    return (
        f"{pair.image}: none of the {count} images here has a mask, and labels are required. Put "
        "masks into a folder `masks` or `labels` beside `images`, name them <image>_mask, or "
        f"{_WRITE_A_LISTING}"
    )
