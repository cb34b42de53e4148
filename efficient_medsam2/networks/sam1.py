"""SAM 1 networks (Segment Anything, MedSAM): one image, prompts in, one mask a prompt out.

They have no memory and no high-resolution levels. Their features come in the same records as
those of SAM 2 networks, with zero channels at strides 4 and 8, so that whoever asks for a mask
need not know which of the two answers.

Shape letters: B rows, C channels, N points, S input size in pixels, h = w = S/16.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import SamModel

from efficient_medsam2.images.preprocess import to_network_input
from efficient_medsam2.networks.records import Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner

__all__ = ["PRESENT_LOGIT", "PromptedNetwork", "Sam1Runner", "network_input"]

PRESENT_LOGIT = 10.0
"""Object score of every answer: SAM 1 does not judge presence and always draws a mask."""


class Sam1Runner:
    """Runs one SAM 1 network.

    Args:
        model: a transformers ``SamModel``.
    """

    def __init__(self, model: SamModel) -> None:
        self.model = model
        self.config = model.config
        self.image_size = int(model.config.vision_config.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the stride-16 level."""
        height, width = self.model.prompt_encoder.image_embedding_size
        return int(height), int(width)

    def network_input(self, image_BCSS: Tensor) -> Tensor:
        """uint8 images (B, 1 or 3, S, S) → (B, 3, S, S) float32, each stretched to 0..1.

        MedSAM's own normalisation (``MedSAM_Inference.py``): minus the image's minimum, over its
        range, and neither mean nor deviation. It squashes with scikit-image's spline of order 3
        and Gaussian anti-aliasing; here a slice is squashed with Pillow's bicubic filter, as
        every image of this project is.

        Raises:
            ValueError: another dtype or shape.
        """
        if image_BCSS.dtype != torch.uint8 or image_BCSS.ndim != 4:
            raise ValueError(
                f"expected (B, 1 or 3, S, S) uint8, got {tuple(image_BCSS.shape)} "
                f"{image_BCSS.dtype}"
            )
        image = image_BCSS.to(torch.float32)
        low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
        return ((image - low) / (high - low).clamp(min=1e-8)).expand(-1, 3, -1, -1)

    def encode(self, pixels_B3SS: Tensor) -> SliceFeatures:
        """Image encoder → the image embedding as ``s16``; ``s4`` and ``s8`` have no channels."""
        embedding = self.model.vision_encoder(pixels_B3SS).last_hidden_state
        return self.features_of(embedding)

    def features_of(self, embedding_BChw: Tensor) -> SliceFeatures:
        """An image embedding as a record of features."""
        rows, _, height, width = embedding_BChw.shape
        s4, s8 = (
            embedding_BChw.new_zeros(rows, 0, height * times, width * times) for times in (4, 2)
        )
        return SliceFeatures(s4=s4, s8=s8, s16=embedding_BChw)

    def prompted(self, features: SliceFeatures, prompts: Prompts) -> SliceRecord:
        """One mask for each of B prompts on B rows of features (``multimask_output=False``).

        Points with a negative label fill a batch up and are left out. Rows with differently many
        points are answered apart: an answer does not depend on what is beside it in the batch,
        and a row with a box gets no padding token, as in the official code.
        """
        found = [
            (rows, *self._decode(features.s16[rows], part))
            for rows, part in _alike(prompts, features.s16.device)
        ]
        back = torch.cat([rows for rows, _, _ in found]).argsort()
        logits = torch.cat([each for _, each, _ in found])[back]
        iou = torch.cat([each for _, _, each in found])[back]
        return SliceRecord(
            conditioned_s16=features.s16,
            candidate_logits=logits,
            iou=iou,
            mask_logits=logits,
            visible_logits=logits,
            object_pointer=logits.new_zeros(len(logits), features.s16.shape[1]),
            object_score=logits.new_full((len(logits), 1), PRESENT_LOGIT),
        )

    def _decode(self, embedding_BChw: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Mask logits (B, 1, S/4, S/4) and IoU (B, 1) of prompts without filling points."""
        encoder = self.model.prompt_encoder
        rows = len(embedding_BChw)
        mask = prompts.mask_logits
        dense = (
            encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(rows, -1, *self.grid)
            if mask is None
            else encoder.mask_embed(mask.to(embedding_BChw.dtype))
        )
        position = self.model.get_image_wide_positional_embeddings()
        logits, iou = self.model.mask_decoder(
            image_embeddings=embedding_BChw,
            image_positional_embeddings=position.expand(rows, -1, -1, -1),
            sparse_prompt_embeddings=self._tokens(prompts).unsqueeze(1),
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits[:, 0], iou[:, 0]

    def _tokens(self, prompts: Prompts) -> Tensor:
        """Sparse embeddings (B, N, C), or (B, N + 1, C) with the padding of points alone."""
        encoder, labels = self.model.prompt_encoder, prompts.labels_BN
        kinds = torch.cat([kind.weight for kind in encoder.point_embed])
        points = prompts.points_BN2.to(kinds.dtype) + 0.5  # the centre of the pixel
        side = (self.image_size, self.image_size)
        codes: Tensor = encoder.shared_embedding(points.unsqueeze(1), side)[:, 0]
        tokens = codes + kinds[labels]
        if labels.shape[1] and not bool((labels[0] >= 2).any()):
            padding = encoder.not_a_point_embed.weight.expand(len(labels), 1, -1)
            tokens = torch.cat([tokens, padding], dim=1)
        return tokens


def _alike(prompts: Prompts, device: torch.device) -> Iterator[tuple[Tensor, Prompts]]:
    """Rows of as many points and of one kind, their filling points taken away."""
    labels = prompts.labels_BN
    real = labels >= 0
    kind = real.sum(1) * 2 + (labels >= 2).any(1)
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
    for value in torch.unique(kind).tolist():
        rows = (kind == value).nonzero()[:, 0]
        columns = order[rows, : value // 2]
        part = prompts.take(rows)
        yield (
            rows.to(device),
            Prompts(
                points_BN2=part.points_BN2.gather(1, columns[:, :, None].expand(-1, -1, 2)),
                labels_BN=part.labels_BN.gather(1, columns),
                mask_logits=part.mask_logits,
            ),
        )


PromptedNetwork = SliceRunner | Sam1Runner
"""A network that answers prompts on one slice; a ``SliceRunner`` follows objects as well."""


def network_input(network: PromptedNetwork, image_BCSS: Tensor) -> Tensor:
    """uint8 images (B, 1 or 3, S, S) → what this network's image encoder takes.

    Raises:
        ValueError: another dtype or shape.
    """
    if isinstance(network, Sam1Runner):
        return network.network_input(image_BCSS)
    return to_network_input(image_BCSS)
