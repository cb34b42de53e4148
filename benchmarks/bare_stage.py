"""A stage run by itself, outside a pipeline: what benchmarks hand to it."""

from pathlib import Path

from pipeline.progress import make_progress
from stages.context import StageContext

__all__ = ["bare_context"]


def bare_context(folder: Path, *, cache: Path, device: str, resume: bool) -> StageContext:
    """A context with no inputs, no bars and seed 0.

    Args:
        folder: of the stage's artifact.
        cache: the cache that it writes or reads.
        device: ``cpu``, ``cuda`` or ``auto``.
        resume: go on with what an earlier run left in ``folder`` or ``cache``.
    """
    return StageContext(
        directory=folder,
        inputs={},
        cache=cache,
        fingerprint="0" * 64,
        seed=0,
        device=device,
        resume=resume,
        progress=make_progress("none"),
    )
