"""The whole configuration: one block per owner, composed here and nowhere else.

Every block is a frozen pydantic model that lives with the stage which reads it. A config file is
YAML with these blocks; ``--set block.key=value`` goes on top.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cache.mirror import CACHE_FOLDER
from efficient_medsam2.networks.student import StudentConfig
from pipeline.config_file import load
from pipeline.model_store import pulled_checkpoint
from pipeline.object_store import mirror_folder
from pipeline.presets import PRESETS
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.cases import DataConfig
from stages.distill_encoder import EncoderConfig
from stages.distill_memory import MemoryConfig
from stages.evaluate import EvaluateConfig
from stages.finetune import BaselineConfig, FinetuneConfig
from stages.student_size import check_sizes
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

    @model_validator(mode="after")
    def _student_size_is_meant(self) -> Self:
        check_sizes(self.student, self.teacher)
        return self

    @property
    def cache_folder(self) -> Path:
        """Folder of the embedding cache: ``cache.path``, or ``<run.dir>/cache``.

        Of a cache on an object store, the one in its mirror.
        """
        if isinstance(self.cache.path, Path):
            return self.cache.path
        mirror = self.cache.mirror.path
        if self.cache.path is None or mirror is None:
            return self.run.dir / "cache"
        return mirror / CACHE_FOLDER


def load_config(
    name: str | Path, overrides: Sequence[str] = (), *, models: Path | None = None
) -> Config:
    """Read a config file or preset with ``a.b=value`` overrides on top.

    Args:
        name: path of a YAML file, a preset's name (``laptop``) or ``configs/laptop.yaml``.
        overrides: texts such as ``encoder.learning_rate=1e-3``.
        models: folder of pulled models: where it holds what ``teacher.kind`` needs, that is the
            checkpoint of a teacher that names none.

    Raises:
        ConfigError: see :func:`pipeline.config_file.load`.
    """
    config = _with_mirror(load(Config, name, overrides, presets=PRESETS))
    teacher = config.teacher
    if models is None or teacher.kind == "scratch" or teacher.checkpoint is not None:
        return config
    pulled = pulled_checkpoint(teacher.kind, teacher.size, models)
    teacher = teacher.model_copy(update={"checkpoint": pulled})
    return config.model_copy(update={"teacher": teacher})


def _with_mirror(config: Config) -> Config:
    """Name the mirror's folder where the cache lies on an object store and no folder is set."""
    url, mirror = config.cache.remote_url, config.cache.mirror
    if url is None or mirror.path is not None:
        return config
    mirror = mirror.model_copy(update={"path": mirror_folder(url)})
    cache = config.cache.model_copy(update={"mirror": mirror})
    return config.model_copy(update={"cache": cache})
