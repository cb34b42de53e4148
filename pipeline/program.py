"""The commands of ``efficient-medsam2``, each imported when it is asked for."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from pipeline.options import PROGRAM

__all__ = ["program"]


class _Group(click.Group):
    """A group that imports a command when it is asked for.

    Args:
        modules: name of a command → module and attribute of it.
    """

    def __init__(self, *arguments: Any, modules: Mapping[str, str], **options: Any) -> None:  # noqa: ANN401 - click's
        super().__init__(*arguments, **options)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names of all commands."""
        return sorted({*self._modules, *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; ``None`` where there is none of that name."""
        if cmd_name not in self._modules:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._modules[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    try:
        version = metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        version = "of a checkout that is not installed (pip install -e .)"
    click.echo(f"{PROGRAM}, version {version}")
    context.exit()


@click.group(
    "cache",
    cls=_Group,
    modules={
        "convert": "pipeline.convert_command:cache_convert",
        "copy": "pipeline.store_commands:cache_copy",
        "info": "pipeline.inspect_commands:cache_info",
        "repair": "pipeline.repair_command:cache_repair",
        "unlock": "pipeline.store_commands:cache_unlock",
        "verify": "pipeline.verify_command:cache_verify",
    },
)
def cache_group() -> None:
    """Look at, check, mend, convert and copy an embedding cache."""


@click.group(
    PROGRAM,
    cls=_Group,
    modules={
        "ablate": "pipeline.ablate_command:ablate",
        "demo": "pipeline.report_commands:demo",
        "doctor": "pipeline.inspect_commands:doctor",
        "evaluate": "pipeline.run_commands:evaluate",
        "models": "pipeline.model_commands:models_group",
        "plan": "pipeline.inspect_commands:plan",
        "precompute": "pipeline.run_commands:precompute",
        "report": "pipeline.report_commands:report",
        "run": "pipeline.run_commands:run",
        "status": "pipeline.inspect_commands:status",
        "train": "pipeline.run_commands:train",
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def program(debug: bool) -> None:
    """Distil MedSAM2 into a small promptable segmentation model.

    Run the teacher once and cache what it says, then train a student from the cache, stage by
    stage. Every stage keeps its result in <run.dir>; a stage whose settings and inputs have not
    changed is not run again.

    \b
    efficient-medsam2 doctor                 is this machine fit?
    efficient-medsam2 models list            which teachers can be had?
    efficient-medsam2 demo --data phantom    the whole pipeline, small
    efficient-medsam2 plan -c laptop         what would run, and why
    efficient-medsam2 run -c laptop          run it

    Exit codes: 0 ok; 1 bug; 2 usage or config; 3 data; 4 cache or artifact stale or corrupt;
    5 not enough disk or memory; 6 a quality gate failed; 7 missing extra or weights;
    130 interrupted.
    """


program.add_command(cache_group)
