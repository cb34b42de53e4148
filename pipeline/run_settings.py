"""Where and how a run works."""

from dataclasses import dataclass
from pathlib import Path

from cache.mirror import Mirror
from stages.cluster import Cluster

__all__ = ["RunSettings"]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where a run lives and how it is seeded.

    Attributes:
        directory: folder of the artifacts; made if absent.
        cache: folder of the embedding cache.
        mirror: of a cache on an object store, whose local folder ``cache`` is; None: it is local.
        seed: seed of every stage.
        device: ``auto``, ``cpu`` or ``cuda``.
        resume: continue checkpoints; False removes those of the stages that run.
        process: number of this process among those of an `accelerate launch`. The first one
            keeps the records; the others take part in the shared stages and wait for them.
        processes: how many there are.
        cluster: workers for the tasks of precompute and evaluate; None: this process does them.
    """

    directory: Path
    cache: Path
    seed: int
    device: str
    resume: bool = True
    process: int = 0
    processes: int = 1
    cluster: Cluster | None = None
    mirror: Mirror | None = None

    @property
    def leads(self) -> bool:
        """Whether this process keeps the records."""
        return self.process == 0
