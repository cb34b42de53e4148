"""Commands that only look: plan, status, doctor, cache info, cache verify."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import PROGRAM, Percentage, config_options, progress_option

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.plan import Observation, PlannedStage
    from stages.context import ProgressBar

__all__ = ["cache_group", "doctor", "plan", "status"]

_JSON_HELP = "Print JSON for machines instead of a table."


@click.command()
@config_options
@click.option("as_json", "--json", is_flag=True, help=_JSON_HELP)
def plan(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say which stages would run and why, and how large the cache would be.

    Reads the config and the manifests in <run.dir>; writes nothing.

    \b
    efficient-medsam2 plan -c laptop --set encoder.learning_rate=5e-4
    """
    from pipeline.config import load_config

    loaded = load_config(config, overrides)
    stages, _ = _planned(loaded, digests=False)
    pending = any(stage.name == "precompute" and stage.state != "fresh" for stage in stages)
    estimate = _estimate(loaded) if pending else ()
    if as_json:
        _print_json({"stages": [asdict(stage) for stage in stages], "estimate": list(estimate)})
        return
    _print_table(
        ("stage", "state", "why"),
        [(stage.name, stage.state, "; ".join(stage.reasons)) for stage in stages],
    )
    for line in estimate:
        click.echo(line)


@click.command()
@config_options
@click.option("--verify", is_flag=True, help="Compare contents of files too, not sizes alone.")
@click.option("as_json", "--json", is_flag=True, help=_JSON_HELP)
def status(config: str, overrides: tuple[str, ...], verify: bool, as_json: bool) -> None:
    """Say what a run has made so far, when, and which settings no longer fit.

    Reads the config and the manifests in <run.dir>; writes nothing.

    \b
    efficient-medsam2 status -c laptop --verify
    """
    from pipeline.config import load_config

    stages, observed = _planned(load_config(config, overrides), digests=verify)
    manifests = {stage.name: observed[stage.name].manifest for stage in stages}
    if as_json:
        records = []
        for stage in stages:
            manifest = manifests[stage.name]
            made = None if manifest is None else asdict(manifest)
            records.append({**asdict(stage), "manifest": made})
        _print_json({"stages": records})
        return
    rows = []
    for stage in stages:
        manifest = manifests[stage.name]
        finished = "" if manifest is None else manifest.finished_utc
        rows.append((stage.name, stage.state, finished, "; ".join(stage.reasons)))
    _print_table(("stage", "state", "finished (UTC)", "why"), rows)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/default"),
    show_default=True,
    help="The run folder whose disk is looked at.",
)
@click.pass_context
def doctor(context: click.Context, out: Path) -> None:
    """Check this machine: packages, GPU, memory, disk, extras, presets, the shipped teacher.

    Writes nothing. Each line says ok, warn or fail, and what mends it; the exit code is 0 unless
    one fails.

    \b
    efficient-medsam2 doctor
    """
    from pipeline.doctor import examine_machine

    checks = examine_machine(out)
    _print_table(("check", "verdict", "found"), [(c.name, c.verdict, c.found) for c in checks])
    for check in checks:
        if check.mend:
            click.echo(f"{check.name}: {check.mend}")
    if any(check.verdict == "fail" for check in checks):
        context.exit(1)


@click.group("cache")
def cache_group() -> None:
    """Look at an embedding cache."""


@cache_group.command("info")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("as_json", "--json", is_flag=True, help=_JSON_HELP)
def cache_info(path: Path, as_json: bool) -> None:
    """Say what the cache at PATH holds: teacher, rows, size, whether it is complete.

    \b
    efficient-medsam2 cache info ct.cache
    """
    from pydantic_core import to_jsonable_python

    from cache.verify import describe

    info = to_jsonable_python(describe(path))
    if as_json:
        _print_json(info)
        return
    _print_tree(info)


@cache_group.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--sample", type=Percentage(), metavar="SHARE", help="Check this share of the shards (1%)."
)
@click.option("--full", is_flag=True, help="Check every shard; this is also the default.")
@click.option("--repair", is_flag=True, help="Take bad shards out; precompute writes them again.")
@progress_option
@click.pass_context
def cache_verify(
    context: click.Context,
    path: Path,
    sample: float | None,
    full: bool,
    repair: bool,
    progress: str,
) -> None:
    """Compare the cache at PATH with its own ledger: index, shards, statistics.

    Sizes are always compared; contents of all shards, or of a --sample of them. Writes nothing
    without --repair. Exit code 4 if anything is bad and was not taken out.

    \b
    efficient-medsam2 cache verify ct.cache --sample 1%
    efficient-medsam2 cache verify ct.cache --repair
    """
    from cache.verify import discard_bad, verify
    from pipeline.progress import PROGRESS_KINDS, make_progress

    if full and sample is not None:
        raise click.UsageError("--full and --sample exclude each other: give one of them")
    shown = make_progress(next(kind for kind in PROGRESS_KINDS if kind == progress))
    with ExitStack() as stack:
        bars: list[ProgressBar] = []

        def advance(checked: int, total: int) -> None:
            if not bars:
                bar = shown.bar(total=total, description="verify", unit="file")
                bars.append(stack.enter_context(bar))
            bars[0].update(1)

        report = verify(path, sample=sample, progress=advance)
    for part in report.bad:
        click.echo(f"bad: {part}")
    click.echo(f"{report.checked} of {report.total} shard files compared, {len(report.bad)} bad")
    absent = {space: count for space, count in report.missing.items() if count}
    if absent:
        names = ", ".join(f"{count} of {space}" for space, count in absent.items())
        click.echo(f"not written yet: {names} (shards); precompute continues there")
    if report.bad and repair:
        for line in discard_bad(path, report):
            click.echo(line)
        click.echo(f"repaired: now {PROGRAM} precompute -c CONFIG --set cache.path={path}")
    elif report.bad:
        click.echo(f"mend: {PROGRAM} cache verify --repair {path}", err=True)
        context.exit(4)


def _planned(
    config: "Config", *, digests: bool
) -> tuple[tuple["PlannedStage", ...], dict[str, "Observation"]]:
    from pipeline.plan import observe
    from pipeline.plan import plan as plan_stages
    from pipeline.stage_graph import build_graph

    graph = build_graph(config)
    observed = observe(graph, config.run.dir, digests=digests)
    return plan_stages(graph, observed), observed


def _estimate(config: "Config") -> tuple[str, ...]:
    """Lines on the size of the cache and the time it takes."""
    from stages.estimate import estimate

    return tuple(estimate(config.data, config.teacher, config.cache, config.precompute))


def _print_json(value: Any) -> None:  # noqa: ANN401 (any JSON value)
    click.echo(json.dumps(value, indent=2, default=str))


def _print_tree(values: Mapping[str, Any], indent: str = "") -> None:
    """Print nested values, one a line; numbers with their thousands apart."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            click.echo(f"{indent}{name}:")
            _print_tree(value, indent + "  ")
        else:
            click.echo(f"{indent}{name}: {f'{value:,}' if isinstance(value, int) else value}")


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell; the last one is free."""
    table = [tuple(titles), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(titles) - 1)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())
