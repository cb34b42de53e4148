"""Pictures and labels of a cache's rows, as the teacher sees them.

Shape letters: B rows, C channels, S network input in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cache import CacheIndex
from efficient_medsam2.images import IntensityConfig, squash_labels, squash_slices
from efficient_medsam2.images.slices import CaseSlices
from efficient_medsam2.images.views import warp_image, warp_label
from stages.cases import CaseHandle

__all__ = ["PictureReader", "Pictures"]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Neighbouring slice rows.

    Attributes:
        image: uint8 (B, C, S, S).
        label: uint16 (B, S, S).
    """

    image: np.ndarray
    label: np.ndarray


class PictureReader:
    """Reads rows in their order, one case open at a time.

    Args:
        handles: by case id.
        index: of the cache.
        intensity: how grey values become 0..255.
        channels: C; grey images are repeated where it is 3.
        size: S.
    """

    def __init__(
        self,
        handles: Mapping[str, CaseHandle],
        index: CacheIndex,
        *,
        intensity: IntensityConfig,
        channels: int,
        size: int,
    ) -> None:
        self._handles = handles
        self._index = index
        self._intensity = intensity
        self._channels = channels
        self._size = size
        self._open: tuple[str, CaseSlices] | None = None
        self._last: tuple[tuple[str, int], np.ndarray, np.ndarray] | None = None

    def read(self, rows: range) -> Pictures:
        """Rows of the cache.

        Raises:
            DataError: a file is damaged.
        """
        pairs = [self._row(row) for row in rows]
        return Pictures(
            image=np.stack([image for image, _ in pairs]),
            label=np.stack([label for _, label in pairs]),
        )

    def close(self) -> None:
        """Let go of the open case; a second call does nothing."""
        if self._open is not None:
            self._open[1].close()
        self._open = None
        self._last = None

    def _row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        record = self._index.slice_row(row)
        image, label = self._squashed(record.case_id, record.slice_index)
        return warp_image(image, record.affine), warp_label(label, record.affine)

    def _squashed(self, case_id: str, slice_index: int) -> tuple[np.ndarray, np.ndarray]:
        """View 0 of a slice; kept for the views of the same slice."""
        key = (case_id, slice_index)
        if self._last is None or self._last[0] != key:
            case = self._case(case_id)
            picture = case.pictures(slice_index, slice_index + 1, self._intensity)
            image = squash_slices(picture, self._size)[0]
            if image.shape[0] < self._channels:
                image = np.repeat(image, self._channels, axis=0)
            labels = case.labels(slice_index, slice_index + 1)
            self._last = (key, image, squash_labels(labels, self._size)[0])
        return self._last[1], self._last[2]

    def _case(self, case_id: str) -> CaseSlices:
        if self._open is None or self._open[0] != case_id:
            self.close()
            self._open = (case_id, self._handles[case_id].open())
        return self._open[1]
