"""Which stages a command asks for, and whether what they need is there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ArtifactError, ConfigError
from pipeline.plan import PlannedStage
from pipeline.stage_node import StageNode

__all__ = ["Commands", "Selection", "check_inputs", "check_names", "selected_names", "stage_family"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the user asks to run.

    Attributes:
        only: run these stages and no other; all if empty.
        from_stage: run this stage and those after it; all if None.
        force: run these even where they are fresh, from their beginning.
    """

    only: tuple[str, ...] = ()
    from_stage: str | None = None
    force: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Commands:
    """How the user would type it: for messages that name the command which mends.

    Attributes:
        stage: (name of a stage, forced) → the command that runs it.
        resume: stages still to be forced → the command that continues this run.
        with_settings: settings → the same command with these on top.
    """

    stage: Callable[[str, bool], str]
    resume: Callable[[frozenset[str]], str]
    with_settings: Callable[[Mapping[str, Any]], str]


def stage_family(graph: tuple[StageNode, ...], family: str) -> tuple[str, ...]:
    """Names of the stages ``family`` and ``family_NN`` (one for each label fraction)."""
    return tuple(n.name for n in graph if n.name == family or n.name.startswith(f"{family}_"))


def check_names(graph: tuple[StageNode, ...], selection: Selection) -> None:
    """Refuse names that are no stages, and forced stages that the command does not run.

    Raises:
        ConfigError: names the stages.
    """
    known = tuple(node.name for node in graph)
    asked = {"--only": selection.only, "--force": tuple(sorted(selection.force))}
    asked["--from"] = () if selection.from_stage is None else (selection.from_stage,)
    for option, names in asked.items():
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{option} {name}: this config has no such stage; its stages are: "
                    f"{', '.join(known)}"
                )
    if selection.only and selection.from_stage is not None:
        raise ConfigError("--only and --from exclude each other: give one of them")
    chosen = selected_names(graph, selection)
    for name in sorted(selection.force - set(chosen)):
        raise ConfigError(
            f"--force {name}: not among the stages of this command ({', '.join(chosen)})"
        )


def selected_names(graph: tuple[StageNode, ...], selection: Selection) -> tuple[str, ...]:
    """Names of the stages that ``selection`` covers, in the order of ``graph``."""
    names = tuple(node.name for node in graph)
    if selection.only:
        return tuple(name for name in names if name in selection.only)
    if selection.from_stage is not None:
        return names[names.index(selection.from_stage) :]
    return names


def check_inputs(
    graph: tuple[StageNode, ...],
    planned: Mapping[str, PlannedStage],
    to_run: tuple[str, ...],
    force: frozenset[str],
    commands: Commands,
) -> None:
    """Refuse to start where an input would be missing, or a cache would be overwritten unasked.

    Args:
        graph: the stages.
        planned: their states.
        to_run: stages that will run, in order.
        force: stages that the user forces.
        commands: how the user would type what mends it.

    Raises:
        ArtifactError: names each stage that is not fresh, why, and the commands.
    """
    nodes = {node.name: node for node in graph}
    for name in to_run:
        node, state = nodes[name], planned[name]
        if node.examine is not None and state.state == "stale" and name not in force:
            raise ArtifactError(
                f"{name}: the cache there does not fit ({'; '.join(state.reasons)}).\n"
                f"{_take_as_stored((state,), commands, 'or m') or 'M'}"
                f"ake it anew, which removes it: {commands.stage(name, True)}\n"
                f"or keep it: name another folder with --set cache.path=..., or set the value back"
            )
        ancestors = _ancestors(nodes, name)
        lacking = [
            stage
            for stage in planned.values()
            if stage.name in ancestors
            and stage.name not in to_run
            and stage.state != "fresh"
            and stage.needed
        ]
        if lacking:
            what = "; ".join(f"{stage.name} ({_describe(stage)})" for stage in lacking)
            cures = dict.fromkeys(
                commands.stage(stage.name, _must_force(nodes[stage.name], stage))
                for stage in lacking
            )
            lines = "\n  ".join(cures)
            raise ArtifactError(
                f"{name} needs {what}.\n{_take_as_stored(lacking, commands, 'or m') or 'M'}"
                f"ake what it needs first:\n  {lines}"
            )


def _take_as_stored(stages: Sequence[PlannedStage], commands: Commands, then: str) -> str:
    """What takes a cache as it is stored; nothing where that alone is not what differs."""
    settings = {key: value for stage in stages for key, value in stage.stored.items()}
    if not settings:
        return ""
    return f"Take the cache as it is stored: {commands.with_settings(settings)}\n{then}"


def _must_force(node: StageNode, stage: PlannedStage) -> bool:
    return node.examine is not None and stage.state == "stale"


def _describe(stage: PlannedStage) -> str:
    return f"{stage.state}: {'; '.join(stage.reasons)}" if stage.reasons else stage.state


def _ancestors(nodes: Mapping[str, StageNode], name: str) -> tuple[str, ...]:
    """Every stage that ``name`` depends on, directly or not."""
    found: dict[str, None] = {}
    waiting = list(nodes[name].upstream)
    while waiting:
        upstream = waiting.pop()
        if upstream not in found:
            found[upstream] = None
            waiting += nodes[upstream].upstream
    return tuple(found)
