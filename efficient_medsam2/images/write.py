"""Write a label map the way its case was stored, whole or not at all."""

import gzip
import io
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case
from efficient_medsam2.images.nifti import to_stored_axes

__all__ = ["write_label"]


def write_label(label: npt.NDArray[Any], case: Case, path: Path) -> None:
    """Write ``label`` in the format that ``path`` ends with.

    - ``.nii``, ``.nii.gz``: on the grid, orientation and affine of the file that the case was
      read from; for other cases with the case's affine, or its spacing where it has none.
    - ``.npz``: key ``segs`` as the CVPR24 challenge wants it, (H, W) for a 2D case.
    - ``.png``: a label map, 8 bits where the ids fit, else 16; cases with D = 1 only;
    - none, for a video: a folder of such label maps, one a frame and named as it is.

    The file appears under its name only when it is complete. Equal labels give equal bytes.

    Args:
        label: (D, H, W) whole numbers 0..65535, or bool.
        case: the case that it labels.
        path: the file to write; its folder exists.

    Raises:
        DataError: the label does not fit the case, or the format is unknown.
    """
    if label.shape != case.image.shape[:3]:
        raise DataError(
            f"{path}: a label of shape {label.shape} is not on the grid {case.image.shape[:3]} "
            f"(D,H,W) of case {case.case_id}. Predict at the image's own size"
        )
    if label.dtype.kind not in "bui" or (
        label.size and not 0 <= label.min() <= label.max() <= np.iinfo(np.uint16).max
    ):
        raise DataError(f"{path}: label values must be whole numbers in 0..65535 or bool")
    narrow = np.uint8 if label.size == 0 or label.max() <= np.iinfo(np.uint8).max else np.uint16
    ids = label.astype(narrow)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        content = _nifti(ids, case)
        content = gzip.compress(content, mtime=0) if name.endswith(".gz") else content
    elif name.endswith(".npz"):
        content = _npz(ids, case)
    elif name.endswith(".png"):
        content = _png(ids, case, path)
    elif case.source.format == "video" and not path.suffix:
        _write_frames(ids, case, path)
        return
    else:
        raise DataError(
            f"{path}: labels are written as .nii.gz, .nii, .npz or .png, of a video also as a "
            "folder without a suffix"
        )
    _publish(content, path)


def _nifti(ids: npt.NDArray[Any], case: Case) -> bytes:
    source = case.source
    if source.file_affine is not None:
        stored, affine = to_stored_axes(ids, source), source.file_affine
    else:
        # NIfTI stores x, y, z; ours are d, h, w.
        stored, affine = ids.transpose(2, 1, 0), _affine_xyz(case)
    volume = nibabel.Nifti1Image(stored, affine)
    volume.header.set_xyzt_units("mm")
    content: bytes = volume.to_bytes()
    return content


def _affine_xyz(case: Case) -> npt.NDArray[np.float64]:
    """(w, h, d) to RAS mm: the case's, or rows to the back and columns to the left by spacing."""
    if case.affine is not None:
        return case.affine[:, [2, 1, 0, 3]]
    depth, height, width = case.spacing_mm
    return np.diag([-width, -height, depth, 1.0])


def _npz(ids: npt.NDArray[Any], case: Case) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, segs=ids[0] if case.source.stored_ndim == 2 else ids)
    return stream.getvalue()


def _write_frames(ids: npt.NDArray[Any], case: Case, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for frame, plane in zip(case.source.files, ids, strict=False):
            with (part / f"{frame.stem}.png").open("wb") as stream:
                Image.fromarray(plane).save(stream, format="PNG")
                stream.flush()
                os.fsync(stream.fileno())
        if path.exists():
            path.replace(old)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _png(ids: npt.NDArray[Any], case: Case, path: Path) -> bytes:
    if ids.shape[0] != 1:
        raise DataError(
            f"{path}: case {case.case_id} has {ids.shape[0]} slices, and PNG holds one. Write "
            ".nii.gz or .npz"
        )
    stream = io.BytesIO()
    Image.fromarray(ids[0]).save(stream, format="PNG")
    return stream.getvalue()


def _publish(content: bytes, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
