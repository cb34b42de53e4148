"""The card of the shipped teacher, from its training run and its measurements; nothing is measured.

    efficient-medsam2 train teacher -c configs/demo_teacher.yaml
    cp runs/demo_teacher/teacher/model/* efficient_medsam2/weights/demo_teacher
    python -m benchmarks.teacher_slabs --json benchmarks/results/teacher_slabs.json
    python -m benchmarks.zero_shot --json benchmarks/results/zero_shot.json
    python -m benchmarks.teacher_card

Writes ``CARD.md`` and ``curves.png`` into the model's folder. Every figure is read from the run's
manifest and journal and from the results files, which must be of the very weights in the folder.
"""

from pathlib import Path

import click

from benchmarks.measured_model import SHIPPED_TEACHER, measured_model, shown
from benchmarks.teacher_card_text import CURVES, card_text
from benchmarks.teacher_curves import draw_curves
from benchmarks.teacher_run import CardError, TrainedTeacher, read_run
from benchmarks.teacher_slabs import SlabResults
from benchmarks.teacher_slabs import read_results as read_slabs
from benchmarks.zero_shot import ZeroShotResults
from benchmarks.zero_shot import read_results as read_zero_shot
from pipeline.artifacts import Manifest, write_atomically
from pipeline.config import load_config
from pipeline.stage_graph import build_graph

__all__ = ["write_card"]

LARGEST_PICTURE_BYTES = 100_000

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_RESULTS = Path("benchmarks/results")


def write_card(
    model: Path, run: TrainedTeacher, slabs: SlabResults, zero: ZeroShotResults, *, config: Path
) -> None:
    """Write ``CARD.md`` and its picture into the model's folder.

    Args:
        model: the model's folder.
        run: the training that made it.
        slabs: its figures on slabs and on the phantom.
        zero: its figures on data it never saw.
        config: the config file that the card names; must be that of the run.

    Raises:
        CardError: a file is of other weights, the run of other settings than ``config``, or the
            picture too large to ship.
    """
    weights = measured_model(model).weights_sha256
    if run.manifest.files["model/model.safetensors"].sha256 != weights:
        raise CardError(
            f"{shown(model)} is not what the training run made; copy its model folder there, or "
            "name the right run with --run"
        )
    for results in (slabs, zero):
        if results.model.weights_sha256 != weights:
            raise CardError(
                f"the {results.kind} figures are of other weights than {shown(model)}; measure "
                f"again: {results.command}"
            )
    _check_settings(run.manifest, config)
    picture = draw_curves(run.journal, best_step=run.manifest.summary["best_step"])
    if len(picture) > LARGEST_PICTURE_BYTES:
        raise CardError(
            f"the picture of the curves has {len(picture)} bytes, more than "
            f"{LARGEST_PICTURE_BYTES}: too many to ship"
        )
    (model / CURVES).write_bytes(picture)
    write_atomically(model / "CARD.md", card_text(run, slabs, zero, config=config))


def _check_settings(manifest: Manifest, config: Path) -> None:
    """The card names one command: it must be the one that gives these settings."""
    nodes = {node.name: node for node in build_graph(load_config(config))}
    wanted = nodes["teacher"].settings if "teacher" in nodes else {}
    absent = object()
    differing = sorted(
        key
        for key in {*wanted, *manifest.settings}
        if wanted.get(key, absent) != manifest.settings.get(key, absent)
    )
    if differing:
        raise CardError(
            f"the run has other settings than {config.as_posix()}: {', '.join(differing)}; name "
            "the right file with --config"
        )


@click.command()
@click.option(
    "--run",
    "run_folder",
    type=_FOLDER,
    default=Path("runs/demo_teacher/teacher"),
    show_default=True,
    help="What the training made.",
)
@click.option(
    "--model",
    type=_FOLDER,
    default=SHIPPED_TEACHER,
    help="Folder of the model, where the card goes; the shipped teacher where none is given.",
)
@click.option(
    "--slabs",
    "slabs_file",
    type=_FILE,
    default=_RESULTS / "teacher_slabs.json",
    show_default=True,
    help="What benchmarks.teacher_slabs wrote.",
)
@click.option(
    "--zero-shot",
    "zero_shot_file",
    type=_FILE,
    default=_RESULTS / "zero_shot.json",
    show_default=True,
    help="What benchmarks.zero_shot wrote.",
)
@click.option(
    "--config",
    type=_FILE,
    default=Path("configs/demo_teacher.yaml"),
    show_default=True,
    help="The recipe.",
)
def main(
    run_folder: Path, model: Path, slabs_file: Path, zero_shot_file: Path, config: Path
) -> None:
    """Write the card of a teacher beside its weights."""
    run, slabs, zero = read_run(run_folder), read_slabs(slabs_file), read_zero_shot(zero_shot_file)
    write_card(model, run, slabs, zero, config=config)
    click.echo(f"{shown(model)}: CARD.md and {CURVES}")


if __name__ == "__main__":
    main()
