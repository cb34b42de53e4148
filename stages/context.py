"""What a stage is given, and what it hands back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from cache.mirror import Mirror
    from stages.cluster import Cluster

__all__ = ["Artifact", "Progress", "ProgressBar", "StageContext"]


class ProgressBar(Protocol):
    """A bar of known length; used as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, n: int = 1, **figures: float | str) -> None:
        """Advance by ``n`` and show ``figures`` beside the bar."""


class Progress(Protocol):
    """Where a stage tells how far it is."""

    def bar(self, *, total: int, description: str, unit: str, initial: int = 0) -> ProgressBar:
        """Open a bar over ``total`` units, ``initial`` of which are done already."""

    def note(self, text: str) -> None:
        """Print one line for the user."""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """The surroundings of one run of one stage.

    Attributes:
        directory: the stage's artifact folder; exists and is writable.
        inputs: upstream stage name → its artifact folder.
        cache: folder of the embedding cache.
        fingerprint: identity of this run's settings and inputs. A checkpoint of another
            fingerprint is never continued.
        seed: seed of every random stream of the stage.
        device: ``auto``, ``cpu`` or ``cuda``.
        resume: continue a checkpoint of the same fingerprint where one exists.
        progress: where to tell how far the stage is.
        mirror: of a cache on an object store, whose local folder ``cache`` is; None: it is local.
        cluster: workers for the stage's tasks; None: everything is done in this process.
    """

    directory: Path
    inputs: Mapping[str, Path]
    cache: Path
    fingerprint: str
    seed: int
    device: str
    resume: bool
    progress: Progress
    cluster: "Cluster | None" = None
    mirror: "Mirror | None" = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a stage made.

    Attributes:
        files: names relative to the artifact folder; their digests go into the manifest.
        summary: figures worth showing without opening a file (JSON values).
    """

    files: tuple[str, ...]
    summary: Mapping[str, Any] = field(default_factory=dict)
