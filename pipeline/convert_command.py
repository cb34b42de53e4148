"""The command cache convert."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import (
    PROGRAM,
    ClusterChoice,
    OutputFile,
    cluster_options,
    progress_option,
    setting_text,
)
from pipeline.text_table import print_table

if TYPE_CHECKING:
    from cache.levels import StoredLevel
    from stages.convert import Conversion
    from stages.convert_report import Comparison

__all__ = ["cache_convert"]


class _Levels(click.ParamType["tuple[StoredLevel, ...]"]):
    """Levels with commas between them."""

    name = "levels"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> "tuple[StoredLevel, ...]":
        """Read the text."""
        from cache.levels import STORED_LEVELS

        words = [word.strip() for word in str(value).split(",")]
        unknown = [word for word in words if word not in STORED_LEVELS]
        if unknown:
            self.fail(f"{unknown[0]!r} is none of {', '.join(STORED_LEVELS)}", param, ctx)
        return tuple(level for level in STORED_LEVELS if level in words)


@click.command("convert")
@click.argument("source_text", metavar="SRC")
@click.argument("target_text", metavar="DST")
@click.option(
    "--dtype",
    type=click.Choice(["fp16", "bf16", "fp32", "int8"]),
    help="How features, logits and memories are stored in DST.",
)
@click.option(
    "--levels",
    type=_Levels(),
    help="Levels that --dtype is for, such as s4,s8; all (s4,s8,s16,logits,tracks) without it.",
)
@click.option(
    "format_name", "--to", type=click.Choice(["zarr", "hdf5"]), help="Format of DST; SRC's if none."
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Rows of each array, and prompts, that the report compares.",
)
@click.option(
    "json_file",
    "--json",
    type=OutputFile(),
    help="Write the report there too.",
)
@progress_option
@cluster_options
def cache_convert(
    source_text: str,
    target_text: str,
    dtype: Any,  # noqa: ANN401 - one of the words above
    levels: "tuple[StoredLevel, ...] | None",
    format_name: Any,  # noqa: ANN401 - likewise
    rows: int,
    json_file: Path | None,
    progress: str,
    cluster: ClusterChoice,
) -> None:
    """Write the cache in the folder SRC anew in DST with other stored types or another format.

    Shard by shard; typed again, it goes on where it was stopped. Then the two are compared: errors
    of each level, and the masks that the teacher's decoder makes of either for stored prompts. DST
    is fresh for a config with its cache.dtype and cache.format. Numbers that were coarser once,
    such as int8 converted back to fp16, stay rounded: DST keeps that in mind, and stages take it
    with --set cache.accept_rounded=true alone. Exit code 4 if a value or a mask is not finite.

    \b
    efficient-medsam2 cache convert ct.cache ct8.cache --dtype int8
    efficient-medsam2 cache convert ct.cache mixed.cache --dtype int8 --levels s4,s8
    efficient-medsam2 cache convert ct.cache ct.h5cache --to hdf5 --json report.json
    """
    from cache import CacheCorruptError, CacheReader
    from cache.levels import STORED_LEVELS
    from pipeline.cluster import open_cluster
    from pipeline.progress import PROGRESS_KINDS, make_progress
    from stages.convert import convert
    from stages.convert_report import compare_caches

    if dtype is None and format_name is None:
        raise click.UsageError("nothing to convert: give --dtype, --to, or both")
    if levels is not None and dtype is None:
        raise click.UsageError("--levels says what --dtype is for: give --dtype too")
    if "://" in source_text + target_text:
        raise click.UsageError(
            "cache convert reads and writes folders. A cache on an object store goes through one:"
            f"\n{_through_folders(source_text, target_text, dtype, levels, format_name)}"
        )
    source, target = Path(source_text), Path(target_text)
    shown = make_progress(next(kind for kind in PROGRESS_KINDS if kind == progress))
    with open_cluster(cluster, threads=None, note=shown.note) as workers:
        made = convert(
            source,
            target,
            dtype=dtype,
            levels=levels or STORED_LEVELS,
            format=format_name,
            progress=shown,
            cluster=workers,
        )
    comparison = compare_caches(CacheReader(source), CacheReader(target), rows=rows)
    _print_report(made, comparison)
    if made.rounded:
        before = ", ".join(f"{level} from {word}" for level, word in made.rounded.items())
        click.echo(f"rounded before, and so for good: {before}")
    if not comparison.damage:
        click.echo(f"use it: {_settings(made, target)}")
    if json_file is not None:
        from pipeline.artifacts import write_atomically

        record = {
            "command": shlex.join([PROGRAM, *sys.argv[1:]]),
            "source": str(source),
            "target": str(target),
            "dtype": made.types.identity(),
            "format": made.format,
            "source_bytes": made.source_bytes,
            "target_bytes": made.target_bytes,
            "digest": made.digest,
            **comparison.to_json(),
        }
        write_atomically(json_file, json.dumps(record, indent=2) + "\n")
    if comparison.damage:
        raise CacheCorruptError(
            f"{source} -> {target}: {'; '.join(comparison.damage)}. Do not use {target}; look at "
            f"the source: {PROGRAM} cache verify {source}"
        )


def _through_folders(
    source: str,
    target: str,
    dtype: str | None,
    levels: "tuple[StoredLevel, ...] | None",
    format_name: str | None,
) -> str:
    """The commands that convert a cache at an address, one a line."""
    old, new = (
        place.rstrip("/").rpartition("/")[2] if "://" in place else place
        for place in (source, target)
    )
    if old == new:
        new = f"converted-{new}"
    options = [] if dtype is None else ["--dtype", dtype]
    options += [] if levels is None else ["--levels", ",".join(levels)]
    options += [] if format_name is None else ["--to", format_name]
    lines = [] if old == source else [["copy", source, old]]
    lines += [["convert", old, new, *options]]
    lines += [] if "://" not in target else [["copy", new, target]]
    return "\n".join(f"  {shlex.join([PROGRAM, 'cache', *words])}" for words in lines)


def _print_report(made: "Conversion", comparison: "Comparison") -> None:
    titles = ("level", "array", "from", "to", "rms error", "largest", "cosine", "DSC")
    print_table(
        titles,
        [
            (
                row.level,
                row.name,
                row.before,
                row.after,
                f"{row.relative_rms:.2e}",
                f"{row.largest:.2e}",
                f"{row.cosine:.6f}",
                "" if row.dsc is None else f"{row.dsc:.4f}",
            )
            for row in comparison.arrays
        ],
    )
    decoder = comparison.decoder
    if decoder is None:
        click.echo("decoder: the cache has no prompts to ask it for")
    else:
        click.echo(
            f"decoder on {decoder.prompts} prompts: DSC {decoder.mean:.4f} "
            f"(5th percentile {decoder.percentile_5:.4f}, smallest {decoder.smallest:.4f})"
        )
    share = made.target_bytes / made.source_bytes
    click.echo(f"{made.source_bytes:,} bytes -> {made.target_bytes:,} bytes ({share:.2f})")


def _settings(made: "Conversion", target: Path) -> str:
    settings: dict[str, object] = {
        "cache.path": target,
        "cache.dtype": made.types.identity(),
        "cache.format": made.format,
    }
    if made.rounded:
        settings["cache.accept_rounded"] = "true"
    texts = [setting_text(key, value) for key, value in settings.items()]
    return " ".join(f"--set {shlex.quote(text)}" for text in texts)
