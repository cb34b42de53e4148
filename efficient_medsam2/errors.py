"""Errors of the deployable library.

EfficientMedSAM2Error
├── DataError            a file or array is unreadable, mismatched or empty (exit code 3)
├── NetworkConfigError   a network cannot be built from what was asked (exit code 2)
├── WeightsError         a weights file is missing or is not what was asked (exit code 7)
└── MissingExtraError    an optional package is not installed (exit code 7)
"""

from typing import ClassVar

__all__ = [
    "DataError",
    "EfficientMedSAM2Error",
    "MissingExtraError",
    "NetworkConfigError",
    "WeightsError",
]


class EfficientMedSAM2Error(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class DataError(EfficientMedSAM2Error):
    """Input data that cannot be used: says which file, why, and what mends it."""

    exit_code: ClassVar[int] = 3


class NetworkConfigError(EfficientMedSAM2Error):
    """A network that cannot be built, such as an unknown backbone."""

    exit_code: ClassVar[int] = 2


class WeightsError(EfficientMedSAM2Error):
    """Weights that are missing, damaged or of another architecture."""

    exit_code: ClassVar[int] = 7


class MissingExtraError(EfficientMedSAM2Error):
    """An optional dependency that the asked feature needs."""

    exit_code: ClassVar[int] = 7
