"""Which stages are fresh, stale, missing or half done, and why.

:func:`observe` reads what is on disk; :func:`plan` is a pure function of that and the graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts import (
    SCHEMA_VERSION,
    Manifest,
    check_files,
    checkpoint_steps,
    fingerprint,
    read_manifest,
)
from pipeline.errors import ArtifactError
from pipeline.stage_node import StageNode, StageState

__all__ = ["Observation", "PlannedStage", "State", "observe", "plan"]

State = Literal["fresh", "stale", "missing", "partial"]
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What lies on disk for one stage.

    Attributes:
        manifest: the stage's manifest, where there is a readable one.
        problems: sentences about a damaged manifest, or files that do not fit it.
        checkpoints: fingerprint → step of the checkpoints.
        examined: what the stage's own examination found, for a stage that has one.
    """

    manifest: Manifest | None = None
    problems: tuple[str, ...] = ()
    checkpoints: Mapping[str, int] = field(default_factory=dict)
    examined: StageState | None = None

    @property
    def identity(self) -> str | None:
        """Identity of the finished result, or None where there is none."""
        if self.examined is not None:
            return self.examined.fingerprint
        return None if self.manifest is None else self.manifest.identity


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """State of one stage.

    Attributes:
        name: the stage.
        state: ``fresh``; ``stale`` (made from other settings or inputs); ``partial`` (can be
            continued); ``missing``.
        reasons: why, one sentence each.
        stored: settings that would take a cache as it is, where it differs in nothing but how it
            is stored.
        needed: False for a stage that is not fresh, yet nothing asks for it: its only consumers
            are complete and can be checked without it.
    """

    name: str
    state: State
    reasons: tuple[str, ...] = ()
    stored: Mapping[str, Any] = field(default_factory=dict)
    needed: bool = True


def observe(
    graph: tuple[StageNode, ...], run_dir: Path, *, digests: bool = False
) -> dict[str, Observation]:
    """Read what is on disk for every stage of ``graph``.

    Args:
        graph: the stages.
        run_dir: folder of their artifacts.
        digests: compare the contents of files with the manifests, not their sizes alone.
    """
    found: dict[str, Observation] = {}
    for node in graph:
        if node.examine is not None:
            found[node.name] = Observation(examined=node.examine())
            continue
        directory = run_dir / node.name
        checkpoints = checkpoint_steps(directory)
        try:
            manifest = read_manifest(directory)
        except ArtifactError as error:
            found[node.name] = Observation(problems=(str(error),), checkpoints=checkpoints)
            continue
        problems = () if manifest is None else check_files(directory, manifest, digests=digests)
        found[node.name] = Observation(
            manifest=manifest, problems=problems, checkpoints=checkpoints
        )
    return found


def plan(
    graph: tuple[StageNode, ...],
    observed: Mapping[str, Observation],
    forced: frozenset[str] = frozenset(),
) -> tuple[PlannedStage, ...]:
    """Say for every stage whether it must run, and why.

    Args:
        graph: the stages, each after its upstream stages.
        observed: what lies on disk for each of them.
        forced: stages that the user wants made again.

    Returns:
        One record a stage, in the order of ``graph``.
    """
    planned: dict[str, PlannedStage] = {}
    for node in graph:
        seen = observed[node.name]
        state, reasons = (
            _state_of_examined(node, seen.examined, planned)
            if seen.examined is not None
            else _state_of_artifact(node, seen, observed, planned)
        )
        if node.name in forced:
            state, reasons = ("stale" if state == "fresh" else state), ["forced", *reasons]
        planned[node.name] = PlannedStage(
            name=node.name, state=state, reasons=tuple(reasons), stored=_as_stored(seen.examined)
        )
    for node in graph:
        consumers = [other for other in graph if node.name in other.upstream]
        if (
            planned[node.name].state == "missing"
            and node.name not in forced
            and consumers
            and all(c.examine is not None and planned[c.name].state == "fresh" for c in consumers)
        ):
            names = ", ".join(consumer.name for consumer in consumers)
            planned[node.name] = PlannedStage(
                name=node.name,
                state="missing",
                reasons=(f"not needed: {names} is fresh",),
                needed=False,
            )
    return tuple(planned.values())


def _state_of_examined(
    node: StageNode, examined: StageState, planned: Mapping[str, PlannedStage]
) -> tuple[State, list[str]]:
    """State of a stage that carries its own record (the cache).

    Its upstream may be absent: a cache is carried to another machine without the teacher.
    """
    reasons = [examined.problem] if examined.problem else []
    reasons += [_difference(key, old, new) for key, old, new in examined.differing]
    note = [examined.note] if examined.note else []
    if not reasons and examined.fingerprint is None:
        return ("partial" if note else "missing"), note
    reasons += _waiting(node, planned, ("stale", "partial"))
    return ("stale" if reasons else "fresh"), reasons + note


def _as_stored(examined: StageState | None) -> dict[str, Any]:
    """Values of a sound cache in which alone it differs: none of them is about what is in it."""
    if examined is None or examined.problem:
        return {}
    differing = {key: there for key, there, _ in examined.differing}
    return differing if all(key.startswith("cache.") for key in differing) else {}


def _state_of_artifact(
    node: StageNode,
    seen: Observation,
    observed: Mapping[str, Observation],
    planned: Mapping[str, PlannedStage],
) -> tuple[State, list[str]]:
    waiting = _waiting(node, planned, ("stale", "partial", "missing"))
    if seen.manifest is None:
        if seen.problems:
            return "stale", [*seen.problems, *waiting]
        return _state_without_result(node, seen, observed, waiting)
    manifest = seen.manifest
    reasons = []
    if manifest.schema_version != SCHEMA_VERSION:
        reasons.append(_difference("schema_version", manifest.schema_version, SCHEMA_VERSION))
    for key in sorted(manifest.settings.keys() | node.settings.keys()):
        old, new = manifest.settings.get(key, _ABSENT), node.settings.get(key, _ABSENT)
        if old != new:
            reasons.append(_difference(key, old, new))
    for name in node.upstream:
        changed = manifest.upstream.get(name) != observed[name].identity
        if planned[name].state == "fresh" and changed:
            reasons.append(f"upstream {name} changed")
    reasons += [f"no longer upstream: {n}" for n in manifest.upstream if n not in node.upstream]
    reasons += [*waiting, *seen.problems]
    return ("stale" if reasons else "fresh"), reasons


def _state_without_result(
    node: StageNode,
    seen: Observation,
    observed: Mapping[str, Observation],
    waiting: list[str],
) -> tuple[State, list[str]]:
    if not seen.checkpoints or waiting:
        return "missing", waiting
    upstream = {name: str(observed[name].identity) for name in node.upstream}
    step = seen.checkpoints.get(fingerprint(node.settings, upstream))
    if step is None:
        return "missing", ["the checkpoint there is has other settings: it is not continued"]
    return "partial", [f"continues at step {step}"]


def _waiting(
    node: StageNode, planned: Mapping[str, PlannedStage], states: tuple[State, ...]
) -> list[str]:
    """Say which upstream stages are in one of ``states``, a sentence for each state."""
    sentences = []
    for state in states:
        names = [name for name in node.upstream if planned[name].state == state]
        if names:
            verb = "is" if len(names) == 1 else "are"
            sentences.append(f"upstream {', '.join(names)} {verb} {state}")
    return sentences


def _difference(key: str, old: object, new: object) -> str:
    def text(value: object) -> str:
        return "(absent)" if value is _ABSENT else str(value)

    return f"{key}: {text(old)} -> {text(new)}"
