"""Which picture or NIfTI file is whose mask, told from folder and file names alone.

Two layouts are read. In the first, images and labels stand in folders side by side: ``images``
and ``masks`` (or ``labels``, ``instance_labels``, ``lung_labels``, any ``*_masks``, ...), or
``imagesTr`` and ``labelsTr`` with the same for ``Ts``. A label belongs to the image of the same
stem, or of the longest stem that it continues with ``_``. In the second, both stand in one folder
and the label's name says so: ``x_mask.png``, ``x_mask_1.png``, ``x_label.nii.gz``,
``x_1stHO.png``, with the image ``x.png``, ``x_image.nii.gz``.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

__all__ = [
    "Pair",
    "Pairing",
    "Place",
    "file_stem",
    "label_preference",
    "pair_files",
    "place_of",
]

_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
# In order of preference where one data set has several.
_LABEL_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "gts",
    "gt",
    "annotations",
    "groundtruth",
    "ground_truth",
    "segmentations",
    "instance_labels",
    "lung_labels",
)
_LABEL_FOLDER_ENDINGS = ("_masks", "_labels")
_DECATHLON = re.compile(r"(images|labels)(tr|ts)", re.IGNORECASE)
_FLAT_LABEL = re.compile(
    r"(?P<image>.+?)_(?:mask|masks|label|labels|seg|segmentation|gt|1stHO)(?:_\d+)?", re.IGNORECASE
)
_SECOND_READER = re.compile(r".+_2ndHO", re.IGNORECASE)
_FLAT_IMAGE = re.compile(r"(?P<image>.+)_(?:image|img)", re.IGNORECASE)
_NNUNET_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image with its label files, which may be none."""

    stem: str
    image: Path
    labels: tuple[Path, ...]


@dataclass(kw_only=True)
class Pairing:
    """Pairs as they are found, with what could not be paired.

    Attributes:
        pairs: images with their labels.
        orphans: labels without an image.
        notes: files that are rightly left unread, and why.
        unlabelled_tests: images of ``imagesTs`` folders that ship without labels.
    """

    pairs: list[Pair] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unlabelled_tests: list[Pair] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a file stands: its data set's folder, the role folder in it, and its name there."""

    base: PurePath
    flavour: str
    folder: str
    role: str
    stem: str


def file_stem(path: PurePath) -> str:
    """File name without its suffix; ``.nii.gz`` is one suffix."""
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem


def pair_files(files: Sequence[Path], root: Path) -> Pairing:
    """Pair the pictures, or the NIfTI files, under ``root``.

    Args:
        files: files of one kind, sorted.
        root: the folder being searched; names above it mean nothing.
    """
    found = Pairing()
    side_by_side: dict[tuple[PurePath, str], list[tuple[Place, Path]]] = defaultdict(list)
    flat: dict[PurePath, list[Path]] = defaultdict(list)
    for file in files:
        place = place_of(file.relative_to(root))
        if place is None:
            flat[file.relative_to(root).parent].append(file)
        else:
            side_by_side[place.base, place.flavour].append((place, file))
    bases = {base for (base, _), group in side_by_side.items() if _has_images(group)}
    for (base, flavour), group in side_by_side.items():
        _pair_folders(found, base, flavour, group)
    for folder, group_files in flat.items():
        if bases.intersection((folder, *folder.parents)):
            found.notes.append(
                f"{folder}: {len(group_files)} files left unread, such as {group_files[0].name}: "
                "they stand beside folders of images and labels. Name them in a listing to use them"
            )
        else:
            _pair_flat(found, group_files)
    return found


def _has_images(group: list[tuple[Place, Path]]) -> bool:
    return any(place.role == "image" for place, _ in group)


def place_of(relative: PurePath) -> Place | None:
    """Find the innermost folder with a role above a file; None where there is none."""
    parts = relative.parent.parts
    for index in range(len(parts) - 1, -1, -1):
        name = parts[index].lower()
        decathlon = _DECATHLON.fullmatch(name)
        if decathlon:
            role = "image" if decathlon[1] == "images" else "label"
            flavour = decathlon[2]
        elif name in _IMAGE_FOLDERS:
            role, flavour = "image", ""
        elif name in _LABEL_FOLDERS or name.endswith(_LABEL_FOLDER_ENDINGS):
            role, flavour = "label", ""
        else:
            continue
        stem = "/".join((*parts[index + 1 :], file_stem(relative)))
        return Place(PurePath(*parts[:index]), flavour, parts[index], role, stem)
    return None


def _pair_folders(
    found: Pairing, base: PurePath, flavour: str, group: list[tuple[Place, Path]]
) -> None:
    """Pair ``images`` with the preferred label folder beside it."""
    images = [(place.stem, file) for place, file in group if place.role == "image"]
    by_folder: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for place, file in group:
        if place.role == "label":
            by_folder[place.folder].append((place.stem, file))
    if flavour == "ts" and not by_folder:
        found.unlabelled_tests += [
            Pair(stem=PurePath(stem).name, image=file, labels=()) for stem, file in images
        ]
        return
    chosen = min(by_folder, key=label_preference, default=None)
    for folder in sorted(by_folder):
        if folder != chosen and images:
            found.notes.append(
                f"{base / folder}: {len(by_folder[folder])} files left unread, labels come from "
                f"{base / str(chosen)}. Name them in a listing to use them"
            )
    labels = by_folder[chosen] if chosen is not None else []
    if not images:
        labels = [label for folder in sorted(by_folder) for label in by_folder[folder]]
    _match(found, _drop_channels(found, images, {stem for stem, _ in labels}), labels)


def label_preference(folder: str) -> tuple[int, str]:
    """Key of folders of labels; the smallest one is read where a data set has several."""
    name = folder.lower()
    known = _LABEL_FOLDERS.index(name) if name in _LABEL_FOLDERS else len(_LABEL_FOLDERS)
    return known, folder


def _drop_channels(
    found: Pairing, images: list[tuple[str, Path]], label_stems: set[str]
) -> list[tuple[str, Path]]:
    """Take ``case_0000`` as the image of label ``case`` (nnU-Net), and no further channel."""
    kept: list[tuple[str, Path]] = []
    for stem, file in images:
        channel = _NNUNET_CHANNEL.fullmatch(stem)
        if not channel or stem in label_stems or channel["case"] not in label_stems:
            kept.append((stem, file))
        elif channel["channel"] == "0000":
            kept.append((channel["case"], file))
        else:
            found.notes.append(f"{file}: left unread, the first channel (_0000) is the image")
    return kept


def _match(found: Pairing, images: list[tuple[str, Path]], labels: list[tuple[str, Path]]) -> None:
    """Give each label to the image whose stem it has, or continues with ``_``."""
    stems = {stem for stem, _ in images}
    of_image: dict[str, list[Path]] = defaultdict(list)
    for stem, file in labels:
        cuts = [stem, *(stem[: m.start()] for m in reversed(list(re.finditer("_", stem))))]
        owner = next((cut for cut in cuts if cut in stems), None)
        if owner is None:
            found.orphans.append(file)
        else:
            of_image[owner].append(file)
    found.pairs += [
        Pair(stem=PurePath(stem).name, image=file, labels=tuple(of_image[stem]))
        for stem, file in images
    ]


def _pair_flat(found: Pairing, files: list[Path]) -> None:
    """Pair images and labels of one folder by the endings of their names."""
    images: list[tuple[str, Path]] = []
    labels: list[tuple[str, Path]] = []
    second: list[Path] = []
    for file in files:
        stem = file_stem(file)
        if _SECOND_READER.fullmatch(stem):
            second.append(file)
        elif match := _FLAT_LABEL.fullmatch(stem):
            labels.append((match["image"], file))
        else:
            match = _FLAT_IMAGE.fullmatch(stem)
            images.append((match["image"] if match else stem, file))
    if second:
        found.notes.append(
            f"{second[0].parent}: {len(second)} second annotations left unread, such as "
            f"{second[0].name}: the first one is the label"
        )
    _match(found, images, labels)
