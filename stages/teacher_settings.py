"""Settings of the small teacher's training."""

from typing import Literal

from pydantic import Field

from efficient_medsam2.networks.hiera import SmallNetConfig
from stages.training.settings import LoopConfig

__all__ = ["TrainTeacherConfig"]


class TrainTeacherConfig(LoopConfig):
    """Settings of the small teacher's training; ``batch_size`` counts windows.

    Attributes:
        network: the network to train.
        encode_in: number format of the image encoder's products while it trains: bfloat16 halves
            its time on CPUs that have it.
        window: slices of a window; a track from the middle of 11 slices goes 5 on, so 6.
        stills: single slices of a batch beside its windows; until tracks join, ``window`` more
            stand in for each window.
        prompts_per_slice: prompts that each encoded slice serves, at most.
        regions_per_slice: how often a region of even brightness is looked for on each real slice,
            to be prompted beside the labelled objects.
        parts_share: share of the labelled objects on real slices of which only a part is prompted,
            as if they ended there.
        jitter: noise of boxes, one of these shares of their side.
        refined_share: share of the prompts that get a corrective click and are answered again.
        tracks_per_window: objects followed through each window.
        average_over: steps that the running average of the weights looks back over.
        pool: generated volumes that are alive at a time.
        fresh: steps after which one volume of the pool is replaced.
        real: real volumes that join: the MNI152 brain's training slabs, or none.
        real_from: share of the steps after which they join.
        real_share: share of the windows cut from them from then on.
        tracks_from: share of the steps after which tracks join.
        tracks_grown: share of the steps after which tracks are ``window`` slices long; they begin
            as pairs of slices, of which there are more in a batch, and grow.
        track_every: from then on every such batch has windows and tracks; others have single
            slices.
        smallest: objects below so many pixels of a slice are not prompted.
    """

    steps: int = 2200
    batch_size: int = 1
    learning_rate: float = 1e-3
    warmup: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    network: SmallNetConfig = SmallNetConfig()
    encode_in: Literal["float32", "bfloat16"] = "bfloat16"
    window: int = Field(default=6, ge=2)
    stills: int = Field(default=8, ge=0)
    prompts_per_slice: int = Field(default=4, ge=1)
    regions_per_slice: int = Field(default=3, ge=0)
    parts_share: float = Field(default=0.35, ge=0, le=1)
    jitter: tuple[float, ...] = (0.0, 0.1)
    refined_share: float = Field(default=0.25, ge=0, le=1)
    tracks_per_window: int = Field(default=6, ge=1)
    average_over: int = Field(default=200, ge=1)
    pool: int = Field(default=48, ge=1)
    fresh: int = Field(default=2, ge=1)
    real: Literal["mni152", "none"] = "mni152"
    real_from: float = Field(default=0.0, ge=0, le=1)
    real_share: float = Field(default=0.6, ge=0, le=1)
    tracks_from: float = Field(default=0.1, ge=0, le=1)
    tracks_grown: float = Field(default=0.5, ge=0, le=1)
    track_every: int = Field(default=2, ge=1)
    smallest: int = Field(default=30, ge=1)
