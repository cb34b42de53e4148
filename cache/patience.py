"""Asking an object store again and again until it answers or patience ends, and saying so.

A store that is restarted costs time and nothing else. An address that never answered is more
likely to be wrong, and is given up sooner.
"""

import math
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from cache.errors import CacheUnreachableError

__all__ = ["Asking", "Patience"]

ResultT = TypeVar("ResultT")

_REFUSED = re.compile(r"status code: 40[01345]\b")
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a store that does not answer is waited for.

    Attributes:
        first_seconds: for its first answer.
        seconds: once it has answered.
        quiet_seconds: of one request; from then on it is said that it is waited for.
        setting: what a user types to change it.
    """

    first_seconds: float = 60.0
    seconds: float = 600.0
    quiet_seconds: float = 4.0
    setting: str = "--set cache.mirror.patience_seconds=SECONDS"


class Asking:
    """Requests to one store. May be used from several threads.

    Args:
        url: of the store, for messages.
        patience: how long.
        note: told once when waiting begins, and once when it is over.
    """

    def __init__(self, url: str, patience: Patience, note: Callable[[str], None] | None) -> None:
        self._url = url
        self._patience = patience
        self._note = note
        self._answered = False
        self._waiting = False
        self._telling = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """Let requests that wait for the store give up at once."""
        self._closed.set()

    def within(self, seconds: float) -> "Asking":
        """Give the same, but for so long at most; closing either closes both."""
        patience = replace(
            self._patience,
            first_seconds=min(seconds, self._patience.first_seconds),
            seconds=min(seconds, self._patience.seconds),
        )
        asking = Asking(self._url, patience, self._note)
        asking._closed = self._closed
        return asking

    def ask(
        self,
        what: str,
        call: Callable[[Callable[[], None]], ResultT],
        *,
        quiet_seconds: float = 0.0,
    ) -> ResultT:
        """Do a request until it succeeds or is hopeless.

        Args:
            what: the object, or what is done, for messages.
            call: the request; is given a function that it may call when the store has begun to
                answer, so that a long answer is not taken for none.
            quiet_seconds: that this request may take longer than others.

        Raises:
            FileNotFoundError: there is no such object.
            CacheUnreachableError: the store does not answer, or refuses.
            obstore.exceptions.BaseError: the object exists, or changed, against a condition.
        """
        from obstore import exceptions

        final = (
            exceptions.AlreadyExistsError,
            exceptions.PreconditionError,
            exceptions.NotModifiedError,
        )
        hopeless = (
            exceptions.PermissionDeniedError,
            exceptions.UnauthenticatedError,
            exceptions.NotSupportedError,
            exceptions.InvalidPathError,
        )
        seconds = self._patience.seconds if self._answered else self._patience.first_seconds
        # Not before the first pause, so that a store which is slow to refuse is asked twice.
        deadline = -math.inf if seconds == 0 else math.inf
        started = time.monotonic()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                result = self._once(call, self._patience.quiet_seconds + quiet_seconds, seconds)
            except final:
                self._answers()
                raise
            except (exceptions.NotFoundError, FileNotFoundError) as error:
                self._answers()
                raise FileNotFoundError(f"{self._url}/{what} does not exist") from error
            except hopeless as error:
                raise self.unreachable(what, error) from error
            except exceptions.BaseError as error:
                if _REFUSED.search(str(error)):  # a bucket that does not exist, for one
                    raise self.unreachable(what, error) from error
                self._give_up_after(deadline, what, error)
            except OSError as error:
                if error.errno is not None:  # the disk's, not the network's
                    raise
                self._give_up_after(deadline, what, error)
            else:
                self._answers()
                return result
            deadline = started + seconds
            self._waits(seconds)
            self._closed.wait(pause * random.uniform(0.5, 1))  # not all threads at one time
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _once(
        self, call: Callable[[Callable[[], None]], ResultT], quiet: float, seconds: float
    ) -> ResultT:
        overdue = threading.Timer(quiet, self._waits, (seconds,))
        overdue.daemon = True
        overdue.start()
        try:
            return call(overdue.cancel)
        finally:
            overdue.cancel()

    def _give_up_after(self, deadline: float, what: str, error: Exception) -> None:
        if time.monotonic() > deadline or self._closed.is_set():
            raise self.unreachable(what, error) from error

    def _waits(self, seconds: float) -> None:
        with self._telling:
            if not self._waiting and not self._closed.is_set():
                self._waiting = True
                self._tell(
                    f"{self._url} does not answer and is asked again for up to {seconds:g} s "
                    f"(change it: {self._patience.setting})"
                )

    def _answers(self) -> None:
        self._answered = True
        if self._waiting:
            with self._telling:
                self._waiting = False
                self._tell(f"{self._url} answers")

    def _tell(self, text: str) -> None:
        if self._note is not None:
            self._note(text)

    def unreachable(self, what: str, error: Exception) -> CacheUnreachableError:
        """Make the error of a request that failed for good."""
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return CacheUnreachableError(
            f"{self._url} ({what}): {first}. Check the address, cache.store_options and the "
            "environment (AWS_ENDPOINT, AWS_ACCESS_KEY_ID, ...), then run the command again"
        )
