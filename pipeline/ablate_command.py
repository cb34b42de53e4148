"""The command `ablate`."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.ablation_grid import SeedList, parse_factors
from pipeline.errors import ConfigError, PipelineError, RunInterruptedError
from pipeline.options import Invocation, config_options, progress_option, user_models_folder
from pipeline.text_table import print_table

if TYPE_CHECKING:
    from pipeline.ablation import Ablation
    from pipeline.ablation_results import AblationResults

__all__ = ["ablate"]

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@config_options
@click.option(
    "over",
    "--over",
    multiple=True,
    metavar="KEY=V1,V2",
    help="Vary KEY. Values are YAML; NAME@VALUE shows VALUE as NAME; `default` is the config's "
    "own. Several --over make a grid.",
)
@click.option(
    "--seeds",
    type=SeedList(),
    default=1,
    show_default=True,
    metavar="N|S1,S2",
    help="How many seeds, from the config's own on, or which.",
)
@click.option("only", "--only", metavar="STAGE", multiple=True, help="STAGE alone. Repeatable.")
@click.option("until", "--until", metavar="STAGE", help="STAGE and those before it.")
@click.option("json_file", "--json", type=_FILE, help="Write the results there too.")
@click.option("plot_file", "--plot", type=_FILE, help="Write the plot (PNG) there too.")
@click.option("--title", help="Title of the results.")
@click.option("--keep-going", is_flag=True, help="Go on with the other runs after an error.")
@click.option("--dry-run", is_flag=True, help="Show what would run, run nothing.")
@progress_option
def ablate(
    config: str,
    overrides: tuple[str, ...],
    over: tuple[str, ...],
    seeds: tuple[int, ...] | int,
    only: tuple[str, ...],
    until: str | None,
    json_file: Path | None,
    plot_file: Path | None,
    title: str | None,
    keep_going: bool,
    dry_run: bool,
    progress: str,
) -> None:
    """Run the stages for every combination of values and every seed, and compare.

    Stages that come out the same are run once: artifacts lie in <run.dir>/ablate/store under a
    digest of all that determines them, and every run refers to them. The config's own cache is
    used wherever it fits. A killed ablation continues when it is typed again; the results are in
    <run.dir>/ablate/results: results.json, table.md and plot.png.

    \b
    efficient-medsam2 ablate -c demo --over memory.enabled=true,false --seeds 3
    efficient-medsam2 ablate -c demo --set finetune.label_fractions=[1.0,0.3,0.1,0.05] --seeds 3
    efficient-medsam2 ablate -c demo --over 'encoder=both@default,features@{weight_mask: 0}'
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("ablate runs in one process: start it without accelerate launch")
    from pipeline.ablation import Ablation
    from pipeline.ablation_layout import AblationStages
    from pipeline.ablation_request import AblationRequest

    options = [word for text in over for word in ("--over", text)]
    if seeds != 1:
        options += ["--seeds", _seeds_text(seeds)]
    options += [word for stage in only for word in ("--only", stage)]
    for option, value in (
        ("--until", until),
        ("--json", json_file),
        ("--plot", plot_file),
        ("--title", title),
    ):
        options += [] if value is None else [option, str(value)]
    options += ["--keep-going"] if keep_going else []
    request = AblationRequest(
        invocation=Invocation(
            command=("ablate",),
            options=tuple(options),
            config=config,
            overrides=overrides,
            progress=progress,
        ),
        factors=parse_factors(over),
        seeds=seeds,
        stages=AblationStages(only=only, until=until),
        title=title,
        keep_going=keep_going,
    )
    ablation = Ablation(request, models=user_models_folder())
    _print_plan(ablation)
    if dry_run:
        return
    _run(ablation, json_file, plot_file)


def _run(ablation: "Ablation", json_file: Path | None, plot_file: Path | None) -> None:
    from pipeline.run_lock import locked
    from pipeline.signals import sigterm_as_interrupt

    root = ablation.store.root
    root.mkdir(parents=True, exist_ok=True)
    with locked(root), sigterm_as_interrupt():
        try:
            results = ablation.run(tell=lambda line: click.echo(line, err=True))
        except KeyboardInterrupt as interrupt:  # between two runs; within one, the run tells
            raise RunInterruptedError(f"interrupted. Continue: {ablation.command}") from interrupt
        _publish(results, ablation.folder, json_file, plot_file)
    if results.failures:
        count = len(results.failures)
        raise PipelineError(
            f"{count} of {len(ablation.variants)} runs ended in an error, the first of them: "
            f"{results.failures[0].error}"
        )


def _print_plan(ablation: "Ablation") -> None:
    """How many runs of which stages there are, and how many are there already."""
    counts = ablation.counts()
    rows = [
        (c.stage, str(c.uses), str(c.different), str(c.fresh), str(c.different - c.fresh))
        for c in counts
    ]
    runs = sum(c.different for c in counts)
    ready = sum(c.fresh for c in counts)
    click.echo(
        f"combinations: {len(ablation.grid)}, seeds: {len(ablation.seeds)}; "
        f"{sum(c.uses for c in counts)} uses of {runs} different stage runs, {ready} of them "
        f"ready, {runs - ready} to do"
    )
    print_table(("stage", "uses", "different", "ready", "to do"), rows)


def _publish(
    results: "AblationResults", folder: Path, json_file: Path | None, plot_file: Path | None
) -> None:
    """Write and print what was found."""
    from pipeline.ablation_plot import draw_results
    from pipeline.ablation_results import write_results
    from pipeline.ablation_tables import markdown_section, table_rows, table_titles
    from pipeline.artifacts import write_atomically

    picture = draw_results(results)
    if picture is not None:
        (folder / "plot.png").write_bytes(picture)
        if plot_file is not None:
            plot_file.parent.mkdir(parents=True, exist_ok=True)
            plot_file.write_bytes(picture)
    section = markdown_section(results, plot=None if picture is None else "plot.png")
    write_atomically(folder / "table.md", section)
    if json_file is not None:
        write_results(json_file, results)
    rows = table_rows(results)
    if rows:
        print_table(table_titles(results), [row.cells for row in rows])
    else:
        click.echo("nothing was evaluated: the table is left out")
    click.echo(f"results: {json_file or folder / 'results.json'}")


def _seeds_text(seeds: tuple[int, ...] | int) -> str:
    if isinstance(seeds, int):
        return str(seeds)
    return ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")
