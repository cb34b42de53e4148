"""The words and tables of the shipped teacher's card; every number is handed in."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.teacher_run import TrainedTeacher
from benchmarks.teacher_slabs import SlabPart, SlabResults
from benchmarks.zero_shot import HEADS, ZeroShotResults, table_cells
from efficient_medsam2.synthetic.mni152 import SLABS

__all__ = ["CURVES", "card_text"]

CURVES = "curves.png"
"""Name of the picture beside the card."""

_ABSENT = "–"


def card_text(
    run: TrainedTeacher, slabs: SlabResults, zero: ZeroShotResults, *, config: Path
) -> str:
    """The card, Markdown.

    Args:
        run: the training that made the teacher.
        slabs: its figures on slabs and on the phantom.
        zero: its figures on data it never saw.
        config: the config file of the command that trains it.
    """
    sections = [
        "# The demo teacher",
        _network(run, slabs),
        "## How it was made",
        _making(run, slabs, config),
        f"![Training loss and validation DSC by step]({CURVES})",
        "## On brain slabs and on the phantom",
        _paragraph(
            "From tight boxes on every slice (DSC, NSD at 2 mm) and along tracks of 11 slices from "
            "each object's middle slice (DSC 3D); objects below 30 pixels of a slice are not "
            "prompted. Macro is the mean over structures. The slabs are of one brain: these "
            "figures tell how well the recipe was learnt, not how it does on patients. The "
            "phantom's anatomy is its own; its pictures are rendered as the generated volumes' are."
        ),
    ]
    for part in slabs.parts:
        sections += [f"### {part.name.capitalize()}", _part_table(part)]
    sections += [
        "## On data unlike any it saw (zero-shot)",
        _zero_shot(zero),
        _table(HEADS, [table_cells(row) for row in zero.rows]),
        "## Where the figures come from",
        f"```sh\n{slabs.command}\n{zero.command}\npython -m benchmarks.teacher_card\n```",
        _paragraph(
            "The last one wrote this card, from the files of the others and from the training's "
            "manifest and journal."
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _network(run: TrainedTeacher, slabs: SlabResults) -> str:
    tracked = "" if slabs.gflop_tracked is None else f" and {slabs.gflop_tracked:.2f} a followed"
    return _paragraph(
        f"A small SAM 2-shaped network: Hiera of {_joined(run.setting('network.embed_dims'))} "
        f"channels and {_joined(run.setting('network.blocks'))} blocks, hidden "
        f"{run.setting('network.hidden_size')}, {run.setting('network.memory_layers')} memory "
        f"layers, {slabs.params / 1e6:.2f} M parameters, {slabs.gflop:.2f} GFLOP a prompted"
        f"{tracked} slice of {slabs.image_size} x {slabs.image_size}, stored in fp16 "
        f"({slabs.model.bytes / 1e6:.1f} MB). It exists so that the demo and the tests need no "
        "download. It is no clinical model and no substitute for MedSAM2."
    )


def _making(run: TrainedTeacher, slabs: SlabResults, config: Path) -> str:
    validation = run.manifest.summary["validation"]
    points = (
        f"**Command**: `efficient-medsam2 train teacher -c {config.as_posix()}`, nothing else.",
        f"**Data**: generated, domain-randomised volumes without end, and {_real(run)}. Two guard "
        f"slices lie between any two slabs. Training slabs: {_slices('train')}; validation: "
        f"{_slices('validation')}; test: {_slices('test')}.",
        f"**Schedule**: {run.setting('steps')} steps; tracks join after "
        f"{run.setting('tracks_from'):.0%} of them, in windows that grow to "
        f"{run.setting('window')} slices. What is kept is a running average of the weights.",
        f"**Chosen** by the mean of 2D and 3D DSC over all rows of the validation slabs "
        f"({validation['score']:.3f}): step {run.manifest.summary['best_step']}. Test slabs had no "
        "part in training or choosing.",
        f"**Time**: {_time(run)}.",
        f"**Weights**: SHA-256 `{slabs.model.weights_sha256}`.",
    )
    return "\n".join(_paragraph(f"- {point}", indent="  ") for point in points)


def _real(run: TrainedTeacher) -> str:
    if run.setting("real") == "none":
        return "nothing else"
    began = run.setting("real_from")
    since = f"after {began:.0%} of the steps" if began else "from the first step on"
    share = f"{run.setting('real_share'):.0%} of the windows"
    return f"{since} the training slabs of the MNI152 template ({share})"


def _slices(split: str) -> str:
    return ", ".join(f"z {first}-{last}" for each, first, last in SLABS if each == split)


def _time(run: TrainedTeacher) -> str:
    time, steps = run.time, run.setting("steps")
    memory = max(line.get("peak_memory_mb", 0.0) for line in run.journal)
    threads = "all threads" if run.threads is None else f"{run.threads} thread"
    threads += "s" if run.threads is not None and run.threads > 1 else ""
    where = f"on {threads}, device {run.device}, with at most {memory / 1000:.1f} GB of memory"
    if time.last_steps == steps:
        return f"{time.last_seconds / 60:.0f} minutes {where}"
    last = (
        f"about the last {round(time.last_steps, -1)} of {steps} steps took "
        f"{time.last_seconds / 60:.0f} minutes"
    )
    if time.total_seconds is None:
        return f"stopped and continued more than once; {last}, {where}"
    return (
        f"about {time.total_seconds / 60:.0f} minutes {where}; it was stopped and continued once: "
        f"{last}"
    )


def _part_table(part: SlabPart) -> str:
    macro = ("**macro**", *map(_three, (part.dsc, part.nsd, part.dsc_3d)), "", "")
    rows = [
        (name, *map(_three, (each.dsc, each.nsd, each.dsc_3d)), str(each.slices), str(each.tracks))
        for name, each in part.per_structure.items()
    ]
    return _table(("structure", "DSC", "NSD", "DSC 3D", "slices", "tracks"), [macro, *rows])


def _zero_shot(zero: ZeroShotResults) -> str:
    limits, figures = zero.limits, [row.figures for row in zero.rows]
    flat = _better((each.dsc, each.box_dsc) for each in figures)
    deep = _better((each.dsc_3d, each.box_dsc_3d) for each in figures)
    small = sum(each.objects_too_small for each in figures)
    absent = f" Not there, so not measured: {', '.join(zero.absent)}." if zero.absent else ""
    return _paragraph(
        "Public sample data, tight boxes from the ground truth. Beside each figure stands what the "
        "filled box itself scores as the answer (followed: the box on every slice). In DSC the "
        f"teacher beats the box on {flat} data sets, followed on {deep}; elsewhere it is no help "
        "as it is. Means over the slices of an object, the objects of a case, then cases: at most "
        f"{limits.cases} cases, {limits.objects} objects of a case and {limits.slices} slices of "
        f"an object, evenly spread. NSD at {limits.nsd_tolerance_mm:g} mm, of pictures at "
        f"{limits.nsd_tolerance_mm:g} pixels of a grid of at most {limits.picture_side}. {small} "
        f"objects below {limits.smallest} pixels of the network's input were left out.{absent}"
    )


def _better(pairs: Iterable[tuple[float | None, float | None]]) -> str:
    known = [(own, box) for own, box in pairs if own is not None and box is not None]
    return f"{sum(own > box for own, box in known)} of {len(known)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows))


def _three(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.3f}"


def _joined(values: Sequence[int]) -> str:
    return "/".join(str(value) for value in values)


def _paragraph(text: str, *, indent: str = "") -> str:
    return textwrap.fill(
        text, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
