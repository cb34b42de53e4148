"""A progress that tells nothing: of a worker, whose coordinator tells it."""

from types import TracebackType
from typing import Self

from stages.context import ProgressBar

__all__ = ["QuietProgress"]


class QuietProgress:
    """Bars and notes that nobody sees."""

    def bar(self, *, total: int, description: str, unit: str, initial: int = 0) -> ProgressBar:
        """Open a bar."""
        return _QuietBar()

    def note(self, text: str) -> None:
        """Say nothing."""


class _QuietBar:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def update(self, n: int = 1, **figures: float | str) -> None:
        pass
