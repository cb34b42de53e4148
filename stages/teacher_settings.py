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
        window: slices of a window.
        prompts_per_slice: prompts that each encoded slice serves.
        tracks_per_window: objects followed through each window.
        pool: generated volumes that are alive at a time.
        fresh: steps after which one volume of the pool is replaced.
        real: real volumes that join: the MNI152 brain's training slabs, or none.
        real_from: share of the steps after which they join.
        real_share: share of the windows cut from them from then on.
        tracks_from: share of the steps after which tracks join.
        smallest: objects below so many pixels of a slice are not prompted.
    """

    steps: int = 4000
    batch_size: int = 3
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    network: SmallNetConfig = SmallNetConfig()
    window: int = Field(default=6, ge=2)
    prompts_per_slice: int = Field(default=3, ge=1)
    tracks_per_window: int = Field(default=2, ge=1)
    pool: int = Field(default=48, ge=1)
    fresh: int = Field(default=1, ge=1)
    real: Literal["mni152", "none"] = "mni152"
    real_from: float = Field(default=0.4, ge=0, le=1)
    real_share: float = Field(default=0.5, ge=0, le=1)
    tracks_from: float = Field(default=0.1, ge=0, le=1)
    smallest: int = Field(default=30, ge=1)
