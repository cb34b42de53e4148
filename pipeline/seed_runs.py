"""A finished run's student stages again with other seeds, from the same cache."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.errors import ConfigError
from pipeline.execution import execute
from pipeline.options import Invocation, user_models_folder

if TYPE_CHECKING:
    from pipeline.stage_node import StageNode

__all__ = ["check_seeds", "repeat_with_seeds"]


def check_seeds(seeds: int, *, selects: bool) -> None:
    """Refuse what cannot be repeated, before anything runs.

    Args:
        seeds: how many seeds are wanted.
        selects: whether the command runs chosen stages alone.

    Raises:
        UsageError: only some stages are run.
        ConfigError: an `accelerate launch`.
    """
    if seeds == 1:
        return
    if selects:
        raise click.UsageError(
            "--seeds repeats all stages of the student: leave out --only, --from"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--seeds runs in one process: start it without accelerate launch")


def repeat_with_seeds(
    invocation: Invocation, seeds: int, *, resume: bool, again: Invocation
) -> bool:
    """Run the student's stages with the ``seeds - 1`` seeds after the run's own.

    Each repetition is a run folder in ``<run.dir>/seeds/<seed>``. The cache and a teacher that the
    run trained are those of the run.

    Args:
        invocation: the run that is repeated.
        seeds: how many seeds there are to be, the run's own included.
        resume: continue half-done stages.
        again: what the user typed.

    Returns:
        Whether an evaluation ran.
    """
    from pipeline.ablation_layout import seed_overrides
    from pipeline.config import load_config
    from pipeline.report_seeds import SEEDS_FOLDER
    from pipeline.selection import Selection

    assert invocation.config is not None
    config = load_config(invocation.config, invocation.overrides, models=user_models_folder())

    def select(graph: tuple["StageNode", ...]) -> Selection:
        return Selection(only=tuple(node.name for node in graph if node.name != "precompute"))

    evaluated = False
    for seed in range(config.run.seed + 1, config.run.seed + seeds):
        folder = config.run.dir / SEEDS_FOLDER / str(seed)
        if invocation.progress != "none":
            click.echo(f"seed {seed}:", err=True)
        ran = execute(
            Invocation(
                command=("run",),
                config=invocation.config,
                overrides=invocation.overrides
                + seed_overrides(
                    folder,
                    seed=seed,
                    cache=config.cache.remote_url or config.cache_folder,
                    teacher=_teacher(config.run.dir) if config.teacher.train else None,
                ),
                progress=invocation.progress,
            ),
            resume,
            (),
            select,
            resume_invocation=again,
        )
        evaluated |= "evaluate" in ran.stages
    return evaluated


def _teacher(run_dir: Path) -> Path:
    return run_dir / "teacher" / "model"
