"""The card of the shipped teacher, from its training run and its measurements; nothing is measured.

    efficient-medsam2 train teacher -c configs/demo_teacher.yaml
    cp runs/demo_teacher/teacher/model/* efficient_medsam2/weights/demo_teacher
    python -m benchmarks.teacher_slabs --json benchmarks/results/teacher_slabs.json
    python -m benchmarks.zero_shot --json benchmarks/results/zero_shot.json
    python -m benchmarks.teacher_card

Writes ``CARD.md`` and ``curves.png`` into the model's folder. Every figure is read from the run's
manifest and journal and from the results files, which must be of the very weights in the folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from benchmarks import teacher_slabs, zero_shot
from benchmarks.measured_model import SHIPPED_TEACHER, measured_model, shown
from benchmarks.teacher_journal import TrainingTime, draw_curves, read_journal, training_time
from benchmarks.teacher_slabs import SlabPart, SlabResults
from benchmarks.zero_shot import ZeroShotResults
from efficient_medsam2.synthetic.mni152 import SLABS
from pipeline.artifacts import Manifest, read_manifest, write_atomically
from pipeline.config import load_config
from pipeline.stage_graph import build_graph

__all__ = ["CardError", "TrainedTeacher", "card_text", "read_run", "write_card"]

LARGEST_PICTURE_BYTES = 100_000
_PREFIX = "teacher_training."
_CURVES = "curves.png"


class CardError(click.ClickException):
    """What the card is made from does not belong together, or is not there."""


@dataclass(frozen=True, kw_only=True)
class TrainedTeacher:
    """A finished training run.

    Attributes:
        manifest: of its artifact.
        journal: the lines of ``metrics.jsonl``.
        threads: that it was given; None: all.
        device: that it was given.
        time: how long it took.
    """

    manifest: Manifest
    journal: list[dict[str, float]]
    threads: int | None
    device: str
    time: TrainingTime

    def setting(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        """A setting of the training by its short name."""
        return self.manifest.settings[f"{_PREFIX}{name}"]


def read_run(folder: Path) -> TrainedTeacher:
    """Read a training run.

    Args:
        folder: the artifact, such as ``runs/demo_teacher/teacher``.

    Raises:
        CardError: there is no finished run.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise CardError(
            f"{shown(folder)} holds no finished training; run: efficient-medsam2 train teacher -c "
            "configs/demo_teacher.yaml, or name another with --run"
        )
    journal = read_journal(folder / "metrics.jsonl")
    began, ended = (
        datetime.fromisoformat(each) for each in (manifest.started_utc, manifest.finished_utc)
    )
    settings = load_config(folder.parent / "config.yaml").run
    return TrainedTeacher(
        manifest=manifest,
        journal=journal,
        threads=settings.threads,
        device=settings.device,
        time=training_time(
            journal,
            steps=manifest.settings[f"{_PREFIX}steps"],
            batch_size=manifest.settings[f"{_PREFIX}batch_size"],
            last_seconds=(ended - began).total_seconds(),
        ),
    )


def write_card(
    model: Path, run: TrainedTeacher, slabs: SlabResults, zero: ZeroShotResults, *, config: Path
) -> None:
    """Write ``CARD.md`` and its picture into the model's folder.

    Args:
        model: the model's folder.
        run: the training that made it.
        slabs: its figures on slabs and phantoms.
        zero: its figures on data it never saw.
        config: the config file that the card names; must be that of the run.

    Raises:
        CardError: a file is of other weights, or the run of other settings than ``config``.
    """
    weights = measured_model(model).weights_sha256
    made = run.manifest.files["model/model.safetensors"].sha256
    if made != weights:
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
        raise CardError(f"the picture of the curves has {len(picture)} bytes: too many to ship")
    (model / _CURVES).write_bytes(picture)
    write_atomically(model / "CARD.md", card_text(run, slabs, zero, config=config))


def card_text(
    run: TrainedTeacher, slabs: SlabResults, zero: ZeroShotResults, *, config: Path
) -> str:
    """The card, Markdown."""
    blocks, dims = run.setting("network.blocks"), run.setting("network.embed_dims")
    validation = run.manifest.summary["validation"]
    tracked = "" if slabs.gflop_tracked is None else f", {slabs.gflop_tracked:.2f} a followed one"
    text = f"""\
# The demo teacher

A small SAM 2-shaped network: Hiera of {_joined(dims)} channels and {_joined(blocks)} blocks, hidden
{run.setting("network.hidden_size")}, {run.setting("network.memory_layers")} memory layers, \
{slabs.params / 1e6:.2f} M parameters, {slabs.gflop:.2f} GFLOP a prompted slice at
{slabs.image_size} x {slabs.image_size}{tracked}, in fp16 ({slabs.model.bytes / 1e6:.1f} MB). It \
exists so that the demo and the tests need
no download. It is no clinical model and no substitute for MedSAM2.

## How it was made

- **Command**: `efficient-medsam2 train teacher -c {config.as_posix()}`, nothing else.
- **Data**: generated, domain-randomised volumes without end, and {_real(run)}.
  Slabs are template slices, two guard slices between any two: training {_slices("train")};
  validation {_slices("validation")}; test {_slices("test")}.
- **Schedule**: {run.setting("steps")} steps; tracks join after \
{run.setting("tracks_from"):.0%} of them, in windows that grow to {run.setting("window")} slices.
- **Chosen** by the mean of 2D and 3D DSC over all rows of the validation slabs \
({validation["score"]:.3f}), step {run.manifest.summary["best_step"]}, of a
  running average of the weights. Test slabs were not looked at in training or in choosing.
- **Time**: {_time(run)}.
- **Weights**: SHA-256 `{slabs.model.weights_sha256}`.

![Training loss and validation DSC by step]({_CURVES})

## On brain slabs and on the phantom

From tight boxes on every slice (DSC, NSD at 2 mm) and along tracks of 11 slices from each object's
middle slice (DSC 3D). The phantom's anatomy is none of the generated volumes'. Macro is the mean \
over
structures. One brain: these figures tell how well the recipe was learnt, not how it does on patients.

"""
    for part in slabs.parts:
        text += f"### {part.name.capitalize()}\n\n{_part_table(part)}\n"
    return text + _zero_shot(zero) + _commands(slabs, zero)


def _real(run: TrainedTeacher) -> str:
    if run.setting("real") == "none":
        return "nothing else"
    began = run.setting("real_from")
    since = f"after {began:.0%} of the steps" if began else "from the first step"
    return (
        f"{since} the training slabs of the MNI152\n  template "
        f"({run.setting('real_share'):.0%} of the windows)"
    )


def _slices(split: str) -> str:
    return ", ".join(f"z {first}-{last}" for each, first, last in SLABS if each == split)


def _joined(values: Sequence[int]) -> str:
    return "/".join(str(value) for value in values)


def _time(run: TrainedTeacher) -> str:
    time = run.time
    memory = max(line.get("peak_memory_mb", 0.0) for line in run.journal)
    threads = "all threads" if run.threads is None else f"{run.threads} thread(s)"
    where = f"{threads}, device {run.device}, at most {memory / 1000:.1f} GB of memory"
    steps = run.setting("steps")
    if time.last_steps == steps:
        return f"{time.last_seconds / 60:.0f} minutes on {where}"
    last = (
        f"the last about {round(time.last_steps, -1)} of {steps} steps took "
        f"{time.last_seconds / 60:.0f} minutes"
    )
    if time.total_seconds is None:
        return f"stopped and continued more than once; {last}, on {where}"
    return (
        f"about {time.total_seconds / 60:.0f} minutes on {where} (stopped and continued once;\n"
        f"  {last})"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, marks, *rows))


def _part_table(part: SlabPart) -> str:
    rows = [("**macro**", _three(part.dsc), _three(part.nsd), _three(part.dsc_3d), "", "")]
    rows += [
        (
            name,
            _three(each.dsc),
            _three(each.nsd),
            _three(each.dsc_3d),
            str(each.slices),
            str(each.tracks),
        )
        for name, each in part.per_structure.items()
    ]
    return _table(("structure", "DSC", "NSD", "DSC 3D", "slices", "tracks"), rows)


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _zero_shot(zero: ZeroShotResults) -> str:
    figures = [row.figures for row in zero.rows]
    flat = [(each.dsc, each.box_dsc) for each in figures if each.dsc and each.box_dsc]
    deep = [(each.dsc_3d, each.box_dsc_3d) for each in figures if each.dsc_3d and each.box_dsc_3d]
    verdict = f"In DSC it beats its own box on {sum(own > box for own, box in flat)} of {len(flat)}"
    if deep:
        verdict += f", followed on {sum(own > box for own, box in deep)} of {len(deep)}"
    absent = f" Not measured, since not there: {', '.join(zero.absent)}." if zero.absent else ""
    small = sum(each.objects_too_small for each in figures)
    return f"""\
## On data unlike any it saw (zero-shot)

Public sample data, tight boxes from the ground truth. Beside each figure: what the filled box itself
scores as the answer (followed: the box on every slice). {verdict}:
where the box scores more, the teacher is no help there. Means over the slices of an object, the
objects of a case, then cases; at most {zero.limits.cases} cases, {zero.limits.objects} objects of a \
case and {zero.limits.slices} slices of an object, evenly spread.
NSD at {zero.limits.nsd_tolerance_mm:g} mm; of pictures at {zero.limits.nsd_tolerance_mm:g} pixels \
of a grid of at most {zero.limits.picture_side}. {small} objects below {zero.limits.smallest} \
pixels of the
network's input were left out.{absent}

{_table(zero_shot.HEADS, [zero_shot.table_cells(row) for row in zero.rows])}
"""


def _commands(slabs: SlabResults, zero: ZeroShotResults) -> str:
    return f"""\
## Where the figures come from

```sh
{slabs.command}
{zero.command}
python -m benchmarks.teacher_card
```

The last one wrote this card from the files of the others, and from the training's manifest and
journal.
"""


def _check_settings(manifest: Manifest, config: Path) -> None:
    """The card names one command: it must be the one that gives these settings."""
    wanted = next(
        (node.settings for node in build_graph(load_config(config)) if node.name == "teacher"), {}
    )
    made = manifest.settings
    differing = sorted(
        key for key in {*wanted, *made} if wanted.get(key, key) != made.get(key, not key)
    )
    if differing:
        raise CardError(
            f"the run has other settings than {config.as_posix()}: {', '.join(differing)}; name "
            "the right file with --config"
        )


def _results_option(flag: str, default: str, text: str) -> Any:  # noqa: ANN401 - click's decorator
    return click.option(
        flag,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        default=Path("benchmarks/results") / default,
        show_default=True,
        help=text,
    )


@click.command()
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("runs/demo_teacher/teacher"),
    show_default=True,
    help="What the training made.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=SHIPPED_TEACHER,
    help="Folder of the model, where the card goes; the shipped teacher where none is given.",
)
@_results_option("--slabs", "teacher_slabs.json", "What benchmarks.teacher_slabs wrote.")
@_results_option("--zero-shot", "zero_shot.json", "What benchmarks.zero_shot wrote.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=Path("configs/demo_teacher.yaml"),
    show_default=True,
    help="The recipe.",
)
def main(run_folder: Path, model: Path, slabs: Path, zero_shot: Path, config: Path) -> None:
    """Write the card of a teacher beside its weights."""
    write_card(
        model,
        read_run(run_folder),
        teacher_slabs.read_results(slabs),
        read_zero_shot(zero_shot),
        config=config,
    )
    click.echo(f"{shown(model)}: CARD.md and {_CURVES}")


read_zero_shot = zero_shot.read_results

if __name__ == "__main__":
    main()
