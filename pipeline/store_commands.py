"""Commands for caches on object stores: cache copy, cache unlock."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.object_store import open_remote, patience_of
from pipeline.options import patience_option, progress_option

if TYPE_CHECKING:
    from stages.context import ProgressBar

__all__ = ["cache_copy", "cache_unlock"]


@click.command("copy")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@progress_option
@patience_option
def cache_copy(source: str, destination: str, progress: str, patience: float | None) -> None:
    """Copy the cache at SRC to DST; one of them is an address such as s3://bucket/prefix.

    What is the same at DST already is not copied again, so a copy that was stopped goes on when
    it is typed again. Every file is compared with the ledger on its way.

    \b
    efficient-medsam2 cache copy ct.cache s3://bucket/ct.cache
    efficient-medsam2 cache copy s3://bucket/ct.cache ct.cache
    """
    from cache.copying import download_cache, upload_cache
    from pipeline.progress import PROGRESS_KINDS, make_progress

    if ("://" in source) == ("://" in destination):
        raise click.UsageError(
            "one of SRC and DST is a folder, the other an address such as s3://bucket/prefix"
        )
    shown = make_progress(next(kind for kind in PROGRESS_KINDS if kind == progress))
    with ExitStack() as stack:
        bars: list[ProgressBar] = []

        def advance(done: int, total: int) -> None:
            if not bars:
                bar = shown.bar(total=total, description="copy", unit="shard")
                bars.append(stack.enter_context(bar))
            bars[0].update(1)

        uploads = "://" in destination
        remote = open_remote(
            destination if uploads else source,
            {},
            patience=patience_of(patience),
            note=shown.note,
        )
        if uploads:
            copied = upload_cache(Path(source), remote, progress=advance)
        else:
            copied = download_cache(remote, Path(destination), progress=advance)
    click.echo(f"{copied} shards copied to {destination}")


@click.command("unlock")
@click.argument("place", metavar="URL")
@click.option("--force", is_flag=True, help="Although the writer showed a sign of life just now.")
@patience_option
def cache_unlock(place: str, force: bool, patience: float | None) -> None:
    """Remove the lock that a writer which was killed on another machine left at URL.

    Make sure that it is dead: two writers would spoil each other's work.

    \b
    efficient-medsam2 cache unlock s3://bucket/ct.cache
    """
    from cache.remote_lock import unlock

    if "://" not in place:
        raise click.UsageError(
            f"{place}: the lock of a folder ends with its writer, however that ends, so there is "
            "nothing to remove. An address begins with s3://bucket, gs://bucket or az://account"
        )
    remote = open_remote(
        place, {}, patience=patience_of(patience, brief=True), note=partial(click.echo, err=True)
    )
    click.echo(unlock(remote, force=force))
