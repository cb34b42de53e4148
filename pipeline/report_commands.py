"""Commands that end in a report: demo, report."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.execution import execute
from pipeline.options import Invocation, progress_option, seeds_option
from pipeline.seed_runs import check_seeds, repeat_with_seeds

if TYPE_CHECKING:
    from pipeline.selection import Selection
    from pipeline.stage_node import StageNode

__all__ = ["demo", "print_report", "report"]


@click.command()
@click.option(
    "--data",
    type=click.Choice(["mni152", "phantom"]),
    default="mni152",
    show_default=True,
    help="A real MR volume (needs the demo extra), or shapes drawn on the spot.",
)
@click.option("--train-teacher", is_flag=True, help="Train the teacher too; the shipped one else.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder of the run.",
)
@click.option(
    "overrides", "--set", multiple=True, metavar="KEY=VALUE", help="Change one setting. Repeatable."
)
@seeds_option
@progress_option
def demo(
    data: str,
    train_teacher: bool,
    out: Path,
    overrides: tuple[str, ...],
    seeds: int,
    progress: str,
) -> None:
    """Show the whole pipeline on data that needs no download, then write a report.

    Runs precompute, every training stage and the evaluation of preset `demo` (or `phantom`) in
    the folder --out, on a GPU where there is one, and ends with a table of what each model reaches
    and the path of the report. A killed demo continues when it is typed again.

    \b
    efficient-medsam2 demo --data phantom --out runs/phantom
    """

    def select(graph: tuple["StageNode", ...]) -> "Selection":
        from pipeline.selection import Selection

        return Selection()

    check_seeds(seeds, selects=False)
    preset = "demo" if data == "mni152" else "phantom"
    settings: tuple[str, ...] = (f"run.dir={json.dumps(str(out))}",)
    settings += ("teacher.train=true",) if train_teacher else ()
    again: tuple[str, ...] = ("demo", "--data", data, "--out", str(out))
    again += ("--train-teacher",) if train_teacher else ()
    again += () if seeds == 1 else ("--seeds", str(seeds))
    for override in overrides:
        again += ("--set", override)
    invocation = Invocation(
        command=("run",), config=preset, overrides=settings + overrides, progress=progress
    )
    typed = Invocation(command=again, progress=progress)
    execute(invocation, True, (), select, resume_invocation=typed)
    repeat_with_seeds(invocation, seeds, resume=True, again=typed)
    print_report(out)


@click.command()
@click.argument(
    "run_dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=False,
)
@click.option("config", "-c", "--config", metavar="CONFIG", help="Report on this config's run.dir.")
@click.option("overrides", "--set", multiple=True, metavar="KEY=VALUE", help="As for run.")
def report(run_dir: Path | None, config: str | None, overrides: tuple[str, ...]) -> None:
    """Write a page about the run in RUN_DIR, or in the config's run.dir.

    Reads the manifests, curves and metrics of its stages; writes report.html (one self-contained
    file) and report.json beside them.

    \b
    efficient-medsam2 report runs/demo
    efficient-medsam2 report -c laptop
    """
    if config is not None:
        from pipeline.config import load_config

        run_dir = load_config(config, overrides).run.dir
    if run_dir is None:
        raise click.UsageError("say which run: efficient-medsam2 report RUN_DIR, or -c CONFIG")
    print_report(run_dir)


def print_report(run_dir: Path) -> None:
    """Write the report, print its table, the checks that failed, and where the page is."""
    from pipeline.report import summary_table, write_report

    files = write_report(run_dir)
    document = json.loads(files.json.read_text())
    click.echo(summary_table(document["rows"]))
    for check in document["checks"]:
        if check["ok"] is False:
            line = f"falls short: {check['name']}: {check['value']} (wanted {check['wanted']})"
            click.secho(line, fg="red")
    click.echo(f"report: {files.html}")
