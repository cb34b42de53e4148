"""The slice runner: one SAM 2 network, one slice at a time, batched over (image, object) rows.

It drives the sub-modules of transformers' ``Sam2VideoModel`` in the order of the official
``SAM2Base`` (facebookresearch/sam2, bowang-lab/MedSAM2), with gradients flowing and with order,
direction and number of frames explicit. Teacher and student run through the same functions.

Shape letters: B rows, C channels, S input size in pixels, H W rows and columns of the 1/16 grid.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2VideoModel

from efficient_medsam2.networks.filled_boxes import filled_boxes
from efficient_medsam2.networks.mask_prompts import MASK_BIAS, MASK_SCALE, low_res_logits
from efficient_medsam2.networks.memory_tokens import (
    frames_of_rows,
    limit_by_limit,
    memory_tokens,
    pointer_limits,
    same_pointers,
)
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.records import MemoryEntry, Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.student_levels import has_student_levels, student_levels

__all__ = ["NO_OBJECT_LOGIT", "SliceRunner"]

NO_OBJECT_LOGIT = -1024.0
"""Mask logit of an object judged absent (SAM2Base)."""


class SliceRunner:
    """Runs one network slice by slice.

    Args:
        model: a transformers ``Sam2VideoModel`` (teacher or student). ``dynamic_multimask`` is
            set on its mask decoder: of two runners over one model the later one decides.
        options: deployment switches of this model.
    """

    def __init__(self, model: Sam2VideoModel, options: RunnerOptions | None = None) -> None:
        self.model = model
        self.options = options or RunnerOptions()
        self.config = model.config
        self.image_size = int(model.config.image_size)
        model.mask_decoder.dynamic_multimask_via_stability = self.options.dynamic_multimask

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the stride-16 level."""
        height, width = self.model.prompt_encoder.image_embedding_size
        return int(height), int(width)

    @property
    def reach(self) -> int:
        """Slices back that still matter: older memories and pointers are never looked at."""
        pointers = int(self.config.max_object_pointers_in_encoder)
        return max(int(self.model.num_maskmem), pointers) - 1

    def encode(self, pixels_B3SS: Tensor) -> SliceFeatures:
        """Image encoder: normalised pixels (B, 3, S, S) → features at strides 4, 8 and 16."""
        if has_student_levels(self.model):
            return student_levels(self.model, pixels_B3SS)
        levels = self.model.vision_encoder(pixels_B3SS).fpn_hidden_states
        decoder = self.model.mask_decoder
        return SliceFeatures(
            s4=decoder.conv_s0(levels[0]), s8=decoder.conv_s1(levels[1]), s16=levels[2]
        )

    def prompted(self, features: SliceFeatures, prompts: Prompts) -> SliceRecord:
        """A slice with a prompt and no memory: raw features + the no-memory embedding."""
        conditioned = features.s16 + self.model.no_memory_embedding.reshape(1, -1, 1, 1)
        return self.decode(features, conditioned, prompts)

    def tracked(
        self,
        features: SliceFeatures,
        bank: Sequence[MemoryEntry],
        *,
        position: int,
        reverse: bool,
        num_frames: int | Tensor,
    ) -> SliceRecord:
        """A slice without a prompt, conditioned on the memories of other slices.

        Args:
            features: of this slice, B rows.
            bank: entries of the slices seen so far in this direction and of every prompted one,
                B rows each, in any order.
            position: index of this slice in its case.
            reverse: whether the track runs towards lower indices.
            num_frames: frames of the whole sequence, of all rows or (B,) of each, an integer
                tensor best kept on the CPU; scales the pointers' time code.

        Raises:
            ValueError: nothing in the bank is within reach of this slice.
        """
        conditioned = self.condition(
            features.s16, bank, position=position, reverse=reverse, num_frames=num_frames
        )
        return self.decode(features, conditioned, None)

    def mask_prompted(self, features: SliceFeatures, mask_B1SS: Tensor) -> SliceRecord:
        """A slice whose mask the user gives: it is the answer itself.

        Only the object pointer is computed, from the single-mask token (``SAM2Base``'s
        ``use_mask_input_as_output_without_sam``).

        Args:
            features: of this slice, B rows.
            mask_B1SS: binary mask at network size, any dtype. An empty one is an absent object.
        """
        mask = mask_B1SS.to(features.s16.dtype)
        prompt = Prompts(
            points_BN2=mask.new_zeros(mask.shape[0], 1, 2),
            labels_BN=torch.full((mask.shape[0], 1), -1, device=mask.device),
            mask_logits=self.model.mask_downsample(mask),
        )
        answer = self.decode(features, features.s16, prompt, multimask=False)
        present = (mask.flatten(1) > 0).any(dim=1, keepdim=True).to(mask.dtype)
        pointer = self._mix_absent_pointer(answer.object_pointer, present)
        logits = low_res_logits(mask, int(self.model.prompt_encoder.mask_input_size[0]))
        return SliceRecord(
            conditioned_s16=features.s16,
            candidate_logits=logits,
            iou=torch.ones_like(present),
            mask_logits=logits,
            visible_logits=logits,
            object_pointer=pointer,
            object_score=MASK_SCALE * present + MASK_BIAS,
        )

    def decode(
        self,
        features: SliceFeatures,
        conditioned_BCHW: Tensor,
        prompts: Prompts | None,
        *,
        multimask: bool | None = None,
    ) -> SliceRecord:
        """Prompt encoder + mask decoder + object pointer on conditioned features.

        Cached features are the decoder's complete input: this gives the teacher's mask for any
        new prompt without its encoder.

        Args:
            features: of the slice, B rows; its ``s4`` and ``s8`` are read.
            conditioned_BCHW: what stands for ``s16``.
            prompts: B prompts; None on a tracked slice.
            multimask: whether the decoder gives three candidates or one. None follows
                ``SAM2Base``: by the number of points per row, padding included.
        """
        rows = conditioned_BCHW.shape[0]
        points, labels, dense = self._prompt_inputs(prompts, rows, conditioned_BCHW)
        if multimask is None:
            multimask = self._uses_multimask(0 if prompts is None else prompts.labels_BN.shape[1])
        sparse, dense_embedding = self.model.prompt_encoder(points, labels, None, dense)
        logits, iou, tokens, score = self.model.mask_decoder(
            image_embeddings=conditioned_BCHW,
            image_positional_embeddings=self._image_position(rows),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense_embedding,
            multimask_output=multimask,
            high_resolution_features=[features.s4, features.s8],
        )
        logits, iou, tokens, score = logits[:, 0], iou[:, 0], tokens[:, 0], score[:, 0]
        present = score > 0
        best = iou.argmax(dim=1)
        each = torch.arange(rows, device=best.device)
        visible = logits[each, best].unsqueeze(1)
        logits = torch.where(present[:, :, None, None], logits, NO_OBJECT_LOGIT)
        token = tokens[each, best] if tokens.shape[1] > 1 else tokens[:, 0]
        pointer = self.model.object_pointer_proj(token)
        return SliceRecord(
            conditioned_s16=conditioned_BCHW,
            candidate_logits=logits,
            iou=iou,
            mask_logits=logits[each, best].unsqueeze(1),
            visible_logits=visible,
            object_pointer=self._mix_absent_pointer(pointer, present.to(pointer.dtype)),
            object_score=score,
        )

    def remember(
        self,
        features: SliceFeatures,
        record: SliceRecord,
        *,
        position: int,
        prompted: bool,
        full_mask_B1SS: Tensor | None = None,
    ) -> MemoryEntry:
        """Memory encoder on RAW stride-16 features and the slice's mask → bank entry.

        Args:
            features: of the slice.
            record: what the slice gave.
            position: index of the slice in its case.
            prompted: whether the user prompted this slice.
            full_mask_B1SS: the mask at network size where the user gave one; its logits are used
                instead of the record's upsampled ones.
        """
        if full_mask_B1SS is None:
            size = (self.image_size, self.image_size)
            full = F.interpolate(
                record.mask_logits.float(), size=size, mode="bilinear", align_corners=False
            )
        else:
            full = full_mask_B1SS.to(features.s16.dtype) * MASK_SCALE + MASK_BIAS
        binary = prompted and full_mask_B1SS is None and self.options.binarise_prompted_mask
        mask = (full > 0).to(full.dtype) if binary else full.sigmoid()
        mask = mask * self.config.sigmoid_scale_for_mem_enc + self.config.sigmoid_bias_for_mem_enc
        memory, _ = self.model.memory_encoder(features.s16, mask)
        occlusion = self.model.occlusion_spatial_embedding_parameter
        if occlusion is not None:
            absent = (record.object_score <= 0).to(memory.dtype)[:, :, None, None]
            memory = memory + absent * occlusion[:, :, None, None]
        return MemoryEntry(
            position=position,
            prompted=prompted,
            memory=memory,
            object_pointer=record.object_pointer,
        )

    def condition(
        self,
        raw_BCHW: Tensor,
        bank: Sequence[MemoryEntry],
        *,
        position: int,
        reverse: bool,
        num_frames: int | Tensor,
    ) -> Tensor:
        """Memory attention: raw stride-16 features (B, C, h, w) + bank → (B, C, h, w).

        Rows of sequences of different lengths give what each would give alone.

        Raises:
            ValueError: nothing in the bank is within reach of this slice.
        """
        rows, channels, height, width = raw_BCHW.shape
        frames = self.options.fixed_num_frames or frames_of_rows(num_frames, rows)
        limits = pointer_limits(self.model, frames)
        if not same_pointers(bank, limits, position=position):

            def of_rows(chosen: Tensor, limit: int) -> Tensor:
                seen = [entry.take(chosen) for entry in bank]
                return self.condition(
                    raw_BCHW[chosen], seen, position=position, reverse=reverse, num_frames=limit
                )

            return limit_by_limit(limits, of_rows, raw_BCHW.device)
        seen = memory_tokens(
            self.model,
            bank,
            position=position,
            reverse=reverse,
            num_frames=frames,
        )
        image_position = self.model.vision_encoder.neck.position_encoding(
            raw_BCHW.shape, raw_BCHW.device, raw_BCHW.dtype
        )
        output = self.model.memory_attention(
            current_vision_features=raw_BCHW.flatten(2).permute(2, 0, 1),
            current_vision_position_embeddings=image_position.flatten(2).permute(2, 0, 1),
            memory=seen.tokens_MBC,
            memory_posision_embeddings=seen.codes_MBC,
            num_object_pointer_tokens=seen.pointers,
        )
        conditioned: Tensor = output[0].transpose(1, 2)
        return conditioned.reshape(rows, channels, height, width)

    def _prompt_inputs(
        self, prompts: Prompts | None, rows: int, like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Points (B, 1, N, 2), labels (B, 1, N) and dense logits as the prompt encoder wants."""
        dense = None if prompts is None else prompts.mask_logits
        if prompts is None or prompts.labels_BN.shape[1] == 0:
            # SAM2Base pads what has no point with an empty one.
            points = like.new_zeros(rows, 1, 1, 2)
            labels = torch.full((rows, 1, 1), -1, dtype=torch.int64, device=like.device)
            return points, labels, dense
        if self.options.fill_box and dense is None:
            size = int(self.model.prompt_encoder.mask_input_size[0])
            dense = filled_boxes(prompts, size, self.image_size).to(like.dtype)
        points = prompts.points_BN2.to(like.dtype).unsqueeze(1)
        return points, prompts.labels_BN.unsqueeze(1), dense

    def _uses_multimask(self, points: int) -> bool:
        """SAM2Base's rule: three masks for an ambiguous prompt, one for a box or several points."""
        config = self.config
        low, high = config.multimask_min_pt_num, config.multimask_max_pt_num
        return bool(config.multimask_output_in_sam and low <= points <= high)

    def _image_position(self, rows: int) -> Tensor:
        """Position code of the 1/16 grid for the decoder, (B, C, h, w)."""
        code: Tensor = self.model.get_image_wide_positional_embeddings()
        return code.expand(rows, -1, -1, -1)

    def _mix_absent_pointer(self, pointer_BC: Tensor, present_B1: Tensor) -> Tensor:
        """The learned no-object pointer where the object is absent."""
        absent: Tensor = self.model.no_object_pointer
        return present_B1 * pointer_BC + (1 - present_B1) * absent
