"""Index records: what one row of each index table says.

``row`` is the position of the row in every array of its space, counted from 0 without gaps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "IDENTITY_AFFINE",
    "Affine",
    "CaseRow",
    "PromptKind",
    "PromptRow",
    "SliceRow",
    "TrackRow",
]

Affine = tuple[float, float, float, float, float, float]
IDENTITY_AFFINE: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""View 0: the two rows of a 2 x 3 matrix that maps (x, y, 1) to itself."""

PromptKind = Literal["box", "points", "mask", "recist"]
"""``mask``: the object's stored label on the slice, so its row has no points. ``recist``: points or
a box that a RECIST mark was turned into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseRow:
    """One image, volume or video.

    Attributes:
        case_id: unique name.
        patient_id: whose it is; splits never cut through a patient.
        split: such as ``train``, ``val`` or ``test``.
        modality: such as ``CT``; empty where unknown.
        depth, height, width: raw size in voxels (depth 1 for a picture).
        spacing_mm: voxel size along D, H, W.
        files: raw file's relative name → SHA-256 of its bytes.
        object_names: object id → name.
    """

    case_id: str
    patient_id: str
    split: str
    modality: str
    depth: int
    height: int
    width: int
    spacing_mm: tuple[float, float, float]
    files: Mapping[str, str] = field(default_factory=dict)
    object_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceRow:
    """One stored view of one slice.

    Attributes:
        row: row in the ``slices`` arrays.
        case_id: its case.
        slice_index: index along D.
        view: number of the geometric view; 0 is the identity.
        affine: 2 x 3 matrix, row by row, from view 0's pixel (x, y, 1) to this view's pixel.
    """

    row: int
    case_id: str
    slice_index: int
    view: int
    affine: Affine = IDENTITY_AFFINE


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """One prompt that the teacher answered on one stored view of a slice.

    Attributes:
        row: row in the ``prompts`` arrays.
        case_id, slice_index, view: identity of the slice row.
        object_id: label value of the object.
        kind: what was prompted.
        points: (x, y) in pixels of the network input; a box is its two corners. Kept as float32.
        labels: one per point: 1 object, 0 background, 2 and 3 the corners of a box.
        slice_row: row of the slice in the ``slices`` arrays.
    """

    row: int
    case_id: str
    slice_index: int
    view: int
    object_id: int
    kind: PromptKind
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    slice_row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackRow:
    """One step of the teacher's propagation of one object from one prompted slice.

    The rows of a track lie together, in order of ``step``, from step 0 (the prompted slice).

    Attributes:
        row: row in the ``tracks`` arrays.
        track: number of the track, counted from 0 without gaps.
        case_id: its case.
        object_id: label value of the object.
        prompted_slice: index along D of the prompted slice.
        direction: +1 towards higher slice indices, -1 towards lower ones.
        step: 0 on the prompted slice, then 1, 2, ...
        slice_index: index along D of this step's slice.
        slice_row: row of that slice in the ``slices`` arrays.
        num_frames: length given to the teacher for its pointers' time code.
        kind: what was prompted, as in ``PromptRow``.
        points, labels: the prompt of the track, as in ``PromptRow``; same on each of its rows.
    """

    row: int
    track: int
    case_id: str
    object_id: int
    prompted_slice: int
    direction: Literal[1, -1]
    step: int
    slice_index: int
    slice_row: int
    num_frames: int
    kind: PromptKind
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
