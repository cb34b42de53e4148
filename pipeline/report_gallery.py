"""The pictures of a page: samples with contours, and features as colours."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.report_features import LEVELS, FeatureColours, fit_colours, mean_cosine
from pipeline.report_overlays import Picture, overlay_pictures, png_of_pixels, whole_slice
from pipeline.report_records import Row, RunRecords, Sample, last_student
from pipeline.report_words import number

__all__ = ["FeatureView", "Gallery", "SampleView", "Tile", "data_uri", "make_gallery"]

_PICTURE_BYTES = 4_500_000
_FEATURE_SAMPLES = 3
_FEATURE_MODELS = ("teacher", "encoder", "finetune")
_FEATURE_TITLES = {
    "teacher": "Teacher",
    "encoder": "After encoder distillation",
    "finetune": "After finetuning",
}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture with its words; ``src`` is None where there is nothing to show."""

    title: str
    src: str | None = None
    width: int = 1
    height: int = 1
    alt: str = ""
    note: str = ""
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """One slice, side by side."""

    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class FeatureView:
    """Features of one slice: a row of levels for each model."""

    title: str
    image: Tile
    models: tuple[tuple[str, tuple[Tile, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All pictures of samples.

    Attributes:
        samples: as many as fit.
        left_out: samples that did not fit.
        features: of the first slices.
        explained: level → share of the teacher's variance in the three colours.
    """

    samples: tuple[SampleView, ...]
    left_out: int
    features: tuple[FeatureView, ...]
    explained: Mapping[str, float]


def make_gallery(records: RunRecords) -> Gallery:
    """Draw the samples of a run, up to a bound on the page's size."""
    views: list[SampleView] = []
    used = 0
    for index, sample in enumerate(records.samples):
        view = _sample_view(records, index, sample)
        used += sum(len(tile.src or "") for tile in view.tiles)
        if views and used > _PICTURE_BYTES:
            break
        views.append(view)
    colours = _colours(records)
    # Several samples may be objects of one slice, which has one set of features.
    slices: dict[tuple[str, int], tuple[int, Sample]] = {}
    for index, sample in enumerate(records.samples):
        slices.setdefault((sample.case_id, sample.slice_index), (index, sample))
    features = (
        _feature_view(records, index, sample, colours)
        for index, sample in list(slices.values())[:_FEATURE_SAMPLES]
    )
    return Gallery(
        samples=tuple(views),
        left_out=len(records.samples) - len(views),
        features=tuple(view for view in features if view is not None),
        explained={level: fitted.explained for level, fitted in colours.items()},
    )


def data_uri(png: bytes) -> str:
    """A PNG inside the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _sample_view(records: RunRecords, index: int, sample: Sample) -> SampleView:
    image = records.arrays[f"image_{index}"]
    where = f"{sample.object_name}, slice {sample.slice_index} of {sample.case_id}"
    tiles = [
        _tile(
            "Image and box",
            whole_slice(image, sample),
            alt=f"{where}: the whole slice with the box prompt",
            key="box",
        )
    ]
    shown = _shown_models(records)
    names = {"truth": f"truth_{index}"}
    names |= {key: f"mask_{row.model}_{index}" for key, row in shown.items()}
    masks = {key: records.arrays[name] > 0 for key, name in names.items() if name in records.arrays}
    pictures = overlay_pictures(image, masks, sample)
    titles = {"truth": "Ground truth"} | {key: row.name for key, row in shown.items()}
    for key, title in titles.items():
        if key not in pictures:
            tiles.append(Tile(title=title, note="no mask of this sample", key=key))
            continue
        score = sample.dsc.get(shown[key].model) if key in shown else None
        note = f"DSC {number(score, 3)}" if key in shown else ""
        words = f"{where}: contour of {title}"
        words += f", DSC {number(score, 3)}, and of the ground truth" if key in shown else ""
        tiles.append(_tile(title, pictures[key], alt=words, note=note, key=key))
    title = f"{sample.object_name} · {sample.case_id} · slice {sample.slice_index}"
    return SampleView(title=title, tiles=tuple(tiles))


def _shown_models(records: RunRecords) -> dict[str, Row]:
    rows = {row.model: row for row in records.rows}
    found = {
        "teacher": rows.get("teacher"),
        "baseline": rows.get("baseline"),
        "student": last_student(records.rows),
    }
    return {key: row for key, row in found.items() if row is not None}


def _colours(records: RunRecords) -> dict[str, FeatureColours]:
    fitted = {}
    for level in LEVELS:
        names = [f"{level}_teacher_{index}" for index in range(len(records.samples))]
        teacher = [records.arrays[name] for name in names if name in records.arrays]
        if teacher:
            fitted[level] = fit_colours(teacher)
    return fitted


def _feature_view(
    records: RunRecords, index: int, sample: Sample, colours: Mapping[str, FeatureColours]
) -> FeatureView | None:
    models = []
    for model in _FEATURE_MODELS:
        tiles = [
            _feature_tile(records, f"{level}_{{}}_{index}", model, colours[level], level)
            for level in LEVELS
            if level in colours and f"{level}_{model}_{index}" in records.arrays
        ]
        if tiles:
            models.append((_FEATURE_TITLES[model], tuple(tiles)))
    if not models:
        return None
    where = f"{sample.object_name}, slice {sample.slice_index} of {sample.case_id}"
    image = whole_slice(records.arrays[f"image_{index}"], sample)
    return FeatureView(
        title=f"{sample.case_id} · slice {sample.slice_index}",
        image=_tile("Image", image, alt=f"{where}: the slice that the features belong to"),
        models=tuple(models),
    )


def _feature_tile(
    records: RunRecords, name: str, model: str, colours: FeatureColours, level: str
) -> Tile:
    features = records.arrays[name.format(model)]
    teacher = records.arrays.get(name.format("teacher"))
    note = ""
    if len(features) != len(colours.mean_C):
        return Tile(title=level, note=f"{len(features)} channels, not the teacher's")
    if model != "teacher" and teacher is not None and teacher.shape == features.shape:
        note = f"cosine {mean_cosine(features, teacher, colours.mean_C):.3f}"
    words = f"{level} features of {_FEATURE_TITLES[model].lower()} as colours"
    return _tile(
        level,
        png_of_pixels(colours.pixels(features)),
        alt=f"{words}; {note} with the teacher's" if note else words,
        note=note,
    )


def _tile(title: str, picture: Picture, *, alt: str, note: str = "", key: str = "") -> Tile:
    return Tile(
        title=title,
        src=data_uri(picture.png),
        width=picture.width,
        height=picture.height,
        alt=alt,
        note=note,
        key=key,
    )
