"""Deployment switches that belong to a model and travel with its folder."""

from dataclasses import dataclass

__all__ = ["RunnerOptions"]


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """Deployment switches that belong to a model, not to its weights.

    Attributes:
        fill_box: a box is also given as a mask prompt, filled. Networks trained here from
            nothing use it; MedSAM2 does not.
        binarise_prompted_mask: the mask of a prompted slice enters the memory as 0/1 (the
            official predictors; ``SAM2Base`` alone does not).
        dynamic_multimask: fall back to the best of three masks where the single mask is unstable
            (the official predictors).
        fixed_num_frames: sequence length that the pointers' time code assumes whatever the real
            one is; None = the real one (SAM2Base). Networks trained here on short windows set it.
    """

    fill_box: bool = False
    binarise_prompted_mask: bool = False
    dynamic_multimask: bool = False
    fixed_num_frames: int | None = None
