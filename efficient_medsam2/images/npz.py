"""Cases in the npz layout of the CVPR 2024 challenge "MedSAM on Laptop".

Keys: ``imgs`` (H,W), (H,W,3) or (D,H,W); ``gts`` of the same size without channels, or ``boxes``
(N,4) / (N,6); ``spacing`` in SimpleITK order (x, y, z), and at times ``origin`` and ``direction``
as SimpleITK gives them. FLARE25 adds ``recist``, drawn diameters on the image's grid. Pickled
objects are never loaded.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case, Modality, Provenance
from efficient_medsam2.images.objects import as_label_map

__all__ = [
    "affine_of",
    "guess_grey",
    "npz_keys",
    "read_npz",
    "readable_npz",
    "spacing_of",
    "stores_volume",
]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_CT_BELOW_HU = -500


def npz_keys(file: Path) -> frozenset[str]:
    """Names of the arrays in ``file``, from the archive's directory: no array is read.

    Raises:
        DataError: the file is not a readable npz archive.
    """
    with readable_npz(file), zipfile.ZipFile(file) as archive:
        return frozenset(name.removesuffix(".npy") for name in archive.namelist())


def read_npz(
    file: Path, *, case_id: str, patient_id: str, modality: Modality | None = None
) -> Case:
    """Read one challenge file.

    Args:
        file: the npz file.
        case_id: name of the case.
        patient_id: name of its patient.
        modality: what it is; guessed where None: RGB by the channels, ``uint8`` by the type, CT
            where a value lies under -500, else ``other``.

    Returns:
        The case; ``spacing_mm`` in D, H, W order. Without ``spacing`` it is 1 mm.

    Raises:
        DataError: the archive is damaged, holds pickled objects, or its arrays disagree.
    """
    wanted = ("imgs", "gts", "recist", "boxes", "spacing", "origin", "direction")
    with readable_npz(file), np.load(file, allow_pickle=False) as archive:
        arrays: dict[str, npt.NDArray[Any]] = {k: archive[k] for k in wanted if k in archive.files}
        keys = tuple(archive.files)
    if "imgs" not in arrays:
        raise DataError(
            f"{file}: no array `imgs` (it holds {', '.join(keys) or 'nothing'}). "
            "Save the image under this name, as the CVPR24 challenge does"
        )
    image, is_flat = _with_depth(arrays, file)
    label = as_label_map(arrays["gts"], file) if "gts" in arrays else None
    if label is not None and label.ndim == 2:
        label = label[None]
    recist = arrays["recist"] != 0 if "recist" in arrays else None
    if recist is not None and recist.ndim == 2:
        recist = recist[None]
    boxes = arrays.get("boxes")
    spacing_mm = spacing_of(arrays.get("spacing"), file)
    return Case(
        case_id=case_id,
        patient_id=patient_id,
        image=image,
        label=label,
        boxes=None if boxes is None else np.atleast_2d(boxes).astype(np.float64),
        spacing_mm=spacing_mm,
        modality=modality or _guess(image),
        affine=affine_of(arrays, spacing_mm),
        source=Provenance(files=(file,), format="npz", stored_ndim=2 if is_flat else 3),
        recist=recist,
    )


@contextmanager
def readable_npz(file: Path) -> Iterator[None]:
    """Turn what damaged and pickled archives raise into one error that names the file."""
    try:
        yield
    except ValueError as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            raise DataError(
                f"{file}: it holds pickled Python objects, which are never loaded because "
                "loading runs code. Save plain arrays with numpy.savez_compressed"
            ) from error
        raise _damaged(file, error) from error
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file}: cannot be read as npz ({error}). It is truncated or damaged: copy it again, or "
        "leave it out"
    )


def _with_depth(arrays: dict[str, npt.NDArray[Any]], file: Path) -> tuple[npt.NDArray[Any], bool]:
    """Image as (D,H,W) or (D,H,W,3), and whether it was stored as one 2D image."""
    image = arrays["imgs"]
    if stores_volume({key: values.shape for key, values in arrays.items()}, file):
        return image, False
    return image[None], True


def stores_volume(shapes: Mapping[str, tuple[int, ...]], file: Path) -> bool:
    """Whether ``imgs`` is a volume rather than one picture, grey (H,W) or colour (H,W,3).

    (a, b, 3) is a slices of three columns where the other arrays, or the file's name, say so.

    Args:
        shapes: of the arrays by their key, ``imgs`` among them.
        file: the npz file.
    """
    shape = shapes["imgs"]
    if len(shape) != 3 or shape[-1] != 3:
        return len(shape) != 2
    if "gts" in shapes:
        return len(shapes["gts"]) == 3
    if "boxes" in shapes:
        return shapes["boxes"][-1:] == (6,)
    return file.name.startswith("3D")


def spacing_of(stored: npt.NDArray[Any] | None, file: Path) -> tuple[float, float, float]:
    """D, H, W in millimetres from what is stored as x, y, z; 1 where nothing is.

    Raises:
        DataError: it is neither two nor three numbers.
    """
    if stored is None:
        return (1.0, 1.0, 1.0)
    xyz = [float(value) for value in np.ravel(stored)]
    if len(xyz) == 2:
        return (1.0, xyz[1], xyz[0])
    if len(xyz) != 3:
        raise DataError(f"{file}: `spacing` has {len(xyz)} numbers, not the three of x, y, z")
    return (xyz[2], xyz[1], xyz[0])


def affine_of(
    arrays: dict[str, npt.NDArray[Any]], spacing_mm: tuple[float, float, float]
) -> npt.NDArray[np.float64] | None:
    """(d, h, w) to RAS millimetres, from SimpleITK's origin and direction (LPS, x y z order)."""
    if any(np.size(arrays.get(key, ())) != n for key, n in (("origin", 3), ("direction", 9))):
        return None
    direction_xyz = np.asarray(arrays["direction"], np.float64).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ direction_xyz[:, ::-1] @ np.diag(spacing_mm)
    affine[:3, 3] = _LPS_TO_RAS @ np.asarray(arrays["origin"], np.float64)
    return affine


def _guess(image: npt.NDArray[Any]) -> Modality:
    if image.ndim == 4:
        return "RGB"
    if image.dtype == np.uint8:
        return "uint8"
    is_real = image.size and image.dtype.kind in "uif"
    return guess_grey(float(image.min())) if is_real else "other"


def guess_grey(lowest: float) -> Modality:
    """What a grey image of more than 8 bits is, by its lowest value."""
    return "CT" if lowest < _CT_BELOW_HU else "other"
