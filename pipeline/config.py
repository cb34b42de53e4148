"""The whole configuration: one block per owner, composed here and nowhere else.

Every block is a frozen pydantic model that lives with the stage which reads it. A config file is
YAML with these blocks; ``--set block.key=value`` goes on top.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from efficient_medsam2.networks.student import StudentConfig
from pipeline.config_file import PRESETS, load
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.cases import DataConfig
from stages.distill_encoder import EncoderConfig
from stages.distill_memory import MemoryConfig
from stages.evaluate import EvaluateConfig
from stages.finetune import BaselineConfig, FinetuneConfig
from stages.teacher_source import TeacherConfig
from stages.train_teacher import TrainTeacherConfig

__all__ = ["Config", "RunConfig", "load_config"]


class RunConfig(BaseModel):
    """Where a run lives and how it is seeded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dir: Path = Field(Path("runs/default"), description="Folder of the stages' artifacts.")
    seed: int = Field(0, ge=0, description="Seed of every random stream.")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of the networks; by default one a core."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where networks run.")


class Config(BaseModel):
    """Everything a run can be told.

    A block that a config file leaves out is read as an empty one: its own defaults, or an error
    that names its required keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: RunConfig
    data: DataConfig
    teacher: TeacherConfig
    teacher_training: TrainTeacherConfig
    cache: CacheConfig
    precompute: PrecomputeConfig
    student: StudentConfig
    encoder: EncoderConfig
    memory: MemoryConfig
    finetune: FinetuneConfig
    baseline: BaselineConfig
    evaluate: EvaluateConfig

    @property
    def cache_folder(self) -> Path:
        """Folder of the embedding cache: ``cache.path``, or ``<run.dir>/cache``."""
        return self.cache.path if self.cache.path is not None else self.run.dir / "cache"


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file or preset with ``a.b=value`` overrides on top.

    Args:
        name: path of a YAML file, a preset's name (``laptop``) or ``configs/laptop.yaml``.
        overrides: texts such as ``encoder.learning_rate=1e-3``.

    Raises:
        ConfigError: see :func:`pipeline.config_file.load`.
    """
    return load(Config, name, overrides, presets=PRESETS)
