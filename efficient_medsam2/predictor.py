"""The deployed predictor: images in, masks out, the same code for evaluation and applications.

Shape letters: D slices, H W rows and columns of the image, N prompts, S network input.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficient_medsam2.errors import NetworkConfigError
from efficient_medsam2.images.preprocess import (
    Squash,
    logits_to_mask,
    squash_labels,
    squash_slices,
)
from efficient_medsam2.networks.records import (
    IGNORED_LABEL,
    Prompts,
    SliceFeatures,
    boxes_to_prompts,
)
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1 import PromptedNetwork, network_input

__all__ = ["VolumePredictor"]

_ENCODE_AT_ONCE = 4
_KEEP = 64
_KEEP_BYTES = 1 << 28


class VolumePredictor:
    """Prompts on one image or volume.

    Slices are encoded when they are first needed and at most ``keep`` of them are remembered, so
    memory does not grow with the length of a volume.

    Args:
        runner: the network.
        image: uint8 (D, H, W) or (D, H, W, 3), grey values normalised (``to_uint8``).
        keep: encoded slices to remember; None: 64, or as many as take 256 MiB.

    Raises:
        ValueError: the image is not uint8 or not of such a shape.
    """

    def __init__(
        self, runner: PromptedNetwork, image: npt.NDArray[np.uint8], *, keep: int | None = None
    ) -> None:
        is_grey_or_rgb = image.ndim == 3 or (image.ndim == 4 and image.shape[3] == 3)
        if image.dtype != np.uint8 or not is_grey_or_rgb:
            raise ValueError(
                f"expected uint8 (D, H, W) or (D, H, W, 3), got {image.dtype} {image.shape}; "
                "see efficient_medsam2.images.to_uint8"
            )
        self._runner = runner
        self._image = image
        self._keep = keep
        self._features: OrderedDict[int, SliceFeatures] = OrderedDict()
        self._device = next(runner.model.parameters()).device
        self.squash = Squash(height=image.shape[1], width=image.shape[2], size=runner.image_size)

    @property
    def depth(self) -> int:
        """D."""
        return int(self._image.shape[0])

    @torch.no_grad()
    def features(self, slice_index: int) -> SliceFeatures:
        """Features of one slice, one row.

        Raises:
            IndexError: there is no such slice.
        """
        if not 0 <= slice_index < self.depth:
            raise IndexError(f"slice {slice_index} of a volume of {self.depth}")
        if slice_index not in self._features:
            wanted = [
                index
                for index in range(slice_index, min(slice_index + _ENCODE_AT_ONCE, self.depth))
                if index not in self._features
            ]
            squashed = squash_slices(self._image[wanted], self._runner.image_size)
            image = torch.from_numpy(squashed).to(self._device)
            pixels = network_input(self._runner, image)
            encoded = self._runner.encode(pixels)
            for place, index in enumerate(wanted):
                rows = torch.tensor([place], device=self._device)
                self._features[index] = encoded.take(rows)
            while len(self._features) > self._most_kept():
                oldest = next(index for index in self._features if index != slice_index)
                del self._features[oldest]
        self._features.move_to_end(slice_index)
        return self._features[slice_index]

    def _most_kept(self) -> int:
        if self._keep is None:
            one = next(iter(self._features.values()))
            size = sum(each.nbytes for each in (one.s4, one.s8, one.s16))
            self._keep = min(_KEEP, _KEEP_BYTES // size)
        return max(self._keep, _ENCODE_AT_ONCE)

    def segment_boxes(self, slice_index: int, boxes_N4: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Masks (N, H, W) of boxes (N, 4) as x0, y0, x1, y1 in image pixels on one slice.

        Raises:
            IndexError: there is no such slice.
        """
        return self._segment(slice_index, self._boxes(boxes_N4))

    def segment_points(
        self,
        slice_index: int,
        points_NP2: npt.ArrayLike,
        labels_NP: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Masks (N, H, W) of objects that are clicked on one slice.

        Args:
            slice_index: the slice.
            points_NP2: (N, P, 2) as x, y in image pixels: P clicks for each object.
            labels_NP: (N, P): 1 on the object, 0 beside it, -10 where an object has fewer clicks
                than others. None: all are on their object.

        Raises:
            IndexError: there is no such slice.
            ValueError: shapes or labels are others.
        """
        return self._segment(slice_index, self._points(points_NP2, labels_NP))

    def follow_boxes(
        self, slice_index: int, boxes_N4: npt.ArrayLike, *, slices: Sequence[int]
    ) -> npt.NDArray[np.bool_]:
        """Masks of objects followed from one prompted slice, forwards and then backwards.

        The memory starts anew for the second direction (MedSAM2's way).

        Args:
            slice_index: the prompted slice.
            boxes_N4: (N, 4) boxes on it in image pixels.
            slices: neighbouring slices to segment, the prompted one among them.

        Returns:
            (N, len(slices), H, W), in the order of ``slices``.

        Raises:
            ValueError: ``slices`` is not an ascending run around the prompted slice.
            IndexError: ``slices`` reach beyond the volume.
            NetworkConfigError: the network has no memory (MedSAM).
        """
        return self._follow(slice_index, self._boxes(boxes_N4), slices)

    def follow_points(
        self,
        slice_index: int,
        points_NP2: npt.ArrayLike,
        labels_NP: npt.ArrayLike | None = None,
        *,
        slices: Sequence[int],
    ) -> npt.NDArray[np.bool_]:
        """Masks of objects that are clicked on one slice and followed, as ``follow_boxes`` does.

        Args:
            slice_index: the prompted slice.
            points_NP2: (N, P, 2) clicks, as ``segment_points`` takes them.
            labels_NP: (N, P), of the clicks.
            slices: see ``follow_boxes``.

        Returns:
            (N, len(slices), H, W), in the order of ``slices``.

        Raises:
            ValueError, IndexError, NetworkConfigError: see the two.
        """
        return self._follow(slice_index, self._points(points_NP2, labels_NP), slices)

    def follow_masks(
        self, slice_index: int, masks_NHW: npt.ArrayLike, *, slices: Sequence[int]
    ) -> npt.NDArray[np.bool_]:
        """Masks of objects that were drawn on one slice and are followed to others.

        Args:
            slice_index: the slice that they were drawn on; its answer is the drawing.
            masks_NHW: (N, H, W), true on the object.
            slices: see ``follow_boxes``.

        Returns:
            (N, len(slices), H, W), in the order of ``slices``.

        Raises:
            ValueError: the masks have another shape, or ``slices`` is not such a run.
            IndexError, NetworkConfigError: see ``follow_boxes``.
        """
        masks = np.asarray(masks_NHW).astype(bool)
        shape = self._image.shape[1:3]
        if masks.ndim != 3 or masks.shape[1:] != shape:
            raise ValueError(f"expected masks (N, {shape[0]}, {shape[1]}), got {masks.shape}")
        return self._follow(slice_index, masks, slices)

    @torch.no_grad()
    def _segment(self, slice_index: int, prompts: Prompts) -> npt.NDArray[np.bool_]:
        count = len(prompts.labels_BN)
        if count == 0:
            return np.zeros((0, *self._image.shape[1:3]), dtype=bool)
        record = self._runner.prompted(self._rows(slice_index, count), prompts)
        return self._masks(record.mask_logits)

    @torch.no_grad()
    def _follow(
        self, slice_index: int, prompts: Prompts | npt.NDArray[np.bool_], slices: Sequence[int]
    ) -> npt.NDArray[np.bool_]:
        runner, wanted = self._follower(), self._run_around(slice_index, slices)
        count = len(prompts if isinstance(prompts, np.ndarray) else prompts.labels_BN)
        masks = np.zeros((count, len(wanted), *self._image.shape[1:3]), dtype=bool)
        if count == 0:
            return masks
        start = self._rows(slice_index, count)
        if isinstance(prompts, np.ndarray):
            drawn = self._drawn(prompts)
            first = runner.mask_prompted(start, drawn)
            masks[:, slice_index - wanted[0]] = prompts
        else:
            drawn = None
            first = runner.prompted(start, prompts)
            masks[:, slice_index - wanted[0]] = self._masks(first.mask_logits)
        memory = runner.remember(
            start, first, position=slice_index, prompted=True, full_mask_B1SS=drawn
        )
        # Older entries are beyond the memory's and the pointers' reach.
        reach = max(
            int(runner.model.num_maskmem), int(runner.config.max_object_pointers_in_encoder)
        )
        forwards = range(slice_index + 1, wanted[-1] + 1)
        backwards = range(slice_index - 1, wanted[0] - 1, -1)
        for reverse, path in ((False, forwards), (True, backwards)):
            bank = [memory]
            for position in path:
                here = self._rows(position, count)
                record = runner.tracked(
                    here, bank, position=position, reverse=reverse, num_frames=max(self.depth, 2)
                )
                masks[:, position - wanted[0]] = self._masks(record.mask_logits)
                bank.append(runner.remember(here, record, position=position, prompted=False))
                bank = [bank[0], *bank[1:][-reach:]]
        return masks

    def _follower(self) -> SliceRunner:
        if not isinstance(self._runner, SliceRunner):
            raise NetworkConfigError(
                "MedSAM has no memory and follows nothing: prompt every slice (segment_boxes), or "
                "use a network that has one, such as a student"
            )
        return self._runner

    def _run_around(self, slice_index: int, slices: Sequence[int]) -> list[int]:
        wanted = list(slices)
        if slice_index not in wanted or wanted != list(range(wanted[0], wanted[-1] + 1)):
            raise ValueError(f"slices {wanted} are not a run around slice {slice_index}")
        if wanted[0] < 0 or wanted[-1] >= self.depth:
            raise IndexError(f"slices {wanted[0]} to {wanted[-1]} of a volume of {self.depth}")
        return wanted

    def _boxes(self, boxes_N4: npt.ArrayLike) -> Prompts:
        network = self.squash.boxes_to_network(boxes_N4)
        tensor = torch.from_numpy(network.astype(np.float32)).reshape(-1, 4)
        return boxes_to_prompts(tensor.to(self._device))

    def _points(self, points_NP2: npt.ArrayLike, labels_NP: npt.ArrayLike | None) -> Prompts:
        points = self.squash.points_to_network(points_NP2)
        if points.ndim != 3:
            raise ValueError(f"expected points (N, P, 2), got {points.shape}")
        labels = np.ones(points.shape[:2]) if labels_NP is None else np.asarray(labels_NP)
        if labels.shape != points.shape[:2]:
            raise ValueError(f"expected labels {points.shape[:2]}, got {labels.shape}")
        unknown = set(np.unique(labels).tolist()) - {0, 1, IGNORED_LABEL}
        if unknown:
            raise ValueError(f"labels are 1 (on the object), 0 (beside it) or -10, not {unknown}")
        return Prompts(
            points_BN2=torch.from_numpy(points.astype(np.float32)).to(self._device),
            labels_BN=torch.from_numpy(labels.astype(np.int64)).to(self._device),
        )

    def _drawn(self, masks_NHW: npt.NDArray[np.bool_]) -> Tensor:
        """Drawn masks at network size, (N, 1, S, S)."""
        squashed = squash_labels(masks_NHW.astype(np.uint16), self._runner.image_size)
        return torch.from_numpy(squashed.astype(np.float32))[:, None].to(self._device)

    def _rows(self, slice_index: int, count: int) -> SliceFeatures:
        rows = torch.zeros(count, dtype=torch.int64, device=self._device)
        return self.features(slice_index).take(rows)

    def _masks(self, logits_N1HW: Tensor) -> npt.NDArray[np.bool_]:
        return logits_to_mask(logits_N1HW[:, 0], height=self.squash.height, width=self.squash.width)
