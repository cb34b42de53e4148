"""Errors of the pipeline.

PipelineError
├── ConfigError           a setting, a config file or a selection of stages is wrong (exit code 2)
├── ArtifactError         an artifact is damaged, missing or does not fit (exit code 4)
├── RunLockedError        another process works in the same run folder (exit code 4)
└── RunInterruptedError   stopped by the user or the scheduler (exit code 130)
"""

from typing import ClassVar

__all__ = [
    "ArtifactError",
    "ConfigError",
    "PipelineError",
    "RunInterruptedError",
    "RunLockedError",
]


class PipelineError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(PipelineError):
    """A setting, a config file or a selection of stages that cannot be used."""

    exit_code: ClassVar[int] = 2


class ArtifactError(PipelineError):
    """An artifact that is damaged, missing or made with other settings than a stage needs."""

    exit_code: ClassVar[int] = 4


class RunLockedError(PipelineError):
    """Another process works in the same run folder."""

    exit_code: ClassVar[int] = 4


class RunInterruptedError(PipelineError):
    """Stopped by Ctrl-C or SIGTERM; the message holds the command that continues."""

    exit_code: ClassVar[int] = 130
