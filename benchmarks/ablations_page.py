"""The page of ablations, from the results that `efficient-medsam2 ablate --json` wrote.

python -m benchmarks.ablations_page benchmarks/results/*.json

Every figure is read from the files; plots are drawn again beside the page, in ``ablations/``.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.ablation_plot import draw_results
from pipeline.ablation_results import AblationResults, read_results
from pipeline.ablation_tables import markdown_section
from pipeline.artifacts import write_atomically

__all__ = ["write_page"]

_INTRODUCTION = """\
# Ablations

What each part of the recipe is worth. Every section was written by one command from the results
file named in it; figures are mean ± sample standard deviation over seeds, on the test split.
`any` stands where a key makes no difference to a model: its artifacts are shared between the runs.
Retention is a figure over the teacher's.

Made from the results by:

```sh
{command}
```
"""


def write_page(found: Sequence[tuple[Path, AblationResults]], page: Path) -> None:
    """Write ``page`` and one plot a section.

    Args:
        found: results files and what they hold, in the order of the sections.
        page: the Markdown file.
    """
    plots = page.parent / "ablations"
    plots.mkdir(parents=True, exist_ok=True)
    words = ["python", "-m", "benchmarks.ablations_page", *(path.as_posix() for path, _ in found)]
    sections = [_INTRODUCTION.format(command=shlex.join(words))]
    for path, results in found:
        picture, link = draw_results(results), None
        if picture is not None:
            plot = plots / f"{path.stem}.png"
            plot.write_bytes(picture)
            link = plot.relative_to(page.parent).as_posix()
        section = markdown_section(results, plot=link)
        sections.append(f"{section}\nResults: `{path.as_posix()}`\n")
    write_atomically(page, "\n".join(sections))


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("docs/ablations.md"),
    show_default=True,
    help="The page.",
)
def main(files: tuple[Path, ...], out: Path) -> None:
    """Write the page of ablations from the results FILES, a section each."""
    found = []
    for path in files:
        results = read_results(path)
        if results is None:
            click.echo(f"left out: {path} holds no ablation", err=True)
            continue
        found.append((path, results))
    if not found:
        raise click.ClickException(
            "no file holds an ablation: efficient-medsam2 ablate ... --json FILE writes one"
        )
    names = [path.stem for path, _ in found]
    for path, _ in found:
        if names.count(path.stem) > 1:
            raise click.ClickException(f"two files are named {path.stem}: their plots would clash")
    write_page(found, out)
    click.echo(f"{out}: {len(found)} sections")


if __name__ == "__main__":
    main()
