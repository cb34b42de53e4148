"""Which folders of pictures are videos, told from folder and file names alone."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from efficient_medsam2.images.pairing import label_preference, place_of
from efficient_medsam2.images.video import frame_order, is_frame_sequence

__all__ = ["VideoFiles", "Videos", "find_videos"]


@dataclass(frozen=True, kw_only=True)
class VideoFiles:
    """The frames of a video in order, and its masks, which may be none."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]


@dataclass(kw_only=True)
class Videos:
    """What was found among pictures.

    Attributes:
        videos: by folder.
        rest: pictures that belong to no video.
        orphans: masks in a video's mask folder that have no frame.
        notes: what was decided.
    """

    videos: list[VideoFiles] = field(default_factory=list)
    rest: list[Path] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Group:
    """Pictures of one name of folder below ``images`` and below folders of masks."""

    frames: list[Path] = field(default_factory=list)
    masks: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))


def find_videos(files: Sequence[Path], root: Path) -> Videos:
    """Take the videos from among the pictures under ``root``.

    A video is a folder below ``images`` (``JPEGImages``) whose pictures are numbered at a constant
    step; its masks are in the folder of the same name below ``masks`` (``Annotations``, ...).
    """
    found = Videos()
    groups: dict[tuple[PurePath, str, PurePath], _Group] = defaultdict(_Group)
    for file in files:
        place = place_of(file.relative_to(root))
        folder = PurePath(place.stem).parent if place is not None else PurePath()
        if place is None or not folder.parts:
            found.rest.append(file)
            continue
        group = groups[place.base, place.flavour, folder]
        if place.role == "image":
            group.frames.append(file)
        else:
            group.masks[place.folder].append(file)
    for (_, _, folder), group in groups.items():
        if is_frame_sequence(group.frames):
            _take(found, folder.name, group)
        else:
            found.rest += [
                *group.frames,
                *(mask for masks in group.masks.values() for mask in masks),
            ]
    found.rest.sort()
    return found


def _take(found: Videos, name: str, group: _Group) -> None:
    frames = tuple(sorted(group.frames, key=frame_order))
    found.notes.append(
        f"{frames[0].parent}: its {len(frames)} numbered pictures are read as one video. Name "
        "them in a listing to read them one by one"
    )
    chosen = min(group.masks, key=label_preference, default=None)
    for folder, masks in sorted(group.masks.items()):
        if folder != chosen:
            found.notes.append(
                f"{masks[0].parent}: {len(masks)} files left unread, labels come from "
                f"{group.masks[str(chosen)][0].parent}"
            )
    stems = {frame.stem for frame in frames}
    masks = group.masks[chosen] if chosen is not None else []
    found.orphans += [mask for mask in masks if mask.stem not in stems]
    found.videos.append(
        VideoFiles(
            name=name,
            frames=frames,
            masks=tuple(sorted((m for m in masks if m.stem in stems), key=frame_order)),
        )
    )
