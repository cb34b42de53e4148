"""Options that several commands take, and how a command is typed again."""

import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from pipeline.config_file import PRESETS, preset_names

__all__ = [
    "PROGRAM",
    "ClusterChoice",
    "Invocation",
    "Percentage",
    "cluster_options",
    "config_options",
    "run_options",
    "seeds_option",
    "user_models_folder",
]

PROGRAM = "efficient-medsam2"

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class ClusterChoice:
    """Where a command's tasks run: in its own process, where neither is given.

    Attributes:
        workers: ``--workers``.
        scheduler: ``--scheduler``.
    """

    workers: int | None = None
    scheduler: str | None = None

    def words(self) -> list[str]:
        """Give it as options."""
        words = [] if self.workers is None else ["--workers", str(self.workers)]
        return words + ([] if self.scheduler is None else ["--scheduler", self.scheduler])


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What the user typed: enough to type it again.

    Attributes:
        command: words of the command, such as ``("train", "encoder")``.
        options: options of that command alone, such as ``("--from", "memory")``.
        config: ``-c``; None for a command that has none.
        overrides: every ``--set``.
        progress: ``--progress``.
        cluster: ``--workers`` and ``--scheduler``.
    """

    command: tuple[str, ...]
    options: tuple[str, ...] = ()
    config: str | None = None
    overrides: tuple[str, ...] = ()
    progress: str = "auto"
    cluster: ClusterChoice = ClusterChoice()

    def text(self, force: Sequence[str] = ()) -> str:
        """Give the command line, with ``--force`` for the named stages."""
        words = [*self._words(self.command), *self.options]
        for stage in sorted(force):
            words += ["--force", stage]
        if self.progress != "auto":
            words += ["--progress", self.progress]
        return shlex.join([*words, *self.cluster.words()])

    def stage_text(self, stage: str, force: bool) -> str:
        """Give the command line that runs one stage with the same config."""
        words = self._words(_command_of(stage))
        return shlex.join([*words, *(("--force", stage) if force else ())])

    def _words(self, command: tuple[str, ...]) -> list[str]:
        words = [PROGRAM, *command]
        if self.config is not None:
            words += ["-c", self.config]
        for override in self.overrides:
            words += ["--set", override]
        return words


def user_models_folder() -> Path:
    """Folder of pulled models of whoever types the command."""
    from pipeline.model_store import models_folder

    return models_folder(os.environ, platform=sys.platform, home=Path.home())


class Percentage(click.ParamType[float]):
    """A share such as ``1%`` or ``0.01``, as a number in (0, 1]."""

    name = "share"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read the text."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            self.fail(f"{text!r} is no share: give 1% or 0.01", param, ctx)
        return share


def config_options(command: CommandT) -> CommandT:
    """Add ``-c/--config`` and ``--set``."""
    names = ", ".join(preset_names(PRESETS))
    presets = f" Presets: {names}." if names else ""
    command = click.option(
        "overrides",
        "--set",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one setting, such as --set encoder.learning_rate=1e-3. Repeatable.",
    )(command)
    return click.option(
        "config",
        "-c",
        "--config",
        required=True,
        metavar="CONFIG",
        help=f"A YAML file or the name of a preset.{presets}",
    )(command)


def run_options(command: CommandT) -> CommandT:
    """Add ``--progress``, ``--resume/--no-resume`` and ``--force``."""
    command = click.option(
        "force",
        "--force",
        multiple=True,
        metavar="STAGE",
        help="Make STAGE again from its beginning although it is fresh. Repeatable.",
    )(command)
    command = click.option(
        "--resume/--no-resume",
        default=True,
        show_default=True,
        help="Continue half-done stages, or begin them anew.",
    )(command)
    return progress_option(command)


def cluster_options(command: CommandT) -> CommandT:
    """Add ``--workers`` and ``--scheduler``, which come as one ``cluster: ClusterChoice``."""

    @functools.wraps(command)
    def chosen(*, workers: int | None, scheduler: str | None, **options: object) -> object:
        if workers is not None and scheduler is not None:
            raise click.UsageError("--workers and --scheduler exclude each other: give one of them")
        cluster = ClusterChoice(workers=workers, scheduler=scheduler)
        return command(cluster=cluster, **options)

    with_scheduler = click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Work on the Dask cluster whose scheduler is there, such as tcp://10.0.0.5:8786; "
        "data, teacher and cache must lie where all its machines see them, the cache perhaps on an "
        "object store.",
    )(chosen)
    return cast(
        CommandT,
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            metavar="N",
            help="Work in N processes of this machine (Dask); by default in this one alone.",
        )(with_scheduler),
    )


def seeds_option(command: CommandT) -> CommandT:
    """Add ``--seeds``."""
    return click.option(
        "--seeds",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Repeat the student's stages with the seeds after the run's own, so many in all.",
    )(command)


def progress_option(command: CommandT) -> CommandT:
    """Add ``--progress``."""
    return click.option(
        "--progress",
        type=click.Choice(["auto", "plain", "none"]),
        default="auto",
        show_default=True,
        help="auto: bars on a terminal, else lines; plain: lines every 10 s; none: silent.",
    )(command)


def _command_of(stage: str) -> tuple[str, ...]:
    if stage in ("precompute", "evaluate"):
        return (stage,)
    return ("train", stage.partition("_")[0])  # finetune_10 belongs to `train finetune`
