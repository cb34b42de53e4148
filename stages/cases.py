"""Where cases come from: a folder, a listing, the MNI152 brain or the phantom.

Precompute reads every case through here, and so does evaluation, the one later stage that goes
back to raw files.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import (
    Case,
    CaseSource,
    IntensityConfig,
    Provenance,
    SplitReport,
    assign_splits,
    find_cases,
)
from efficient_medsam2.images.slices import CaseSlices, LoadedSlices
from efficient_medsam2.images.streamed import CaseFindings, StreamedSlices
from efficient_medsam2.synthetic.mni152 import mni152_volumes, template_digests
from efficient_medsam2.synthetic.phantom import phantom
from efficient_medsam2.synthetic.record import SyntheticVolume

__all__ = [
    "CaseHandle",
    "DataConfig",
    "Dataset",
    "open_dataset",
    "phantom_digests",
    "seen_by_all",
    "source_is_present",
]


class DataConfig(BaseModel):
    """Which images, and how they are read.

    Attributes:
        source: a folder, a listing (.yaml or .csv), or ``mni152`` or ``phantom``.
        on_error: ``stop`` at the first bad file or case, or ``skip`` it with a report.
        patient_pattern: regular expression with one group that finds the patient in a file name.
        splits: shares of the patients for train, validation and test.
        split_seed: of the deal of patients to splits.
        slices: ``labelled`` stores the slices around objects, ``all`` every slice.
        margin: slices beyond an object's first and last that ``labelled`` keeps.
        smallest: objects below so many pixels of the network's input are not prompted.
        intensity: CT window and percentiles.
        phantom_size: side of the phantom in pixels.
        phantom_depth: its number of slices before it is cut into slabs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "mni152"
    on_error: Literal["stop", "skip"] = "stop"
    patient_pattern: str | None = None
    splits: tuple[float, float, float] = (0.7, 0.1, 0.2)
    split_seed: int = 0
    slices: Literal["labelled", "all"] = "labelled"
    margin: int = Field(default=1, ge=0)
    smallest: int = Field(default=30, ge=1)
    intensity: IntensityConfig = IntensityConfig()
    phantom_size: int = Field(default=96, ge=48)
    phantom_depth: int = Field(default=40, ge=24)

    @field_validator("splits")
    @classmethod
    def _splits_are_shares(cls, splits: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
            raise ValueError(f"splits must be three shares that sum to 1, got {splits}")
        return splits

    def row_settings(self) -> dict[str, Any]:
        """Settings that decide what a cache holds, by their full key; the place is not one."""
        values = self.model_dump(mode="json", exclude={"source", "on_error"})
        if self.source != "phantom":
            del values["phantom_size"], values["phantom_depth"]
        return {f"data.{key}": value for key, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class CaseHandle:
    """A case that is not loaded yet.

    Attributes:
        case_id: unique name.
        patient_id: whom it shows.
        split: its split.
        load: reads it whole.
        open: opens it to be read slice by slice.
        files: relative name → path of every file; empty for a generated case.
        digests: relative name → SHA-256 of the content that the case is made from.
        object_names: label value → name, where names are known.
    """

    case_id: str
    patient_id: str
    split: str
    load: Callable[[], Case]
    open: Callable[[], CaseSlices]
    files: Mapping[str, Path]
    digests: Callable[[], dict[str, str]]
    object_names: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All cases of a source.

    Attributes:
        handles: by ``case_id``.
        splits: which case is in which split, and which splits borrow training cases.
        notes: what a user should read: skipped files, borrowed splits.
    """

    handles: tuple[CaseHandle, ...]
    splits: SplitReport
    notes: tuple[str, ...]

    def without(self, case_ids: Collection[str]) -> "Dataset":
        """The same cases but those, each in its split as before."""
        splits = replace(
            self.splits,
            assignment={c: s for c, s in self.splits.assignment.items() if c not in case_ids},
            shared={
                split: tuple(case_id for case_id in borrowed if case_id not in case_ids)
                for split, borrowed in self.splits.shared.items()
            },
        )
        handles = tuple(handle for handle in self.handles if handle.case_id not in case_ids)
        return replace(self, handles=handles, splits=splits)


def seen_by_all(config: DataConfig) -> DataConfig:
    """The same with a source that is found from any working directory."""
    if config.source in ("mni152", "phantom"):
        return config
    return config.model_copy(update={"source": str(Path(config.source).absolute())})


def source_is_present(config: DataConfig) -> bool:
    """Whether the raw data can be looked at from here; an empty folder holds none."""
    if config.source in ("mni152", "phantom"):
        return True
    path = Path(config.source)
    return any(path.iterdir()) if path.is_dir() else path.exists()


def phantom_digests(config: DataConfig) -> dict[str, str]:
    """What a phantom is made from, as a digest."""
    recipe = json.dumps([config.phantom_size, config.phantom_depth])
    return {"phantom": hashlib.sha256(recipe.encode()).hexdigest()}


def open_dataset(config: DataConfig) -> Dataset:
    """Find all cases of a source, without loading an image.

    Raises:
        DataError: nothing usable is there; see ``find_cases``.
        MissingExtraError: ``mni152`` without nilearn.
    """
    if config.source == "mni152":
        # A hemisphere and its white matter have the same box: prompts would be ambiguous.
        volumes = mni152_volumes(label_sets=("structures",))
        return _of_volumes(volumes, template_digests(), "mni152")
    if config.source == "phantom":
        made = phantom(size=config.phantom_size, depth=config.phantom_depth)
        return _of_volumes(made, phantom_digests(config), "phantom")
    found = find_cases(
        config.source, on_error=config.on_error, patient_pattern=config.patient_pattern
    )
    splits = assign_splits(found, fractions=config.splits, seed=config.split_seed)
    notes = [f"skipped {skipped.name}: {skipped.reason}" for skipped in found.skipped]
    notes += found.notes
    for split, borrowed in splits.shared.items():
        notes.append(
            f"too few patients: {split} borrows {len(borrowed)} training cases; "
            "its figures say nothing about new patients"
        )
    handles = tuple(_of_source(source, splits.assignment[source.case_id]) for source in found)
    return Dataset(handles=handles, splits=splits, notes=tuple(notes))


def _of_source(source: CaseSource, split: str) -> CaseHandle:
    return CaseHandle(
        case_id=source.case_id,
        patient_id=source.patient_id,
        split=split,
        load=source.load,
        open=_streaming_opener(source),
        files=dict(zip(source.names, source.files, strict=True)),
        digests=source.digests,
        object_names={},
    )


def _streaming_opener(source: CaseSource) -> Callable[[], CaseSlices]:
    """Opens a case; what the first pass over its files found is kept until one of them changes."""
    known: dict[tuple[tuple[int, int], ...], CaseFindings] = {}

    def open_case() -> CaseSlices:
        try:
            states = tuple((s.st_size, s.st_mtime_ns) for s in (f.stat() for f in source.files))
        except OSError:
            # A file is gone: opening says which.
            return source.open()
        slices = source.open(known.get(states))
        if isinstance(slices, StreamedSlices):
            known.clear()
            known[states] = slices.findings
        return slices

    return open_case


def _of_volumes(
    volumes: list[SyntheticVolume], digests: Mapping[str, str], patient: str
) -> Dataset:
    """Slabs of one volume: their split is by position, not by patient, and says so in its name."""
    handles = tuple(
        CaseHandle(
            case_id=volume.name,
            patient_id=patient,
            split=volume.split,
            load=_loader(volume, patient),
            open=_opener(volume, patient),
            files={},
            digests=lambda: dict(digests),
            object_names=volume.object_names,
        )
        for volume in sorted(volumes, key=lambda volume: volume.name)
    )
    report = SplitReport(
        assignment={volume.name: volume.split for volume in volumes}, shared={}, seed=0
    )
    return Dataset(handles=handles, splits=report, notes=())


def _loader(volume: SyntheticVolume, patient: str) -> Callable[[], Case]:
    def load() -> Case:
        if not volume.label.any():
            raise DataError(f"case {volume.name}: the label map has no object")
        return Case(
            case_id=volume.name,
            patient_id=patient,
            image=volume.image,
            label=volume.label.astype(np.uint16),
            boxes=None,
            spacing_mm=volume.spacing_mm,
            modality="uint8",
            affine=None,
            source=Provenance(files=(), format="npz"),
        )

    return load


def _opener(volume: SyntheticVolume, patient: str) -> Callable[[], CaseSlices]:
    return lambda: LoadedSlices(_loader(volume, patient)())
