"""Commands that only look: plan, status, doctor, cache info, cache verify."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.estimation import estimate_of, print_estimate, sample_option
from pipeline.options import (
    PROGRAM,
    ClusterChoice,
    Percentage,
    cluster_options,
    config_options,
    progress_option,
    user_models_folder,
)
from pipeline.text_table import print_table

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.plan import Observation, PlannedStage
    from stages.context import ProgressBar

__all__ = ["cache_group", "doctor", "plan", "status"]

_JSON_HELP = "Print JSON for machines instead of a table."


@click.command()
@config_options
@sample_option
@click.option("as_json", "--json", is_flag=True, help=_JSON_HELP)
def plan(config: str, overrides: tuple[str, ...], sample: bool, as_json: bool) -> None:
    """Say which stages would run and why, and what the cache would hold and take.

    Reads the config and the manifests in <run.dir>. Where precompute is still to run: bytes of
    every array against the free disk, and the time, from a short measured sample (up to 20 s; its
    few rows are written beside the cache and removed). Exit code 5 where the cache does not fit,
    with the settings that would.

    \b
    efficient-medsam2 plan -c laptop --set encoder.learning_rate=5e-4
    """
    from pipeline.config import load_config

    loaded = load_config(config, overrides, models=user_models_folder())
    stages, _ = _planned(loaded, digests=False)
    pending = any(stage.name == "precompute" and stage.state != "fresh" for stage in stages)
    if not as_json:
        print_table(
            ("stage", "state", "why"),
            [(stage.name, stage.state, "; ".join(stage.reasons)) for stage in stages],
        )
    estimate = estimate_of(loaded, sample=sample) if pending else None
    if as_json:
        made = None if estimate is None else estimate.to_json()
        _print_json({"stages": [asdict(stage) for stage in stages], "estimate": made})
    if estimate is not None:
        print_estimate(estimate, lines=not as_json)


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

    stages, observed = _planned(
        load_config(config, overrides, models=user_models_folder()), digests=verify
    )
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
    print_table(("stage", "state", "finished (UTC)", "why"), rows)


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
    print_table(("check", "verdict", "found"), [(c.name, c.verdict, c.found) for c in checks])
    for check in checks:
        if check.mend:
            click.echo(f"{check.name}: {check.mend}")
    if any(check.verdict == "fail" for check in checks):
        context.exit(1)


@click.group("cache")
def cache_group() -> None:
    """Look at an embedding cache."""


@cache_group.command("info")
@click.argument("place", metavar="PATH")
@click.option("as_json", "--json", is_flag=True, help=_JSON_HELP)
def cache_info(place: str, as_json: bool) -> None:
    """Say what the cache at PATH holds: teacher, rows, size, whether it is complete.

    PATH is a folder or an address of an object store.

    \b
    efficient-medsam2 cache info ct.cache
    efficient-medsam2 cache info s3://bucket/ct.cache
    """
    from pydantic_core import to_jsonable_python

    from cache.verify import describe
    from pipeline.object_store import cache_at

    with cache_at(place) as (path, _):
        info = to_jsonable_python(describe(path))
    if as_json:
        _print_json(info)
        return
    levels = info.pop("levels")
    _print_tree(info)
    print_table(
        ("level", "stored as", "bytes per slice", "bytes"),
        [
            (name, of["encoding"], f"{of['bytes_per_slice']:,.0f}", f"{of['bytes']:,}")
            for name, of in levels.items()
        ],
    )


@cache_group.command("verify")
@click.argument("place", metavar="PATH")
@click.option(
    "--sample", type=Percentage(), metavar="SHARE", help="Check this share of the shards (1%)."
)
@click.option("--full", is_flag=True, help="Check every shard; this is also the default.")
@click.option("--repair", is_flag=True, help="Take bad shards out; precompute writes them again.")
@progress_option
@cluster_options
@click.pass_context
def cache_verify(
    context: click.Context,
    place: str,
    sample: float | None,
    full: bool,
    repair: bool,
    progress: str,
    cluster: ClusterChoice,
) -> None:
    """Compare the cache at PATH with its own ledger: index, shards, statistics.

    Sizes are always compared; contents of all shards, or of a --sample of them. Writes nothing
    without --repair. Exit code 4 if anything is bad and was not taken out.

    \b
    efficient-medsam2 cache verify ct.cache --sample 1%
    efficient-medsam2 cache verify ct.cache --repair
    efficient-medsam2 cache verify s3://bucket/ct.cache
    """
    from cache.repair import discard_bad
    from cache.verify import verify
    from pipeline.cluster import open_cluster
    from pipeline.object_store import cache_at
    from pipeline.progress import PROGRESS_KINDS, make_progress
    from stages.cluster_verify import digest_on_workers

    if full and sample is not None:
        raise click.UsageError("--full and --sample exclude each other: give one of them")
    shown = make_progress(next(kind for kind in PROGRESS_KINDS if kind == progress))
    with ExitStack() as stack:
        path, mirror = stack.enter_context(cache_at(place))
        bars: list[ProgressBar] = []

        def advance(checked: int, total: int) -> None:
            if not bars:
                bar = shown.bar(total=total, description="verify", unit="file")
                bars.append(stack.enter_context(bar))
            bars[0].update(1)

        workers = stack.enter_context(open_cluster(cluster, threads=1, note=shown.note))
        reopen = None if mirror is None else mirror.remote.reopen
        report = verify(
            path,
            sample=sample,
            progress=advance,
            mirror=mirror,
            digest_files=(
                None
                if workers is None
                else partial(digest_on_workers, workers, path, reopen=reopen)
            ),
        )
        discarded: tuple[str, ...] = ()
        if report.bad and repair:
            discarded = discard_bad(path, report, mirror=mirror)
    for part in report.bad:
        click.echo(f"bad: {part}")
    click.echo(f"{report.checked} of {report.total} shard files compared, {len(report.bad)} bad")
    absent = {space: count for space, count in report.missing.items() if count}
    if absent:
        names = ", ".join(f"{count} of {space}" for space, count in absent.items())
        click.echo(f"not written yet: {names} (shards); precompute continues there")
    if report.bad and repair:
        for line in discarded:
            click.echo(line)
        click.echo(f"repaired: now {PROGRAM} precompute -c CONFIG --set cache.path={place}")
    elif report.bad:
        click.echo(f"mend: {PROGRAM} cache repair {place} -c CONFIG", err=True)
        context.exit(4)


def _planned(
    config: "Config", *, digests: bool
) -> tuple[tuple["PlannedStage", ...], dict[str, "Observation"]]:
    from pipeline.object_store import mirror_of
    from pipeline.plan import observe
    from pipeline.plan import plan as plan_stages
    from pipeline.stage_graph import build_graph

    with mirror_of(config):
        graph = build_graph(config)
        observed = observe(graph, config.run.dir, digests=digests)
    return plan_stages(graph, observed), observed


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
