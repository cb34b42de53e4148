"""One stage of the pipeline, as the plan and the runner see it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.context import Artifact, StageContext

__all__ = ["StageNode", "StageState"]


@dataclass(frozen=True, kw_only=True)
class StageState:
    """What a stage that carries its own record (the cache) says about it.

    Attributes:
        fingerprint: identity of the complete result; None where it is absent or unfinished.
        differing: (key, value it was made with, value that is wanted now), empty when all fit.
        note: with no fingerprint, how much of an unfinished result there is (empty: nothing);
            with one, what could not be compared.
        problem: why the record cannot be read, where it is damaged.
    """

    fingerprint: str | None
    differing: tuple[tuple[str, Any, Any], ...] = ()
    note: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class StageNode:
    """A stage: what it consumes, what determines its result, how to run it.

    Attributes:
        name: the stage, and the name of its artifact folder.
        upstream: stages whose artifacts it consumes.
        settings: flat JSON-able settings that determine its result.
        run: does the work; imports the stage's module only when called, so that a student stage
            never loads a teacher's.
        examine: for a stage whose artifact carries its own record: read that. Such a stage works
            in the cache folder and gets no manifest.
        shared: every process of an `accelerate launch` runs it together; otherwise the first
            process runs it alone.
    """

    name: str
    upstream: tuple[str, ...]
    settings: Mapping[str, Any]
    run: Callable[[StageContext], Artifact]
    examine: Callable[[], StageState] | None = None
    shared: bool = False
