"""Which rows a cache has: the slices, prompts and tracks of every case.

Rows are decided before the teacher runs, from the labels alone, so every bad file is met before
anything is written and the size is known in advance.

Shape letters: S network input in pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cache import CacheIndex, CaseRow
from cache.cases import CaseTable
from efficient_medsam2.errors import DataError
from efficient_medsam2.images.slices import CaseSlices
from stages.case_rows import CaseRows, RowSettings
from stages.cases import CaseHandle, DataConfig, Dataset
from stages.row_columns import PromptColumns, SliceColumns, TrackColumns
from stages.row_settings import PromptConfig, TrackConfig, ViewConfig

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


def decide_rows(
    dataset: Dataset,
    *,
    data: DataConfig,
    views: ViewConfig,
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
        views: which views each slice has.
        prompts: how prompts are drawn.
        tracks: how tracks run.
        size: S.
        step: called after each case.
        note: told of each case that is skipped.

    Raises:
        DataError: a case cannot be read and ``data.on_error`` is ``stop``, or no case has a
            usable object.
    """
    builder = _Builder(
        RowSettings(data=data, views=views, prompts=prompts, tracks=tracks, size=size)
    )
    skipped: dict[str, SkippedCase] = {}
    for handle in dataset.handles:
        try:
            builder.add(handle, note)
        except DataError as error:
            if data.on_error == "stop":
                raise DataError(
                    f"{error}. Or go on without such cases: --set data.on_error=skip"
                ) from error
            skipped[handle.case_id] = SkippedCase(reason=str(error), files=handle.digests())
            note(f"skipped case {handle.case_id}: {error}")
        step()
    if skipped:
        note(f"skipped {len(skipped)} of {len(dataset.handles)} cases")
    if not len(builder.prompts) and not len(builder.tracks):
        raise DataError(_no_row(data, size, len(builder.cases), skipped))
    return CacheRows(
        index=builder.index(), channels=builder.channels, files=builder.files, skipped=skipped
    )


class _Builder:
    """Collects rows case by case; a case that turns out to be bad leaves none."""

    def __init__(self, settings: RowSettings) -> None:
        self._settings = settings
        self.cases: list[CaseRow] = []
        self.slices = SliceColumns()
        self.prompts = PromptColumns()
        self.tracks = TrackColumns()
        self.channels = 1
        self.files: dict[str, dict[str, tuple[int, int]]] = {}

    def add(self, handle: CaseHandle, note: Callable[[str], None]) -> None:
        """Add a case.

        Raises:
            DataError: it cannot be read.
        """
        parts = (self.slices, self.prompts, self.tracks)
        before = [part.sizes() for part in parts]
        opened = handle.open()
        try:
            CaseRows(
                opened,
                case_id=handle.case_id,
                case_code=len(self.cases),
                settings=self._settings,
            ).add(*parts)
            case = _case_row(handle, opened)
        except DataError:
            for part, sizes in zip(parts, before, strict=True):
                part.cut(sizes)
            raise
        finally:
            opened.close()
        self.cases.append(case)
        self.channels = max(self.channels, opened.channels)
        self.files[handle.case_id] = {
            name: (path.stat().st_size, path.stat().st_mtime_ns)
            for name, path in handle.files.items()
        }
        for text in opened.notes:
            note(f"case {handle.case_id}: {text}")

    def index(self) -> CacheIndex:
        """The index of all cases."""
        return CacheIndex(
            cases=CaseTable.of(self.cases),
            slices=self.slices.table(),
            prompts=self.prompts.table(),
            tracks=self.tracks.table(),
        )


def _case_row(handle: CaseHandle, opened: CaseSlices) -> CaseRow:
    depth, height, width = opened.shape
    return CaseRow(
        case_id=handle.case_id,
        patient_id=handle.patient_id,
        split=handle.split,
        modality=opened.modality,
        depth=depth,
        height=height,
        width=width,
        spacing_mm=opened.spacing_mm,
        files=handle.digests(),
        object_names=dict(handle.object_names) or {v: str(v) for v in opened.object_ids},
    )


def _no_row(data: DataConfig, size: int, cases: int, skipped: Mapping[str, SkippedCase]) -> str:
    if not cases and skipped:
        first = next(iter(skipped.values()))
        return f"{data.source}: none of the {len(skipped)} cases can be read; first: {first.reason}"
    return (
        f"{data.source}: no object of at least {data.smallest} pixels at {size} x {size} in "
        f"{cases} cases. Lower the bound: --set data.smallest=5"
    )
