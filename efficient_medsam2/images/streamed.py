"""A case whose image and labels stay on disk and are read slice by slice.

Opening reads every file once from end to end, so whatever loading would refuse is refused before
a caller has used anything. Shape letters: n slices asked for, H rows, W columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from efficient_medsam2.images.case import Case, Modality, case_error
from efficient_medsam2.images.intensity import IntensityConfig, scale_slices
from efficient_medsam2.images.percentiles import NonzeroSurvey
from efficient_medsam2.images.planes import Planes, blocks_of

__all__ = ["CaseFindings", "StoredCase", "StreamedSlices"]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredCase:
    """What a reader makes of a case's files before it has read the voxels.

    Attributes:
        first: the case cut to its first slice, without labels; its construction checked types,
            geometry and boxes.
        image: (D, H, W) or (D, H, W, 3) as ``Case.image``.
        label: (D, H, W) uint16; None where there is no ground truth.
        recist: (D, H, W) bool; None where there is none.
        guess: modality by the lowest value, where ``first`` cannot tell.
        notes: as ``Case.notes``.
    """

    first: Case
    image: Planes
    label: Planes | None
    recist: Planes | None = None
    guess: Callable[[float], Modality] | None = None
    notes: tuple[str, ...] = ()

    def load(self) -> Case:
        """Read the voxels as well, and let go of files.

        Raises:
            DataError: a file is damaged, or image and labels do not fit.
        """
        try:
            depth = self.image.shape[0]
            return replace(
                self.first,
                image=self.image.read(0, depth),
                label=None if self.label is None else self.label.read(0, depth),
                notes=self.notes,
            )
        finally:
            self.close()

    def close(self) -> None:
        """Let go of files."""
        for planes in (self.image, self.label, self.recist):
            if planes is not None:
                planes.close()


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseFindings:
    """What a pass over all voxels found; good as long as the files stay as they are.

    Attributes:
        modality: one of ``MODALITIES``.
        object_ids: the labels present, ascending, without the background.
        ranges: percentiles of the configuration → grey values that become 0 and 255.
    """

    modality: Modality
    object_ids: tuple[int, ...]
    ranges: dict[tuple[float, float], tuple[float, float]] = field(default_factory=dict)


class StreamedSlices:
    """``CaseSlices`` over planes on disk.

    Args:
        stored: the open case; closed with this, also where construction fails.
        findings: of an earlier opening of the same files: spares the pass over all voxels.

    Raises:
        DataError: what loading the case would raise.
    """

    def __init__(self, stored: StoredCase, findings: CaseFindings | None = None) -> None:
        self._stored = stored
        self._first = stored.first
        self._survey: NonzeroSurvey | None = None
        try:
            self._check_shapes()
            self.findings = findings if findings is not None else self._find()
        except BaseException:
            stored.close()
            raise

    @property
    def shape(self) -> tuple[int, int, int]:
        """D, H, W."""
        depth, height, width = self._stored.image.shape[:3]
        return depth, height, width

    @property
    def channels(self) -> int:
        """1 (grey) or 3."""
        return 3 if len(self._stored.image.shape) == 4 else 1

    @property
    def modality(self) -> Modality:
        """One of ``MODALITIES``."""
        return self.findings.modality

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Along D, H, W."""
        return self._first.spacing_mm

    @property
    def object_ids(self) -> tuple[int, ...]:
        """See ``CaseSlices.object_ids``."""
        return self.findings.object_ids

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``CaseSlices.notes``."""
        return self._stored.notes

    @property
    def has_label(self) -> bool:
        """Whether there is ground truth."""
        return self._stored.label is not None

    def pictures(self, start: int, stop: int, config: IntensityConfig) -> npt.NDArray[np.uint8]:
        """See ``CaseSlices.pictures``."""
        image = self._stored.image
        if image.dtype == np.uint8:
            return image.read(start, stop)
        low, high = self._range(config)
        pictures = np.empty((stop - start, *image.shape[1:]), np.uint8)
        # One at a time: the values take up to eight times what the pictures do.
        for index in range(stop - start):
            values = image.read(start + index, start + index + 1)
            pictures[index] = scale_slices(values, low, high)[0]
        return pictures

    def labels(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """See ``CaseSlices.labels``."""
        if self._stored.label is None:
            raise case_error(self._first.case_id, self._first.source.files, "it has no label")
        return self._stored.label.read(start, stop)

    def recist(self, start: int, stop: int) -> npt.NDArray[np.bool_] | None:
        """See ``CaseSlices.recist``."""
        return None if self._stored.recist is None else self._stored.recist.read(start, stop)

    def close(self) -> None:
        """See ``CaseSlices.close``."""
        self._stored.close()

    def _range(self, config: IntensityConfig) -> tuple[float, float]:
        """Grey values that become 0 and 255."""
        if self.findings.modality == "CT":
            return config.ct_range_hu
        ranges = self.findings.ranges
        if config.percentiles not in ranges:
            survey = self._survey or self._survey_image()
            low, high = 0.0, 0.0
            if survey.nonzero:
                low, high = survey.percentiles(config.percentiles, self._image_blocks)
            if low == high and survey.nonzero:
                assert survey.lowest is not None
                assert survey.highest is not None
                low, high = survey.lowest, survey.highest
            ranges[config.percentiles] = (low, high)
        return ranges[config.percentiles]

    def _image_blocks(self) -> Iterator[npt.NDArray[Any]]:
        return (block for _, block in blocks_of(self._stored.image))

    def _check_shapes(self) -> None:
        shape = self._stored.image.shape[:3]
        label, recist = self._stored.label, self._stored.recist
        if label is not None and label.shape != shape:
            raise self._error(
                f"the label's shape {label.shape} differs from the image's {shape} (D,H,W); "
                "labels are never resized"
            )
        if recist is not None and recist.shape != shape:
            raise self._error(
                f"the shape {recist.shape} of `recist` differs from the image's {shape} (D,H,W)"
            )

    def _find(self) -> CaseFindings:
        """Read everything once."""
        lowest: float | None = None
        if self._stored.image.dtype == np.uint8:
            # Values that need no survey; reading them to the end finds damage.
            for _ in self._image_blocks():
                pass
        else:
            self._survey = self._survey_image()
            lowest = self._survey.lowest
        present = np.zeros(np.iinfo(np.uint16).max + 1, np.bool_)
        if self._stored.label is not None:
            for _, block in blocks_of(self._stored.label):
                for plane in block:
                    present[plane] = True
        if self._stored.recist is not None:
            for _ in blocks_of(self._stored.recist):
                pass
        guess = self._stored.guess
        return CaseFindings(
            modality=self._first.modality if guess is None or lowest is None else guess(lowest),
            object_ids=tuple(int(value) for value in np.flatnonzero(present) if value),
        )

    def _survey_image(self) -> NonzeroSurvey:
        survey = NonzeroSurvey(self._stored.image.dtype)
        for block in self._image_blocks():
            survey.add(block)
        if survey.not_finite:
            raise self._error(
                f"{survey.not_finite} of {survey.size} image values are NaN or infinite"
            )
        return survey

    def _error(self, cause: str) -> Exception:
        return case_error(self._first.case_id, self._first.source.files, cause)
