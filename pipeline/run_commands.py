"""Commands that run stages: precompute, train, run, evaluate."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

from typing import TYPE_CHECKING

import click

from pipeline.errors import ConfigError
from pipeline.estimation import estimate_of, print_estimate
from pipeline.execution import execute, only_stages
from pipeline.options import (
    ClusterChoice,
    Invocation,
    cluster_options,
    config_options,
    run_options,
    seeds_option,
    user_models_folder,
)
from pipeline.report_commands import print_report
from pipeline.seed_runs import check_seeds, repeat_with_seeds

if TYPE_CHECKING:
    from pipeline.selection import Selection
    from pipeline.stage_node import StageNode

__all__ = ["evaluate", "precompute", "run", "train"]


_TRAINABLE = ("teacher", "baseline", "encoder", "memory", "finetune")
_DISABLED = {
    "teacher": "teacher.train is false, the teacher is not trained here: --set teacher.train=true",
    "baseline": "baseline.enabled is false: --set baseline.enabled=true",
    "memory": "memory.enabled is false: --set memory.enabled=true",
}


@click.command()
@config_options
@run_options
@cluster_options
@click.option("--estimate", is_flag=True, help="Say what it would take, run nothing.")
def precompute(
    config: str,
    overrides: tuple[str, ...],
    progress: str,
    resume: bool,
    force: tuple[str, ...],
    estimate: bool,
    cluster: ClusterChoice,
) -> None:
    """Run the teacher once over the data and keep what it said in a cache.

    Reads the images of data.source and the teacher's weights; writes the cache (cache.path, or
    <run.dir>/cache). A killed run continues where it stopped. Everything later needs the cache
    alone: copy it to the machine that trains. A cache that does not fit on the disk is refused
    before anything is written (exit code 5), with the settings that would; --estimate says
    beforehand how large it gets and how long it takes. With --workers or --scheduler the work is
    done by many processes, on this machine or on others: docs/many_machines.md.

    \b
    efficient-medsam2 precompute -c laptop --set data.source=/data/ct --set cache.path=ct.cache
    efficient-medsam2 precompute -c laptop --scheduler tcp://10.0.0.5:8786
    """
    if estimate:
        from pipeline.config import load_config

        loaded = load_config(config, overrides, models=user_models_folder())
        print_estimate(estimate_of(loaded, sample=True))
        return
    invocation = Invocation(
        command=("precompute",),
        config=config,
        overrides=overrides,
        progress=progress,
        cluster=cluster,
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
@seeds_option
@cluster_options
def run(
    config: str,
    overrides: tuple[str, ...],
    progress: str,
    resume: bool,
    force: tuple[str, ...],
    from_stage: str | None,
    only: tuple[str, ...],
    seeds: int,
    cluster: ClusterChoice,
) -> None:
    """Run every stage that is not fresh, in order, and write the report.

    Reads and writes <run.dir>; `efficient-medsam2 plan` says beforehand what would run and why.
    With --only or --from the stages before must be there already. --seeds 3 repeats the student's
    stages with the next two seeds in <run.dir>/seeds, from the same cache (--force is for the run's
    own seed); the report then tells means and deviations.

    \b
    efficient-medsam2 run -c laptop
    efficient-medsam2 run -c laptop --from memory --set memory.steps=2000
    """
    check_seeds(seeds, selects=bool(only) or from_stage is not None)

    def select(graph: tuple["StageNode", ...]) -> "Selection":
        from pipeline.selection import Selection

        return Selection(only=only, from_stage=from_stage, force=frozenset(force))

    options = [word for stage in only for word in ("--only", stage)]
    options += [] if from_stage is None else ["--from", from_stage]
    options += [] if seeds == 1 else ["--seeds", str(seeds)]
    invocation = Invocation(
        command=("run",),
        options=tuple(options),
        config=config,
        overrides=overrides,
        progress=progress,
        cluster=cluster,
    )
    ran = execute(invocation, resume, force, select)
    repeated = repeat_with_seeds(invocation, seeds, resume=resume, again=invocation)
    if repeated or "evaluate" in ran.stages:
        print_report(ran.directory)


@click.command()
@config_options
@run_options
@cluster_options
def evaluate(
    config: str,
    overrides: tuple[str, ...],
    progress: str,
    resume: bool,
    force: tuple[str, ...],
    cluster: ClusterChoice,
) -> None:
    """Measure the trained students on raw files, as they would be deployed.

    Reads the weights in <run.dir> and the images of data.source; writes <run.dir>/evaluate. The
    same as `run --only evaluate`. With --workers or --scheduler a case is a task.

    \b
    efficient-medsam2 evaluate -c laptop --force evaluate
    """
    invocation = Invocation(
        command=("evaluate",),
        config=config,
        overrides=overrides,
        progress=progress,
        cluster=cluster,
    )
    execute(invocation, resume, force, lambda graph: only_stages(("evaluate",), force))
