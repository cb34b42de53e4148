"""PNG, JPEG, BMP and TIFF pictures with their masks."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.case import Case, Modality, Provenance
from efficient_medsam2.images.objects import merge_masks, picture_ids

__all__ = ["read_mask_values", "read_picture", "read_pixels"]

_LOSSY_THRESHOLD = 127
# MPO: a JPEG with previews behind it, as cameras write; the first frame is the picture.
_LOSSY_FORMATS = ("JPEG", "MPO")


def read_picture(
    image_file: Path,
    label_files: tuple[Path, ...] = (),
    *,
    case_id: str,
    patient_id: str,
    modality: Modality | None = None,
) -> Case:
    """Read one picture as a case with D = 1 and spacing 1.

    Grey pictures keep their type ((1, H, W), 8 or 16 bits); colour ones become (1, H, W, 3) uint8
    with transparency dropped. EXIF rotation is not applied: masks are drawn on stored pixels.

    Args:
        image_file: the picture.
        label_files: none; one mask or label map (``objects.picture_ids`` says what its values
            mean); or several masks that become ids 1..n by name.
        case_id: name of the case.
        patient_id: name of its patient.
        modality: what it is; where None RGB, ``uint8`` or ``other`` (16 bits).

    Raises:
        DataError: a file is damaged, or a mask is coloured or of another size.
    """
    image = read_pixels(image_file)[None]
    shape = image.shape[1:3]
    label: npt.NDArray[np.uint16] | None = None
    notes: tuple[str, ...] = ()

    def mask(file: Path) -> npt.NDArray[np.uint16]:
        values = read_mask_values(file)
        ids = picture_ids(values, file)[None]
        if ids.shape[1:] != shape:
            raise DataError(
                f"{file}: the mask's shape {ids.shape[1:]} differs from {shape} (H,W) of "
                f"{image_file}. Masks are never resized: draw or resample it on the image"
            )
        return ids

    if len(label_files) == 1:
        label = mask(label_files[0])
    elif label_files:
        label, notes = merge_masks(label_files, mask)
    guess: Modality = "uint8" if image.dtype == np.uint8 else "other"
    return Case(
        case_id=case_id,
        patient_id=patient_id,
        image=image,
        label=label,
        boxes=None,
        spacing_mm=(1.0, 1.0, 1.0),
        modality=modality or ("RGB" if image.ndim == 4 else guess),
        affine=None,
        source=Provenance(files=(image_file, *label_files), format="picture", stored_ndim=2),
        notes=notes,
    )


def _decode(file: Path) -> tuple[npt.NDArray[Any], str, bool]:
    """Pixels as stored, Pillow's mode, and whether the encoding is lossy."""
    try:
        with Image.open(file) as picture:
            picture.load()
            is_lossy = picture.format in _LOSSY_FORMATS
            pages = int(getattr(picture, "n_frames", 1))
            if pages != 1 and not is_lossy:
                raise DataError(
                    f"{file}: {pages} pages in one picture. Save each page as a file, "
                    "or the stack as NIfTI"
                )
            return np.array(picture), picture.mode, is_lossy
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file}: cannot be read as a picture ({error}). It is truncated or damaged: copy it "
            "again, or leave it out"
        ) from error


def read_pixels(file: Path) -> npt.NDArray[Any]:
    """(H, W) as stored, or (H, W, 3) uint8.

    Raises:
        DataError: the file is damaged.
    """
    pixels, mode, _ = _decode(file)
    if mode == "1":
        return pixels.astype(np.uint8) * 255
    if mode == "L" or mode.startswith("I") or mode == "F":
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if mode == "LA":
        return np.ascontiguousarray(pixels[:, :, 0])
    if mode in ("RGB", "RGBA"):
        return np.ascontiguousarray(pixels[:, :, :3])
    with Image.open(file) as picture:
        return np.array(picture.convert("RGB"))


def read_mask_values(file: Path) -> npt.NDArray[Any]:
    """(H, W) values of a mask or label map as stored; 0 and 1 of a lossy one, by threshold.

    Raises:
        DataError: the file is damaged or coloured.
    """
    pixels, mode, is_lossy = _decode(file)
    if mode in ("LA", "RGB", "RGBA"):
        colours = pixels[:, :, : 1 if mode == "LA" else 3]
        if not is_lossy and (colours != colours[:, :, :1]).any():
            raise DataError(
                f"{file}: a mask drawn in colours does not say which colour is which object. "
                "Save it as a grey label map (0 background, 1, 2, ... objects)"
            )
        pixels = colours[:, :, 0]
    if is_lossy:
        # Ids do not survive lossy compression; the shape of one bright object does.
        return (pixels > _LOSSY_THRESHOLD).astype(np.uint16)
    return pixels
