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
from efficient_medsam2.images.preprocess import Squash, logits_to_mask, squash_slices
from efficient_medsam2.networks.records import Prompts, SliceFeatures, boxes_to_prompts
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.sam1 import PromptedNetwork, network_input

__all__ = ["VolumePredictor"]

_ENCODE_AT_ONCE = 4


class VolumePredictor:
    """Prompts on one image or volume.

    Slices are encoded when they are first needed and at most ``keep`` of them are remembered, so
    memory does not grow with the length of a volume.

    Args:
        runner: the network.
        image: uint8 (D, H, W) or (D, H, W, 3), grey values normalised (``to_uint8``).
        keep: encoded slices to remember.

    Raises:
        ValueError: the image is not uint8 or not of such a shape.
    """

    def __init__(
        self, runner: PromptedNetwork, image: npt.NDArray[np.uint8], *, keep: int = 64
    ) -> None:
        is_grey_or_rgb = image.ndim == 3 or (image.ndim == 4 and image.shape[3] == 3)
        if image.dtype != np.uint8 or not is_grey_or_rgb:
            raise ValueError(
                f"expected uint8 (D, H, W) or (D, H, W, 3), got {image.dtype} {image.shape}; "
                "see efficient_medsam2.images.to_uint8"
            )
        self._runner = runner
        self._image = image
        self._keep = max(keep, _ENCODE_AT_ONCE)
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
            while len(self._features) > self._keep:
                oldest = next(index for index in self._features if index != slice_index)
                del self._features[oldest]
        self._features.move_to_end(slice_index)
        return self._features[slice_index]

    @torch.no_grad()
    def segment_boxes(self, slice_index: int, boxes_N4: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Masks (N, H, W) of boxes (N, 4) as x0, y0, x1, y1 in image pixels on one slice.

        Raises:
            IndexError: there is no such slice.
        """
        prompts = self._boxes(boxes_N4)
        if len(prompts.labels_BN) == 0:
            return np.zeros((0, *self._image.shape[1:3]), dtype=bool)
        record = self._runner.prompted(self._rows(slice_index, len(prompts.labels_BN)), prompts)
        return self._masks(record.mask_logits)

    @torch.no_grad()
    def follow_boxes(
        self,
        slice_index: int,
        boxes_N4: npt.ArrayLike,
        *,
        slices: Sequence[int],
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
        runner = self._runner
        if not isinstance(runner, SliceRunner):
            raise NetworkConfigError(
                "MedSAM has no memory and follows nothing: prompt every slice (segment_boxes), or "
                "use a network that has one, such as a student"
            )
        wanted = list(slices)
        if slice_index not in wanted or wanted != list(range(wanted[0], wanted[-1] + 1)):
            raise ValueError(f"slices {wanted} are not a run around slice {slice_index}")
        if wanted[0] < 0 or wanted[-1] >= self.depth:
            raise IndexError(f"slices {wanted[0]} to {wanted[-1]} of a volume of {self.depth}")
        prompts = self._boxes(boxes_N4)
        count = len(prompts.labels_BN)
        masks = np.zeros((count, len(wanted), *self._image.shape[1:3]), dtype=bool)
        if count == 0:
            return masks
        start = self._rows(slice_index, count)
        first = runner.prompted(start, prompts)
        memory = runner.remember(start, first, position=slice_index, prompted=True)
        masks[:, slice_index - wanted[0]] = self._masks(first.mask_logits)
        for reverse in (False, True):
            bank = [memory]
            path = (
                range(slice_index - 1, wanted[0] - 1, -1)
                if reverse
                else range(slice_index + 1, wanted[-1] + 1)
            )
            for position in path:
                here = self._rows(position, count)
                record = runner.tracked(
                    here,
                    bank,
                    position=position,
                    reverse=reverse,
                    num_frames=max(self.depth, 2),
                )
                masks[:, position - wanted[0]] = self._masks(record.mask_logits)
                bank.append(runner.remember(here, record, position=position, prompted=False))
                # Older entries are beyond the memory's and the pointers' reach.
                reach = max(
                    int(runner.model.num_maskmem),
                    int(runner.config.max_object_pointers_in_encoder),
                )
                bank = [bank[0], *bank[1:][-reach:]]
        return masks

    def _boxes(self, boxes_N4: npt.ArrayLike) -> Prompts:
        network = self.squash.boxes_to_network(boxes_N4)
        tensor = torch.from_numpy(network.astype(np.float32)).reshape(-1, 4)
        return boxes_to_prompts(tensor.to(self._device))

    def _rows(self, slice_index: int, count: int) -> SliceFeatures:
        rows = torch.zeros(count, dtype=torch.int64, device=self._device)
        return self.features(slice_index).take(rows)

    def _masks(self, logits_N1HW: Tensor) -> npt.NDArray[np.bool_]:
        return logits_to_mask(logits_N1HW[:, 0], height=self.squash.height, width=self.squash.width)
