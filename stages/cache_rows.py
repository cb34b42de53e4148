"""Which rows a cache has: the slices, prompts and tracks of every case.

Rows are decided before the teacher runs, from the labels alone, so every bad file is met before
anything is written and the size is known in advance.

Shape letters: D slices, S network input in pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cache import CacheIndex, CaseRow, PromptRow, SliceRow, TrackRow
from efficient_medsam2.errors import DataError
from efficient_medsam2.images import Case, squash_labels
from efficient_medsam2.prompts import SampledPrompt, sample_prompt
from stages.cases import CaseHandle, DataConfig, Dataset
from stages.row_settings import PromptConfig, TrackConfig

__all__ = ["CacheRows", "SkippedCase", "decide_rows"]


@dataclass(frozen=True, kw_only=True)
class SkippedCase:
    """A case that could not be read and was left out, as the user wished.

    Attributes:
        reason: what is wrong with it.
        files: relative file name → SHA-256, to tell whether it was mended since.
    """

    reason: str
    files: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CacheRows:
    """The rows of a cache to be.

    Attributes:
        index: all rows.
        channels: 1 where every image is grey, else 3.
        files: case id → relative file name → (bytes, mtime in ns), as they were when read.
        skipped: case id → why it has no rows.
    """

    index: CacheIndex
    channels: int
    files: dict[str, dict[str, tuple[int, int]]]
    skipped: dict[str, SkippedCase]


@dataclass
class _Builder:
    """Collects rows case by case."""

    cases: list[CaseRow] = field(default_factory=list)
    slices: list[SliceRow] = field(default_factory=list)
    prompts: list[PromptRow] = field(default_factory=list)
    tracks: list[TrackRow] = field(default_factory=list)
    track_count: int = 0
    channels: int = 1


def decide_rows(
    dataset: Dataset,
    *,
    data: DataConfig,
    prompts: PromptConfig,
    tracks: TrackConfig,
    size: int,
    step: Callable[[], None],
    note: Callable[[str], None],
) -> CacheRows:
    """Read every case's labels once and decide its rows.

    Args:
        dataset: the cases.
        data: which slices are kept, and whether a bad case stops the run.
        prompts: how prompts are drawn.
        tracks: how tracks run.
        size: S.
        step: called after each case.
        note: told of each case that is skipped.

    Raises:
        DataError: a case cannot be read and ``data.on_error`` is ``stop``, or no case has a
            usable object.
    """
    builder = _Builder()
    files: dict[str, dict[str, tuple[int, int]]] = {}
    skipped: dict[str, SkippedCase] = {}
    for handle in dataset.handles:
        try:
            case = handle.load()
        except DataError as error:
            if data.on_error == "stop":
                raise DataError(
                    f"{error}. Or go on without such cases: --set data.on_error=skip"
                ) from error
            skipped[handle.case_id] = SkippedCase(reason=str(error), files=handle.digests())
            note(f"skipped case {handle.case_id}: {error}")
        else:
            files[handle.case_id] = {
                name: (path.stat().st_size, path.stat().st_mtime_ns)
                for name, path in handle.files.items()
            }
            _add_case(builder, handle, case, data=data, prompts=prompts, tracks=tracks, size=size)
        step()
    if skipped:
        note(f"skipped {len(skipped)} of {len(dataset.handles)} cases")
    if not builder.prompts and not builder.tracks:
        raise DataError(_no_row(data, size, len(builder.cases), skipped))
    index = CacheIndex.from_rows(
        cases=builder.cases, slices=builder.slices, prompts=builder.prompts, tracks=builder.tracks
    )
    return CacheRows(index=index, channels=builder.channels, files=files, skipped=skipped)


def _no_row(data: DataConfig, size: int, cases: int, skipped: Mapping[str, SkippedCase]) -> str:
    if not cases and skipped:
        first = next(iter(skipped.values()))
        return f"{data.source}: none of the {len(skipped)} cases can be read; first: {first.reason}"
    return (
        f"{data.source}: no object of at least {data.smallest} pixels at {size} x {size} in "
        f"{cases} cases. Lower the bound: --set data.smallest=5"
    )


def _add_case(
    builder: _Builder,
    handle: CaseHandle,
    case: Case,
    *,
    data: DataConfig,
    prompts: PromptConfig,
    tracks: TrackConfig,
    size: int,
) -> None:
    assert case.label is not None
    depth, height, width = case.label.shape
    builder.channels = max(builder.channels, 3 if case.image.ndim == 4 else 1)
    names = dict(handle.object_names) or {value: str(value) for value in case.object_ids}
    builder.cases.append(
        CaseRow(
            case_id=handle.case_id,
            patient_id=handle.patient_id,
            split=handle.split,
            modality=case.modality,
            depth=depth,
            height=height,
            width=width,
            spacing_mm=case.spacing_mm,
            files=handle.digests(),
            object_names=names,
        )
    )
    label_DSS = squash_labels(case.label, size)
    kept = _kept_slices(label_DSS, data)
    first_row = len(builder.slices)
    for offset, slice_index in enumerate(kept):
        builder.slices.append(
            SliceRow(
                row=first_row + offset, case_id=handle.case_id, slice_index=slice_index, view=0
            )
        )
    rows = {slice_index: first_row + offset for offset, slice_index in enumerate(kept)}
    for object_id in case.object_ids:
        visible = _visible_slices(label_DSS == object_id, data.smallest)
        for slice_index in visible:
            if slice_index in rows:
                _add_prompts(builder, handle, label_DSS, object_id, slice_index, rows, prompts)
        _add_tracks(builder, handle, label_DSS, object_id, visible, rows, prompts, tracks)


def _kept_slices(label_DSS: np.ndarray, data: DataConfig) -> list[int]:
    depth = label_DSS.shape[0]
    if data.slices == "all":
        return list(range(depth))
    labelled = np.flatnonzero(label_DSS.reshape(depth, -1).any(axis=1))
    if labelled.size == 0:
        return []
    first = max(int(labelled[0]) - data.margin, 0)
    last = min(int(labelled[-1]) + data.margin, depth - 1)
    return list(range(first, last + 1))


def _visible_slices(mask_DSS: np.ndarray, smallest: int) -> list[int]:
    areas = mask_DSS.reshape(mask_DSS.shape[0], -1).sum(axis=1)
    return [int(index) for index in np.flatnonzero(areas >= smallest)]


def _stream(handle: CaseHandle, slice_index: int, object_id: int, seed: int) -> np.random.Generator:
    """The random stream of one (case, slice, object): no other row's prompts shift it."""
    name = int.from_bytes(handle.case_id.encode()[-16:], "little")
    return np.random.default_rng([seed, name, slice_index, object_id])


def _add_prompts(
    builder: _Builder,
    handle: CaseHandle,
    label_DSS: np.ndarray,
    object_id: int,
    slice_index: int,
    rows: dict[int, int],
    config: PromptConfig,
) -> None:
    generator = _stream(handle, slice_index, object_id, config.seed)
    mask = label_DSS[slice_index] == object_id
    for _ in range(config.per_object):
        prompt = sample_prompt(mask, generator, box_share=config.box_share, jitter=config.jitter)
        points, labels = _plain(prompt)
        builder.prompts.append(
            PromptRow(
                row=len(builder.prompts),
                case_id=handle.case_id,
                slice_index=slice_index,
                view=0,
                object_id=object_id,
                kind="box" if prompt.kind == "box" else "points",
                points=points,
                labels=labels,
                slice_row=rows[slice_index],
            )
        )


def _plain(
    prompt: SampledPrompt,
) -> tuple[tuple[tuple[float, float], ...], tuple[int, ...]]:
    points = tuple((float(x), float(y)) for x, y in prompt.points_N2)
    return points, tuple(int(label) for label in prompt.labels_N)


def _add_tracks(
    builder: _Builder,
    handle: CaseHandle,
    label_DSS: np.ndarray,
    object_id: int,
    visible: list[int],
    rows: dict[int, int],
    prompts: PromptConfig,
    config: TrackConfig,
) -> None:
    """Tracks of one object: both directions from each prompted slice, inside its extent."""
    visible = [slice_index for slice_index in visible if slice_index in rows]
    if not visible:
        return
    areas = {index: int((label_DSS[index] == object_id).sum()) for index in visible}
    directions: tuple[Literal[1, -1], ...] = (1, -1)
    for start in _prompted_slices(visible, areas, config.per_object):
        generator = _stream(handle, start, object_id, prompts.seed + 1)
        prompt = sample_prompt(
            label_DSS[start] == object_id, generator, box_share=1.0, jitter=prompts.jitter
        )
        points, labels = _plain(prompt)
        for direction in directions:
            end = visible[-1] + config.margin if direction > 0 else visible[0] - config.margin
            steps = range(start, end + direction, direction)[: config.length]
            steps_here = [index for index in steps if index in rows]
            if len(steps_here) < 2:
                continue
            for step, slice_index in enumerate(steps_here):
                builder.tracks.append(
                    TrackRow(
                        row=len(builder.tracks),
                        track=builder.track_count,
                        case_id=handle.case_id,
                        object_id=object_id,
                        prompted_slice=start,
                        direction=direction,
                        step=step,
                        slice_index=slice_index,
                        slice_row=rows[slice_index],
                        num_frames=max(label_DSS.shape[0], 2),
                        points=points,
                        labels=labels,
                    )
                )
            builder.track_count += 1


def _prompted_slices(visible: list[int], areas: dict[int, int], count: int) -> list[int]:
    """The slice of the largest area, then slices spread evenly over the object's extent."""
    if count == 0:
        return []
    chosen = [max(visible, key=lambda index: (areas[index], -index))]
    for place in range(1, count):
        target = round((place - 0.5) / max(count - 1, 1) * (len(visible) - 1))
        if visible[target] not in chosen:
            chosen.append(visible[target])
    return chosen
