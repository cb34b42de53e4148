"""The page of a report: what each part shows, handed to the template."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pipeline.report_checks import Check
from pipeline.report_curves import Curve, curve_of, draw_curve
from pipeline.report_gallery import data_uri, make_gallery
from pipeline.report_overlays import COLOURS
from pipeline.report_records import EvaluationContext, Row, RunRecords, StageRecord
from pipeline.report_words import (
    ABSENT,
    about_the_data,
    byte_text,
    columns,
    headline,
    number,
    stage_title,
    table_cells,
)

__all__ = ["render_page"]

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class _CurveView:
    title: str
    light: str
    dark: str
    width: int
    height: int
    alt: str
    note: str


@dataclass(frozen=True, kw_only=True)
class _StageView:
    name: str
    title: str
    started: str
    took: str
    steps: str
    best_step: str
    fingerprint: str
    files: tuple[tuple[str, str, str], ...]


def render_page(records: RunRecords, checks: Sequence[Check]) -> str:
    """Make the whole page: one HTML text that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    context = records.context
    curves = [(stage, curve_of(stage.journal)) for stage in records.stages]
    return environment.get_template("report.html.jinja").render(
        title=records.directory.resolve().name,
        headline=headline(records),
        sentences=about_the_data(context),
        facts=tuple(_facts(context)),
        checks=checks,
        failed=sum(check.ok is False for check in checks),
        unmeasured=sum(check.ok is None for check in checks),
        columns=columns(context),
        rows=_model_rows(records.rows, context),
        structures=_structure_rows(records.rows),
        structure_models=tuple(row.name for row in records.rows),
        curves=[_curve_view(stage, curve) for stage, curve in curves if curve is not None],
        gallery=make_gallery(records),
        colours=COLOURS,
        stages=[_stage_view(stage) for stage in records.stages],
        versions=_versions(records.stages),
        command=shlex.join(
            ["efficient-medsam2", "run", "-c", str(records.directory / "config.yaml")]
        ),
        seed=_seed(records.config_text),
        config_text=records.config_text,
    )


def _model_rows(
    rows: Sequence[Row], context: EvaluationContext
) -> tuple[tuple[Row, tuple[tuple[str, bool], ...]], ...]:
    cells = [table_cells(column, rows) for column in columns(context)]
    return tuple((row, tuple(column[place] for column in cells)) for place, row in enumerate(rows))


def _structure_rows(rows: Sequence[Row]) -> tuple[dict[str, Any], ...]:
    """One entry for each structure: how much of it there is, and (DSC, NSD, 3D) by model."""
    names = dict.fromkeys(name for row in rows for name in row.per_structure)
    entries = []
    for name in names:
        found = [row.per_structure.get(name) for row in rows]
        known = next(structure for structure in found if structure is not None)
        entries.append(
            {
                "name": name,
                "slices": ABSENT if known.slices is None else str(known.slices),
                "tracks": ABSENT if known.tracks is None else str(known.tracks),
                "figures": [
                    (number(s.dsc, 3), number(s.nsd, 3), number(s.dsc_3d, 3))
                    if s is not None
                    else (ABSENT,) * 3
                    for s in found
                ],
            }
        )
    return tuple(entries)


def _facts(context: EvaluationContext) -> Iterator[tuple[str, str]]:
    """What the figures were measured on: (name, text)."""

    def text(value: object) -> str:
        return ABSENT if value is None else str(value)

    sha256 = context.teacher.weights_sha256
    yield "Teacher", text(context.teacher.name) + (f" (weights {sha256[:12]}…)" if sha256 else "")
    yield "Student backbone", text(context.backbone)
    yield "Network input", f"{context.image_size} px square" if context.image_size else ABSENT
    yield "Data", text(context.data_source)
    yield "Split", text(context.split)
    yield (
        "Cases · structures · box prompts",
        " · ".join(text(each) for each in (context.cases, context.objects, context.slices)),
    )
    length = context.track_length
    slices = f", up to {length:g} slices each" if length is not None and context.tracks else ""
    yield "Tracks for DSC 3D", text(context.tracks) + slices
    threads = f", {context.threads} threads" if context.threads is not None else ""
    yield "Timed on", text(context.device) + (f", {context.cpu}" if context.cpu else "") + threads
    yield "Embedding cache", byte_text(context.cache_bytes)


def _curve_view(stage: StageRecord, curve: Curve) -> _CurveView:
    first, last = curve.loss[0], curve.loss[-1]
    light, dark = draw_curve(curve, dark=False), draw_curve(curve, dark=True)
    title = stage_title(stage.name)
    losses = f"loss {first[1]:.3g} → {last[1]:.3g}"
    alt = f"{title}: {losses} from step {first[0]:g} to {last[0]:g}"
    notes = [losses]
    if curve.validation:
        figures = f"validation DSC {curve.validation[0][1]:.3f} → {curve.validation[-1][1]:.3f}"
        alt += f"; {figures}"
        notes.append(figures)
    speed = next((line for line in reversed(stage.journal) if "samples_per_second" in line), {})
    if "samples_per_second" in speed:
        notes.append(f"{speed['samples_per_second']:.3g} samples/s")
    if "data_wait_share" in speed:
        notes.append(f"{speed['data_wait_share'] * 100:.0f}\N{NO-BREAK SPACE}% waiting for data")
    if "peak_memory_mb" in speed:
        notes.append(f"{speed['peak_memory_mb']:.0f} MB")
    return _CurveView(
        title=title,
        light=data_uri(light.png),
        dark=data_uri(dark.png),
        width=light.width,
        height=light.height,
        alt=alt,
        note=" · ".join(notes),
    )


def _stage_view(stage: StageRecord) -> _StageView:
    manifest = stage.manifest
    if manifest is None:
        return _StageView(
            name=stage.name,
            title=stage_title(stage.name),
            started="no manifest",
            took=ABSENT,
            steps=ABSENT,
            best_step=ABSENT,
            fingerprint=ABSENT,
            files=(),
        )
    started = datetime.fromisoformat(manifest.started_utc)
    took = (datetime.fromisoformat(manifest.finished_utc) - started).total_seconds()
    return _StageView(
        name=stage.name,
        title=stage_title(stage.name),
        started=started.strftime("%Y-%m-%d %H:%M"),
        took=_duration(took),
        steps=str(manifest.summary.get("steps", ABSENT)),
        best_step=str(manifest.summary.get("best_step", ABSENT)),
        fingerprint=manifest.fingerprint,
        files=tuple(
            (name, byte_text(record.bytes), record.sha256)
            for name, record in sorted(manifest.files.items())
        ),
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _versions(stages: Sequence[StageRecord]) -> tuple[tuple[str, str], ...]:
    """Library → version, all of them where stages were made with different ones."""
    found: dict[str, dict[str, None]] = {}
    for stage in stages:
        for library, version in (stage.manifest.versions if stage.manifest else {}).items():
            found.setdefault(library, {})[version] = None
    return tuple((library, ", ".join(versions)) for library, versions in found.items())


def _seed(config_text: str | None) -> str:
    """The seed in ``config.yaml``; a dash where it holds none."""
    config = None if config_text is None else yaml.safe_load(config_text)
    run = config.get("run") if isinstance(config, dict) else None
    seed = run.get("seed") if isinstance(run, dict) else None
    return ABSENT if seed is None else str(seed)
