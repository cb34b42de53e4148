"""Commands that run stages: precompute, train, run, evaluate, demo, report."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.errors import ConfigError
from pipeline.execution import execute, only_stages
from pipeline.options import Invocation, config_options, progress_option, run_options

if TYPE_CHECKING:
    from pipeline.selection import Selection
    from pipeline.stage_node import StageNode

__all__ = ["demo", "evaluate", "precompute", "report", "run", "train"]


_TRAINABLE = ("teacher", "baseline", "encoder", "memory", "finetune")
_DISABLED = {
    "teacher": "teacher.train is false, the teacher is not trained here: --set teacher.train=true",
    "baseline": "baseline.enabled is false: --set baseline.enabled=true",
}


@click.command()
@config_options
@run_options
def precompute(
    config: str, overrides: tuple[str, ...], progress: str, resume: bool, force: tuple[str, ...]
) -> None:
    """Run the teacher once over the data and keep what it said in a cache.

    Reads the images of data.source and the teacher's weights; writes the cache (cache.path, or
    <run.dir>/cache). A killed run continues where it stopped. Everything later needs the cache
    alone: copy it to the machine that trains.

    \b
    efficient-medsam2 precompute -c laptop --set data.source=/data/ct --set cache.path=ct.cache
    """
    invocation = Invocation(
        command=("precompute",), config=config, overrides=overrides, progress=progress
    )
    execute(invocation, resume, force, lambda graph: only_stages(("precompute",), force))


@click.command()
@click.argument("stage", type=click.Choice(_TRAINABLE))
@config_options
@run_options
def train(
    stage: str,
    config: str,
    overrides: tuple[str, ...],
    progress: str,
    resume: bool,
    force: tuple[str, ...],
) -> None:
    """Train one STAGE from the artifacts before it, if it is not fresh.

    \b
    teacher   a small teacher from nothing; reads the images
    encoder   the student's encoder learns the teacher's features; reads the cache
    memory    the student's memory learns the teacher's tracks; reads encoder and cache
    finetune  the whole student learns the labels; reads memory and cache
    baseline  the same student on labels alone, for as many steps; reads the cache

    finetune and baseline train once for each of finetune.label_fractions. Writes weights,
    metrics.jsonl and manifest.json into <run.dir>/STAGE.

    \b
    efficient-medsam2 train encoder -c laptop --set encoder.learning_rate=5e-4
    """

    def select(graph: tuple["StageNode", ...]) -> "Selection":
        from pipeline.selection import stage_family

        names = stage_family(graph, stage)
        if not names:
            raise ConfigError(f"train {stage}: {_DISABLED.get(stage, 'no such stage here')}")
        return only_stages(names, force)

    invocation = Invocation(
        command=("train", stage), config=config, overrides=overrides, progress=progress
    )
    execute(invocation, resume, force, select)


@click.command()
@config_options
@run_options
@click.option("from_stage", "--from", metavar="STAGE", help="Run STAGE and those after it.")
@click.option("only", "--only", metavar="STAGE", multiple=True, help="Run STAGE alone. Repeatable.")
def run(
    config: str,
    overrides: tuple[str, ...],
    progress: str,
    resume: bool,
    force: tuple[str, ...],
    from_stage: str | None,
    only: tuple[str, ...],
) -> None:
    """Run every stage that is not fresh, in order, and write the report.

    Reads and writes <run.dir>; `efficient-medsam2 plan` says beforehand what would run and why.
    With --only or --from the stages before must be there already.

    \b
    efficient-medsam2 run -c laptop
    efficient-medsam2 run -c laptop --from memory --set memory.steps=2000
    """

    def select(graph: tuple["StageNode", ...]) -> "Selection":
        from pipeline.selection import Selection

        return Selection(only=only, from_stage=from_stage, force=frozenset(force))

    options = [word for stage in only for word in ("--only", stage)]
    options += [] if from_stage is None else ["--from", from_stage]
    invocation = Invocation(
        command=("run",),
        options=tuple(options),
        config=config,
        overrides=overrides,
        progress=progress,
    )
    ran = execute(invocation, resume, force, select)
    if "evaluate" in ran.stages:
        _report(ran.directory)


@click.command()
@config_options
@run_options
def evaluate(
    config: str, overrides: tuple[str, ...], progress: str, resume: bool, force: tuple[str, ...]
) -> None:
    """Measure the trained students on raw files, as they would be deployed.

    Reads the weights in <run.dir> and the images of data.source; writes <run.dir>/evaluate. The
    same as `run --only evaluate`.

    \b
    efficient-medsam2 evaluate -c laptop --force evaluate
    """
    invocation = Invocation(
        command=("evaluate",), config=config, overrides=overrides, progress=progress
    )
    execute(invocation, resume, force, lambda graph: only_stages(("evaluate",), force))


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
@progress_option
def demo(
    data: str, train_teacher: bool, out: Path, overrides: tuple[str, ...], progress: str
) -> None:
    """Show the whole pipeline on data that needs no download, then write a report.

    Runs precompute, every training stage and the evaluation of preset `demo` (or `phantom`) in
    the folder --out, and says where the report is. A killed demo continues when it is typed again.

    \b
    efficient-medsam2 demo --data phantom --out runs/phantom
    """

    def select(graph: tuple["StageNode", ...]) -> "Selection":
        from pipeline.selection import Selection

        return Selection()

    preset = "demo" if data == "mni152" else "phantom"
    settings: tuple[str, ...] = (f"run.dir={json.dumps(str(out))}",)
    settings += ("teacher.train=true",) if train_teacher else ()
    again: tuple[str, ...] = ("demo", "--data", data, "--out", str(out))
    again += ("--train-teacher",) if train_teacher else ()
    for override in overrides:
        again += ("--set", override)
    execute(
        Invocation(
            command=("run",), config=preset, overrides=settings + overrides, progress=progress
        ),
        True,
        (),
        select,
        resume_invocation=Invocation(command=again, progress=progress),
    )
    _report(out)


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
    _report(run_dir)


def _report(run_dir: Path) -> None:
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
