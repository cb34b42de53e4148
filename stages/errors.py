"""Errors of the stages.

StageError
├── StageInputError    an upstream artifact is missing or does not fit (exit code 4)
├── StageConfigError   settings that contradict each other or the data (exit code 2)
├── StageMemoryError   a batch does not fit into the memory (exit code 5)
├── ClusterError       no workers, or workers that do not fit this machine (exit code 2)
└── QualityGateError   a result below the bound that the user set (exit code 6)
"""

from typing import ClassVar

__all__ = [
    "ClusterError",
    "QualityGateError",
    "StageConfigError",
    "StageError",
    "StageInputError",
    "StageMemoryError",
]


class StageError(Exception):
    """Base of every error that a stage raises on purpose."""

    exit_code: ClassVar[int] = 1


class StageInputError(StageError):
    """An upstream artifact that is missing or does not fit."""

    exit_code: ClassVar[int] = 4


class StageConfigError(StageError):
    """Settings that contradict each other or the data."""

    exit_code: ClassVar[int] = 2


class StageMemoryError(StageError):
    """A batch that does not fit into the memory of the device or the machine."""

    exit_code: ClassVar[int] = 5


class ClusterError(StageError):
    """A Dask cluster that cannot be reached, is lost, or cannot do this run's tasks."""

    exit_code: ClassVar[int] = 2


class QualityGateError(StageError):
    """A result below the bound that the user set."""

    exit_code: ClassVar[int] = 6
