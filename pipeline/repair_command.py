"""``cache repair``: find what is bad, compute exactly that again, and look once more."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import PROGRAM, progress_option, user_models_folder

if TYPE_CHECKING:
    from cache.verify import VerifyReport
    from stages.context import Progress

__all__ = ["cache_repair"]

_ROUNDS = 2
"""Behind a damaged header nothing else is seen: what it hid is mended in the second round."""


@click.command("repair")
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path, file_okay=False))
@click.option("config", "-c", "--config", metavar="CONFIG", help="The config it was made with.")
@click.option("overrides", "--set", multiple=True, metavar="KEY=VALUE", help="As for precompute.")
@progress_option
def cache_repair(path: Path, config: str | None, overrides: tuple[str, ...], progress: str) -> None:
    """Mend the cache in the folder PATH: verify it, make exactly what is bad again, verify again.

    Array metadata, statistics and the completion mark are written again from the cache itself.
    Bad shards and a damaged index are made again from the raw data and the teacher of CONFIG, the
    one that the cache was made with; sound shards are not touched. Exit code 4 if something bad
    is left.

    \b
    efficient-medsam2 cache repair ct.cache -c laptop --set data.source=/data/ct
    """
    from cache import CacheCorruptError
    from pipeline.progress import PROGRESS_KINDS, make_progress

    shown = make_progress(next(kind for kind in PROGRESS_KINDS if kind == progress))
    for _ in range(_ROUNDS):
        report = _verified(path, shown)
        if report is not None and report.ok and not _lacks_only_its_end(path, report):
            break
        _mend(path, report, config, overrides, shown)
    report = _verified(path, shown)
    if report is None or not report.ok:
        bad = 1 if report is None else len(report.bad)
        raise CacheCorruptError(
            f"{path}: {bad} bad parts are left. If the disk is failing, copy the cache to "
            f"another one and repair it there: {PROGRAM} cache repair COPY -c CONFIG"
        )
    missing = {space: count for space, count in report.missing.items() if count}
    if missing:
        names = ", ".join(f"{count} of {space}" for space, count in missing.items())
        click.echo(f"nothing is bad; not written yet: {names} (shards); precompute continues there")
    else:
        click.echo(f"sound: {report.checked} of {report.total} shard files compared, 0 bad")


def _verified(path: Path, shown: "Progress") -> "VerifyReport | None":
    """Look at everything; ``None`` where the header itself is damaged."""
    from cache import CacheCorruptError, verify

    try:
        report = verify(path)
    except CacheCorruptError as error:
        click.echo(f"bad: {error}")
        return None
    for part in report.bad:
        click.echo(f"bad: {part}")
    return report


def _lacks_only_its_end(path: Path, report: "VerifyReport") -> bool:
    from cache.layout import read_complete_mark

    return not any(report.missing.values()) and read_complete_mark(path) is None


def _mend(
    path: Path,
    report: "VerifyReport | None",
    config: str | None,
    overrides: tuple[str, ...],
    shown: "Progress",
) -> None:
    from cache import CacheMissingError
    from cache.repair import mend

    needed = ["the header"]
    if report is not None:
        mended = mend(path, report)
        for line in mended.lines:
            click.echo(line)
        if mended.complete:
            return
        needed = ["the index"] if mended.index else []
        for space, shards in mended.missing.items():
            needed += [f"{space} shard {shard}" for shard in shards]
    if config is None:
        raise CacheMissingError(
            f"{path}: to be made again: {', '.join(needed)}. That takes the raw data and the "
            f"teacher: {PROGRAM} cache repair {path} -c CONFIG"
        )
    click.echo(f"made again: {', '.join(needed)}")
    _precompute(path, config, overrides, shown)


def _precompute(path: Path, config: str, overrides: tuple[str, ...], shown: "Progress") -> None:
    from efficient_medsam2.checkpoints import checkpoint_sha256
    from pipeline.artifacts import fingerprint
    from pipeline.config import load_config
    from pipeline.run_lock import locked
    from pipeline.stage_graph import build_graph
    from stages.cases import source_is_present
    from stages.context import StageContext

    loaded = load_config(config, (*overrides, f"cache.path={path}"), models=user_models_folder())
    trained = loaded.run.dir / "teacher"
    if not source_is_present(loaded.data):
        raise click.UsageError(
            f"the raw data are not here ({loaded.data.source}), and rows are made from them: "
            "--set data.source=FOLDER"
        )
    checkpoint = trained / "model" if loaded.teacher.train else loaded.teacher.checkpoint
    checkpoint_sha256(loaded.teacher.kind, checkpoint)  # names what is missing, and where from
    node = next(node for node in build_graph(loaded) if node.name == "precompute")
    loaded.run.dir.mkdir(parents=True, exist_ok=True)
    with locked(loaded.run.dir):
        node.run(
            StageContext(
                directory=path,
                inputs={"teacher": trained} if loaded.teacher.train else {},
                cache=path,
                fingerprint=fingerprint(node.settings, {}),
                seed=loaded.run.seed,
                device=loaded.run.device,
                resume=True,
                progress=shown,
            )
        )
