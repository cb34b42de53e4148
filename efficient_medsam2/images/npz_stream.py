"""Challenge npz volumes read slice by slice, straight from the zip archive.

An array in an npz is a zip member in the npy format: a header with type, shape and order, then
the values. Nothing is unpacked to memory as a whole.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case, Modality, Provenance
from efficient_medsam2.images.npz import (
    affine_of,
    guess_grey,
    readable_npz,
    spacing_of,
    stores_volume,
)
from efficient_medsam2.images.objects import as_label_map
from efficient_medsam2.images.planes import MappedPlanes, Planes, StreamedPlanes, TurnedPlanes
from efficient_medsam2.images.streamed import StoredCase

__all__ = ["open_npz"]

_SMALL = ("boxes", "spacing", "origin", "direction")
_VOLUMES = ("imgs", "gts", "recist")


@dataclass(frozen=True)
class _Member:
    """Header of one array of the archive."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool


def open_npz(
    file: Path, *, case_id: str, patient_id: str, modality: Modality | None = None
) -> StoredCase | None:
    """Open a challenge file that holds a volume; None where it holds a single picture.

    Args:
        file: the npz file.
        case_id: name of the case.
        patient_id: name of its patient.
        modality: what it is; found out as ``npz.read_npz`` does where None.

    Raises:
        DataError: the archive is damaged, holds pickled objects, or its arrays disagree.
    """
    with readable_npz(file), zipfile.ZipFile(file) as archive:
        keys = tuple(name.removesuffix(".npy") for name in archive.namelist())
        members = {key: _header(archive, key) for key in _VOLUMES if key in keys}
    with readable_npz(file), np.load(file, allow_pickle=False) as loaded:
        small: dict[str, npt.NDArray[Any]] = {k: loaded[k] for k in _SMALL if k in loaded.files}
    if "imgs" not in members:
        raise DataError(
            f"{file}: no array `imgs` (it holds {', '.join(keys) or 'nothing'}). "
            "Save the image under this name, as the CVPR24 challenge does"
        )
    shapes = {key: member.shape for key, member in members.items()}
    shapes |= {key: values.shape for key, values in small.items()}
    if not stores_volume(shapes, file) or 0 in members["imgs"].shape:
        return None
    if len(members["imgs"].shape) not in (3, 4) or members["imgs"].dtype.kind not in "uif":
        return None
    return _open_volume(file, members, small, (case_id, patient_id), modality)


def _open_volume(
    file: Path,
    members: Mapping[str, _Member],
    small: dict[str, npt.NDArray[Any]],
    names: tuple[str, str],
    modality: Modality | None,
) -> StoredCase:
    image = _planes(file, "imgs", members["imgs"])
    label: Planes | None = None
    recist: Planes | None = None
    try:
        if "gts" in members:
            ids = _planes(file, "gts", _with_depth(members["gts"]))
            label = MappedPlanes(ids, np.uint16, partial(as_label_map, file=file))
        if "recist" in members:
            drawn = _planes(file, "recist", _with_depth(members["recist"]))
            recist = MappedPlanes(drawn, np.bool_, lambda block: block != 0)
        spacing_mm = spacing_of(small.get("spacing"), file)
        boxes = small.get("boxes")
        is_colour = len(image.shape) == 4
        told: Modality | None = "RGB" if is_colour else None
        if image.dtype == np.uint8 and not is_colour:
            told = "uint8"
        first = Case(
            case_id=names[0],
            patient_id=names[1],
            image=np.zeros((1, *image.shape[1:]), image.dtype),
            label=None,
            boxes=None if boxes is None else np.atleast_2d(boxes).astype(np.float64),
            spacing_mm=spacing_mm,
            modality=modality or told or "other",
            affine=affine_of(small, spacing_mm),
            source=Provenance(files=(file,), format="npz"),
        )
    except BaseException:
        for planes in (image, label, recist):
            if planes is not None:
                planes.close()
        raise
    guess = guess_grey if modality is None and told is None else None
    return StoredCase(first=first, image=image, label=label, recist=recist, guess=guess)


def _header(archive: zipfile.ZipFile, key: str) -> _Member:
    with archive.open(_member_name(archive, key)) as stream:
        return _read_header(stream)


def _member_name(archive: zipfile.ZipFile, key: str) -> str:
    return f"{key}.npy" if f"{key}.npy" in archive.namelist() else key


def _read_header(stream: IO[bytes]) -> _Member:
    """Read type and shape; the stream is at the first value afterwards."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        # 2.0 allows longer headers; 3.0 differs in names of fields, which no image has.
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    if dtype.hasobject:
        raise ValueError("pickled objects; allow_pickle is off")
    return _Member(tuple(int(size) for size in shape), dtype, bool(is_fortran))


def _with_depth(member: _Member) -> _Member:
    if len(member.shape) != 2:
        return member
    return _Member((1, *member.shape), member.dtype, member.is_fortran)


def _planes(file: Path, key: str, member: _Member) -> Planes:
    """The array along its first axis, however it is stored."""

    def opened() -> IO[bytes]:
        # The member keeps the archive's file open for as long as it is open itself.
        with zipfile.ZipFile(file) as archive:
            stream = archive.open(_member_name(archive, key))
            _read_header(stream)
            return stream

    stored = member.shape[::-1] if member.is_fortran else member.shape
    stream = StreamedPlanes(
        shape=stored,
        dtype=member.dtype,
        open_stream=opened,
        guard=partial(readable_npz, file),
    )
    if not member.is_fortran:
        return stream
    try:
        return TurnedPlanes(stream, axes=tuple(range(len(stored)))[::-1])
    finally:
        stream.close()
