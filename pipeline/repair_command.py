"""``cache repair``: find what is bad, compute exactly that again, and look once more."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import PROGRAM, patience_option, progress_option
from pipeline.repair_computing import Computing, prepared, wants_config

if TYPE_CHECKING:
    from cache.mirror import Mirror
    from cache.verify import VerifyReport
    from stages.context import Progress

__all__ = ["cache_repair"]

_ROUNDS = 2
"""Behind a damaged header nothing else is seen: what it hid is mended in the second round."""


@click.command("repair")
@click.argument("place", metavar="PATH")
@click.option("config", "-c", "--config", metavar="CONFIG", help="The config it was made with.")
@click.option("overrides", "--set", multiple=True, metavar="KEY=VALUE", help="As for precompute.")
@progress_option
@patience_option
def cache_repair(
    place: str,
    config: str | None,
    overrides: tuple[str, ...],
    progress: str,
    patience: float | None,
) -> None:
    """Mend the cache at PATH: verify it, make exactly what is bad again, verify again.

    PATH is a folder or an address of an object store.

    Array metadata, statistics and the completion mark are written again from the cache itself.
    Bad shards, a damaged index and damaged files beside the rows (splits, the teacher's weights)
    are made again from the raw data and the teacher of CONFIG, the one that the cache was made
    with; sound shards are not touched, and the teacher's weights alone take no raw data. Other
    settings, another teacher, and what is not here are found out before anything is taken out. A
    cache of an earlier version, sound but without digests of the files beside its rows, gets them.
    A repair that was stopped goes on when it is typed again. Exit code 4 if something bad is left.

    \b
    efficient-medsam2 cache repair ct.cache -c laptop --set data.source=/data/ct
    efficient-medsam2 cache repair s3://bucket/ct.cache -c laptop
    """
    from pipeline.progress import PROGRESS_KINDS, make_progress

    shown = make_progress(next(kind for kind in PROGRESS_KINDS if kind == progress))
    with _opened(place, config, overrides, patience, shown.note) as (path, mirror):
        _repair(path, mirror, config, overrides, shown)


@contextmanager
def _opened(
    place: str,
    config: str | None,
    overrides: tuple[str, ...],
    patience: float | None,
    note: Callable[[str], None],
) -> Generator[tuple[Path, "Mirror | None"], None, None]:
    """The folder of the cache; of one at an address the mirror too, as the config wants it."""
    from cache.address import is_address
    from pipeline.config import load_config
    from pipeline.object_store import cache_at, mirror_of, patience_of

    if config is None or not is_address(place):
        with cache_at(place, patience=patience_of(patience), note=note) as found:
            yield found
        return
    own = [f"cache.path={json.dumps(place)}"]
    own += [] if patience is None else [f"cache.mirror.patience_seconds={patience}"]
    with mirror_of(load_config(config, (*overrides, *own)), note=note) as mirror:
        assert mirror is not None  # it is an address
        yield mirror.path, mirror


def _repair(
    path: Path,
    mirror: "Mirror | None",
    config: str | None,
    overrides: tuple[str, ...],
    shown: "Progress",
) -> None:
    from cache import CacheCorruptError
    from cache.address import place_of

    for _ in range(_ROUNDS):
        report = _verified(path, mirror, shown)
        needed = _to_be_computed(report)
        if report is not None and report.ok and not needed and not _lacks_its_end(path):
            break
        # Whatever could stop the computing is found out before anything is taken out.
        computing = prepared(path, needed, config, overrides) if needed else None
        _mend(path, mirror, report, computing, shown)
    report = _verified(path, mirror, shown)
    if report is None or not report.ok or any(report.missing.values()):
        bad = 1 if report is None else len(report.bad) + sum(report.missing.values())
        raise CacheCorruptError(
            f"{place_of(path)}: {bad} bad parts are left. If the disk is failing, copy "
            f"the cache to another one and repair it there: {PROGRAM} cache repair COPY -c CONFIG"
        )
    if report.side_files is None:
        _cover(path, mirror)
    click.echo(f"sound: {report.checked} of {report.total} shard files compared, 0 bad")


def _verified(path: Path, mirror: "Mirror | None", shown: "Progress") -> "VerifyReport | None":
    """Look at everything; ``None`` where the header itself is damaged."""
    from cache import CacheCorruptError, verify

    try:
        report = verify(path, mirror=mirror)
    except CacheCorruptError as error:
        click.echo(f"bad: {error}")
        return None
    for part in report.bad:
        click.echo(f"bad: {part}")
    return report


def _cover(path: Path, mirror: "Mirror | None") -> None:
    """Have what lies beside the rows compared from now on, where it never was."""
    from cache.repair import cover
    from stages.side_files import record, side_file_names

    names = side_file_names(path)
    if names:
        cover(path, record, mirror=mirror)
        click.echo(f"recorded as they are, for there were no digests: {', '.join(names)}")


def _lacks_its_end(path: Path) -> bool:
    from cache.layout import read_complete_mark

    return read_complete_mark(path) is None


def _to_be_computed(report: "VerifyReport | None") -> list[str]:
    """What only the raw data and the teacher can give again."""
    from cache.schema import ROW_SPACES

    if report is None:
        return ["the header"]
    needed = ["the index"] if any(part.space == "index" for part in report.bad) else []
    for space in ROW_SPACES:
        shards = {part.shard for part in report.bad if part.space == space}
        needed += [f"{space} shard {shard}" for shard in sorted(k for k in shards if k is not None)]
        # A shard that is bad for want of its ledger entry is missing too.
        others = report.missing[space] - sum(
            part.space == space and part.array == "all" for part in report.bad
        )
        needed += [f"{others} unwritten shards of {space}"] if others > 0 else []
    return needed + [part.array for part in report.bad if part.space == "files"]


def _mend(
    path: Path,
    mirror: "Mirror | None",
    report: "VerifyReport | None",
    computing: Computing | None,
    shown: "Progress",
) -> None:
    from cache.repair import mend

    needed = ["the header"]
    if report is not None:
        mended = mend(path, report, mirror=mirror)
        for line in mended.lines:
            click.echo(line)
        if mended.complete:
            return
        needed = ["the index"] if mended.index else []
        for space, shards in mended.missing.items():
            needed += [f"{space} shard {shard}" for shard in shards]
        needed += mended.side_files
    if computing is None:  # what looked whole was not: a ledger entry was bad
        raise wants_config(path, needed)
    click.echo(f"made again: {', '.join(needed)}")
    computing.run(path, mirror, shown)
