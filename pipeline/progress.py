"""Progress on a terminal, in a log file, or none. Everything goes to stderr."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NoReturn, Self, TextIO

from tqdm import tqdm

from stages.context import Progress, ProgressBar

__all__ = ["PROGRESS_KINDS", "ProgressKind", "make_progress"]

ProgressKind = Literal["auto", "plain", "none"]
PROGRESS_KINDS: tuple[ProgressKind, ...] = ("auto", "plain", "none")
_PLAIN_INTERVAL_S = 10.0


def make_progress(
    kind: ProgressKind,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Choose how progress is told.

    Args:
        kind: ``auto``: bars on a terminal, else ``plain``; ``plain``: one line every 10 s and at
            the end, fit for log files; ``none``: silent.
        stream: where to write; stderr if None.
        clock: seconds from a monotonic clock.
    """
    target = sys.stderr if stream is None else stream
    if kind == "none":
        return _Silent()
    if kind == "auto" and target.isatty():
        return _Bars(target)
    return _Lines(target, clock)


class _Context:
    """What the three kinds of bar share: they close when the block ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(completed=kind is None)

    def close(self, *, completed: bool) -> None:
        """Say how it ended."""


class _Silent:
    def bar(self, *, total: int, description: str, unit: str, initial: int = 0) -> ProgressBar:
        return _SilentBar()

    def note(self, text: str) -> None:
        pass


class _SilentBar(_Context):
    def update(self, n: int = 1, **figures: float | str) -> None:
        pass


class _Bars:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def bar(self, *, total: int, description: str, unit: str, initial: int = 0) -> ProgressBar:
        bar: tqdm[NoReturn] = tqdm(
            total=total,
            initial=initial,
            desc=description,
            unit=unit,
            file=self._stream,
            dynamic_ncols=True,
        )
        return _TerminalBar(bar)

    def note(self, text: str) -> None:
        tqdm.write(text, file=self._stream)


class _TerminalBar(_Context):
    def __init__(self, bar: "tqdm[NoReturn]") -> None:
        self._bar = bar

    def update(self, n: int = 1, **figures: float | str) -> None:
        if figures:
            texts = {name: _figure(value) for name, value in figures.items()}
            self._bar.set_postfix(texts, refresh=False)
        self._bar.update(n)

    def close(self, *, completed: bool) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock

    def bar(self, *, total: int, description: str, unit: str, initial: int = 0) -> ProgressBar:
        return _LineBar(self, self._clock, total, description, unit, initial)

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _LineBar(_Context):
    def __init__(
        self,
        lines: _Lines,
        clock: Callable[[], float],
        total: int,
        description: str,
        unit: str,
        initial: int,
    ) -> None:
        self._lines = lines
        self._clock = clock
        self._total = total
        self._description = description
        self._unit = unit
        self._initial = initial
        self._done = initial
        self._figures: dict[str, float | str] = {}
        self._started_s = self._last_s = clock()

    def update(self, n: int = 1, **figures: float | str) -> None:
        self._done += n
        self._figures |= figures
        now_s = self._clock()
        if now_s - self._last_s >= _PLAIN_INTERVAL_S:
            self._last_s = now_s
            self._tell("")

    def close(self, *, completed: bool) -> None:
        self._tell("" if completed else " (stopped)")

    def _tell(self, ending: str) -> None:
        seconds = self._clock() - self._started_s
        new = self._done - self._initial
        rate = f", {new / seconds:.3g} {self._unit}/s" if seconds > 0 and new else ""
        todo = self._total - self._done
        left = f", {_duration(todo * seconds / new)} left" if todo > 0 and new > 0 else ""
        figures = "".join(f", {name} {_figure(value)}" for name, value in self._figures.items())
        self._lines.note(
            f"{self._description}: {self._done}/{self._total} {self._unit}, {seconds:.0f} s"
            f"{rate}{left}{figures}{ending}"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
