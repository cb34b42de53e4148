"""The one way from an image to the network's input and back.

Every stage, the predictor and the exporters call these functions: a slice is squashed to a square
with Pillow's bicubic filter in 8 bits, as MedSAM2's own inference does, and normalised with the
ImageNet statistics that SAM 2 was trained with.

Shape letters: n slices, B batch, C channels (1 or 3), H rows and W columns of the image, S side
of the network's input.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

__all__ = [
    "PIXEL_MEAN",
    "PIXEL_STD",
    "Squash",
    "logits_to_mask",
    "squash_labels",
    "squash_slices",
    "to_network_input",
]

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Squash:
    """The map between pixels of an image and pixels of the square that the network sees.

    Coordinates are (x, y); x scales by ``size / width`` and y by ``size / height``.

    Attributes:
        height: H of the image.
        width: W of the image.
        size: S.
    """

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.size) < 1:
            raise ValueError(f"height, width and size must be 1 or more, got {self}")

    def points_to_network(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Points (..., 2) in image pixels to network pixels."""
        return self._scaled(points, 2, self._factors_xy)

    def points_to_image(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Points (..., 2) in network pixels to image pixels."""
        return self._scaled(points, 2, 1 / self._factors_xy)

    def boxes_to_network(self, boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Boxes (..., 4) x0, y0, x1, y1 in image pixels to network pixels."""
        return self._scaled(boxes, 4, np.tile(self._factors_xy, 2))

    def boxes_to_image(self, boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Boxes (..., 4) x0, y0, x1, y1 in network pixels to image pixels."""
        return self._scaled(boxes, 4, 1 / np.tile(self._factors_xy, 2))

    @property
    def _factors_xy(self) -> npt.NDArray[np.float64]:
        return np.array([self.size / self.width, self.size / self.height])

    @staticmethod
    def _scaled(
        values: npt.ArrayLike, last: int, factors: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        array = np.asarray(values, np.float64)
        if array.ndim == 0 or array.shape[-1] != last:
            raise ValueError(f"expected shape (..., {last}), got {array.shape}")
        return array * factors


def squash_slices(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize each slice to a square with Pillow's bicubic filter.

    Args:
        images: (n, H, W) or (n, H, W, 3) uint8.
        size: S.

    Returns:
        (n, C, S, S) uint8, C = 1 or 3.

    Raises:
        ValueError: another dtype or shape.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"expected uint8 images (see to_uint8), got {images.dtype}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"expected (n, H, W) or (n, H, W, 3), got {images.shape}")
    channels = 1 if images.ndim == 3 else 3
    squashed = np.empty((len(images), channels, size, size), np.uint8)
    for index, picture in enumerate(images):
        resized = Image.fromarray(np.ascontiguousarray(picture)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        squashed[index] = np.asarray(resized).reshape(size, size, channels).transpose(2, 0, 1)
    return squashed


def squash_labels(labels: npt.NDArray[Any], size: int) -> npt.NDArray[np.uint16]:
    """Label maps (n, H, W) to (n, S, S) uint16, each pixel taking the label at its centre."""
    if labels.ndim != 3:
        raise ValueError(f"expected (n, H, W), got {labels.shape}")
    rows, columns = (
        ((np.arange(size) + 0.5) * (extent / size)).astype(np.intp) for extent in labels.shape[1:]
    )
    return labels[:, rows[:, None], columns[None, :]].astype(np.uint16, copy=False)


def to_network_input(images: Tensor) -> Tensor:
    """Squashed images to what the image encoder takes, on their device.

    Args:
        images: (B, C, S, S) uint8, C = 1 (repeated to 3) or 3.

    Returns:
        (B, 3, S, S) float32: divided by 255, minus the ImageNet mean, over its deviation.

    Raises:
        ValueError: another dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"expected (B, 1 or 3, S, S) uint8, got {tuple(images.shape)} {images.dtype}"
        )
    mean = torch.tensor(PIXEL_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(PIXEL_STD, device=images.device)[:, None, None]
    return (images.to(torch.float32).expand(-1, 3, -1, -1) / 255 - mean) / std


def logits_to_mask(logits: Tensor, *, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Low-res mask logits to masks on the image's own pixels.

    Args:
        logits: (n, s, s), any float type and device.
        height: H.
        width: W.

    Returns:
        (n, H, W) bool: bilinear interpolation (half-pixel centres), then above 0.
    """
    if logits.ndim != 3:
        raise ValueError(f"expected (n, s, s) logits, got {tuple(logits.shape)}")
    masks = np.empty((len(logits), height, width), np.bool_)
    for index, plane in enumerate(logits.detach()):
        full = torch.nn.functional.interpolate(
            plane[None, None].to(torch.float32),
            size=(height, width),
            mode="bilinear",
            align_corners=False,
        )
        masks[index] = (full[0, 0] > 0).cpu().numpy()
    return masks
