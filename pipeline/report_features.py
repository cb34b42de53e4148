"""Features as colours: the teacher's first three principal components as red, green and blue.

The components are fitted on the teacher alone, level by level and over all samples, and applied
to teacher and student: the same colour is the same feature.

Shape letters: C channels, h w rows and columns of a level, N positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "FeatureColours", "fit_colours", "mean_cosine"]

LEVELS = ("s16", "s8", "s4")
_PERCENTILES = (2.0, 98.0)


@dataclass(frozen=True, kw_only=True)
class FeatureColours:
    """A map from features to colours.

    Attributes:
        mean_C: the teacher's mean feature.
        components_3C: its principal directions, strongest first.
        low_3: value of each component that is shown as 0.
        high_3: value of each component that is shown as 255.
        explained: share of the teacher's variance that the three components hold.
    """

    mean_C: npt.NDArray[np.float64]
    components_3C: npt.NDArray[np.float64]
    low_3: npt.NDArray[np.float64]
    high_3: npt.NDArray[np.float64]
    explained: float

    def pixels(self, features_Chw: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Colours (h, w, 3) of features (C, h, w).

        Raises:
            ValueError: another number of channels than the map was fitted on.
        """
        channels, height, width = features_Chw.shape
        if channels != len(self.mean_C):
            raise ValueError(
                f"features have {channels} channels, the teacher's have {len(self.mean_C)}"
            )
        projected = (_positions(features_Chw) - self.mean_C) @ self.components_3C.T
        unit = (projected - self.low_3) / np.maximum(self.high_3 - self.low_3, 1e-12)
        return (unit.clip(0, 1) * 255).round().astype(np.uint8).reshape(height, width, 3)


def fit_colours(teacher: Sequence[npt.NDArray[Any]]) -> FeatureColours:
    """Fit on the teacher's features (C, h, w) of several slices at one level."""
    features_NC = np.concatenate([_positions(each) for each in teacher])
    mean_C = features_NC.mean(0)
    centred = features_NC - mean_C
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    components_3C = _three(directions[:, ::-1][:, :3].T)
    # A direction's sign is arbitrary; its largest entry is made positive.
    largest = np.abs(components_3C).argmax(1)
    components_3C *= np.where(components_3C[np.arange(3), largest] < 0, -1.0, 1.0)[:, None]
    low_3, high_3 = np.percentile(centred @ components_3C.T, _PERCENTILES, axis=0)
    total = float(variances.sum())
    return FeatureColours(
        mean_C=mean_C,
        components_3C=components_3C,
        low_3=low_3,
        high_3=high_3,
        explained=float(variances[::-1][:3].sum()) / total if total > 0 else 0.0,
    )


def mean_cosine(
    first_Chw: npt.NDArray[Any],
    second_Chw: npt.NDArray[Any],
    mean_C: npt.NDArray[np.float64],
) -> float:
    """Cosine over channels between two features of a level, mean over positions.

    ``mean_C`` is subtracted from both: with it, features that agree in nothing but their mean
    would look alike.
    """
    first, second = _positions(first_Chw) - mean_C, _positions(second_Chw) - mean_C
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(1) / np.maximum(lengths, 1e-12)).mean())


def _positions(features_Chw: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return features_Chw.reshape(len(features_Chw), -1).T.astype(np.float64)


def _three(components: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Three rows, zeros where there are fewer channels than that."""
    return np.pad(components, ((0, 3 - len(components)), (0, 0)))
