"""``cache verify``: compare a cache with what was written."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import shlex
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import click

from pipeline.options import (
    PROGRAM,
    ClusterChoice,
    Percentage,
    cluster_options,
    patience_option,
    progress_option,
)

if TYPE_CHECKING:
    from cache.verify import VerifyReport
    from stages.context import ProgressBar

__all__ = ["cache_verify"]


@click.command("verify")
@click.argument("place", metavar="PATH")
@click.option(
    "--sample", type=Percentage(), metavar="SHARE", help="Check this share of the shards (1%)."
)
@click.option("--full", is_flag=True, help="Check every shard; this is also the default.")
@click.option("--repair", is_flag=True, help="Take bad shards out; precompute writes them again.")
@progress_option
@patience_option
@cluster_options
@click.pass_context
def cache_verify(
    context: click.Context,
    place: str,
    sample: float | None,
    full: bool,
    repair: bool,
    progress: str,
    patience: float | None,
    cluster: ClusterChoice,
) -> None:
    """Compare the cache at PATH with its own ledger: index, shards, statistics, splits, teacher.

    Sizes are always compared; contents of all shards, or of a --sample of them. Writes nothing
    without --repair. Exit code 4 if anything is bad and was not taken out, and if the cache is
    not finished: no stage would take it.

    \b
    efficient-medsam2 cache verify ct.cache --sample 1%
    efficient-medsam2 cache verify ct.cache --repair
    efficient-medsam2 cache verify s3://bucket/ct.cache
    """
    from cache.mending import precompute_command, repair_command
    from cache.repair import discard_bad
    from cache.verify import verify
    from pipeline.cluster import open_cluster
    from pipeline.object_store import cache_at, patience_of
    from pipeline.progress import PROGRESS_KINDS, make_progress
    from stages.cluster_verify import digest_on_workers
    from stages.side_files import side_file_names

    if full and sample is not None:
        raise click.UsageError("--full and --sample exclude each other: give one of them")
    shown = make_progress(next(kind for kind in PROGRESS_KINDS if kind == progress))
    with ExitStack() as stack:
        path, mirror = stack.enter_context(
            cache_at(place, patience=patience_of(patience), note=shown.note)
        )
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
        uncovered = side_file_names(path) if report.side_files is None else ()
    _print_findings(report, place, uncovered)
    if report.bad and repair:
        for line in discarded:
            click.echo(line)
        click.echo(f"repaired: now {precompute_command(place)}")
    elif report.bad:
        click.echo(f"mend: {repair_command(place)}", err=True)
        context.exit(4)
    elif not report.finished:
        click.echo(f"go on: {precompute_command(place)}", err=True)
        context.exit(4)


def _print_findings(report: "VerifyReport", place: str, uncovered: tuple[str, ...]) -> None:
    for part in report.bad:
        click.echo(f"bad: {part}")
    beside = f" and {report.side_files} files beside them" if report.side_files else ""
    click.echo(
        f"{report.checked} of {report.total} shard files{beside} compared, {len(report.bad)} bad"
    )
    if uncovered:
        click.echo(_not_covered(place, uncovered))
    if not report.finished:
        click.echo(_unfinished(report))


def _unfinished(report: "VerifyReport") -> str:
    """Say how much of a cache is there that was never declared complete."""
    parts = [
        f"{space} {total - report.missing[space]} of {total}"
        for space, total in report.shards.items()
        if total
    ]
    total = sum(report.shards.values())
    there = total - sum(report.missing.values())
    return (
        f"unfinished: {there} of {total} shards are there ({', '.join(parts)}); precompute was "
        "not finished, and no stage takes this cache"
    )


def _not_covered(place: str, names: tuple[str, ...]) -> str:
    """Say that files beside the rows cannot be compared, and what makes it possible."""
    mend = shlex.join([PROGRAM, "cache", "repair", place])
    return (
        f"not covered: {', '.join(names)}: no digests of them were kept when this cache was "
        f"written. Record them as they are: {mend}"
    )
