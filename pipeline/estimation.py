"""The estimate that `plan` and `precompute --estimate` print."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pipeline.config import Config
    from stages.estimate_records import CacheEstimate

__all__ = ["estimate_of", "print_estimate", "sample_option"]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def sample_option(command: CommandT) -> CommandT:
    """Add ``--sample/--no-sample``."""
    return click.option(
        "--sample/--no-sample",
        default=True,
        show_default=True,
        help="Measure a few rows to tell the time.",
    )(command)


def estimate_of(config: "Config", *, sample: bool) -> "CacheEstimate":
    """What the cache of a config would hold and take, measured as the run would run."""
    from cache.sizes import NO_END
    from stages.estimate import estimate

    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    return estimate(
        config.data,
        config.teacher,
        config.cache,
        config.precompute,
        folder=config.cache_folder,
        trained_teacher=config.run.dir / "teacher" / "model" if config.teacher.train else None,
        device=config.run.device,
        sample=sample,
        free_bytes=NO_END if config.cache.remote_url is not None else None,
    )


def print_estimate(estimate: "CacheEstimate", *, lines: bool = True) -> None:
    """Print it, unless only the refusal is wanted.

    Raises:
        CacheSpaceError: the cache does not fit; names the settings that would.
    """
    from stages.estimate_size import refusal

    if lines:
        for line in estimate.lines():
            click.echo(line)
    if estimate.size is not None and not estimate.size.fits:
        raise refusal(estimate.size, estimate.alternatives)
