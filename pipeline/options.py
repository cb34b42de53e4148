"""Options that several commands take, and how a command is typed again."""

import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from pipeline.presets import PRESETS, preset_names

__all__ = [
    "PROGRAM",
    "ClusterChoice",
    "Invocation",
    "OutputFile",
    "Percentage",
    "SchedulerAddress",
    "cluster_options",
    "config_options",
    "patience_option",
    "run_options",
    "seeds_option",
    "setting_text",
    "user_models_folder",
]

PROGRAM = "efficient-medsam2"

_SCHEDULER = re.compile(r"((tcp|tls|ws|wss|ucx)://)?([^\s/:\[\]]+|\[[0-9a-fA-F:.%]+\]):\d{1,5}")

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

    def with_settings(self, settings: Mapping[str, Any], force: Sequence[str] = ()) -> str:
        """Give the command line with these settings on top."""
        texts = [setting_text(key, value) for key, value in settings.items()]
        return replace(self, overrides=(*self.overrides, *texts)).text(force)

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


def setting_text(key: str, value: object) -> str:
    """Give a setting as ``--set`` takes it."""
    if isinstance(value, Mapping):
        value = "{" + ", ".join(f"{name}: {word}" for name, word in value.items()) + "}"
    return f"{key}={value}"


def user_models_folder() -> Path:
    """Folder of pulled models of whoever types the command."""
    from pipeline.model_store import models_folder

    return models_folder(os.environ, platform=sys.platform, home=Path.home())


class OutputFile(click.Path):
    """A file that is written at the end: that it can be is found out at the beginning."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """Read the text."""
        file = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not file.parent.is_dir():
            self.fail(f"{file}: there is no folder {file.parent}", param, ctx)
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            self.fail(f"{file} cannot be written: its permissions are against it", param, ctx)
        return file


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


class SchedulerAddress(click.ParamType[str]):
    """Where a Dask scheduler listens: ``tcp://host:port``, ``tls://...``, or ``host:port``."""

    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Read the text."""
        text = str(value).strip()
        if not _SCHEDULER.fullmatch(text):
            self.fail(
                f"{text!r} is no address of a Dask scheduler: give the one that `dask scheduler` "
                "prints, such as tcp://10.0.0.5:8786",
                param,
                ctx,
            )
        return text


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
        type=SchedulerAddress(),
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


def patience_option(command: CommandT) -> CommandT:
    """Add ``--patience``."""
    return click.option(
        "patience",
        "--patience",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="Ask an object store that does not answer again for so long; else 60 s, and longer "
        "where much is read or written and it has answered before.",
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
