"""Runs what is not fresh, in order, and records what came out."""

import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.artifacts import (
    CHECKPOINT_FOLDERS,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Manifest,
    describe_files,
    fingerprint,
    json_value,
    library_versions,
    write_atomically,
    write_manifest,
)
from pipeline.errors import ConfigError, PipelineError, RunInterruptedError
from pipeline.plan import Observation, PlannedStage, observe, plan
from pipeline.run_lock import locked
from pipeline.run_settings import RunSettings
from pipeline.selection import Commands, Selection, check_inputs, check_names, selected_names
from pipeline.signals import sigterm_as_interrupt
from pipeline.stage_node import StageNode
from stages.context import Artifact, Progress, StageContext

__all__ = ["run_stages"]

CONFIG_NAME = "config.yaml"
_POLL_S = 0.05


def run_stages(
    graph: tuple[StageNode, ...],
    *,
    settings: RunSettings,
    selection: Selection,
    progress: Progress,
    commands: Commands,
    config_text: str | None = None,
) -> tuple[str, ...]:
    """Run the selected stages that are not fresh.

    A stage's state is looked up again just before its turn, so one whose inputs were made again
    with the very same result is skipped. Its old manifest is removed before it starts: a killed
    run is never taken for a finished one.

    Args:
        graph: all stages, each after its upstream stages.
        settings: where and how.
        selection: which of them.
        progress: where to tell how far it is.
        commands: how the user would type it, for messages.
        config_text: YAML that is kept as ``config.yaml`` in the run folder.

    Returns:
        Names of the stages that ran.

    Raises:
        ConfigError: the selection names no stage of ``graph``.
        ArtifactError: an input is missing, or a cache was made with other settings.
        RunLockedError: another process works in the run folder.
        RunInterruptedError: Ctrl-C or SIGTERM.
        Exception: whatever a stage raises.
    """
    check_names(graph, selection)
    settings.directory.mkdir(parents=True, exist_ok=True)
    lock = locked(settings.directory) if settings.leads else nullcontext()
    with lock, sigterm_as_interrupt():
        run = _Run(graph, settings, selection, progress)
        try:
            run.prepare(commands)
            if config_text is not None and settings.leads:
                write_atomically(settings.directory / CONFIG_NAME, config_text)
            return run.through(commands)
        except KeyboardInterrupt as interrupt:
            where = f" during {run.current}" if run.current else ""
            raise RunInterruptedError(
                f"interrupted{where}. Continue: {commands.resume(run.still_forced())}"
            ) from interrupt


class _Run:
    """One pass over the graph: what was seen on disk, what began, what ended."""

    def __init__(
        self,
        graph: tuple[StageNode, ...],
        settings: RunSettings,
        selection: Selection,
        progress: Progress,
    ) -> None:
        self._graph = graph
        self._nodes = {node.name: node for node in graph}
        self._settings = settings
        self._selection = selection
        self._progress = progress
        self._observed: dict[str, Observation] = observe(graph, settings.directory)
        self._begun: set[str] = set()
        self._ended: list[str] = []
        self.current: str | None = None

    def prepare(self, commands: Commands) -> None:
        """Refuse what cannot end well before anything is touched; drop old checkpoints."""
        planned = self._plan()
        chosen = selected_names(self._graph, self._selection)
        to_run = tuple(name for name in chosen if _due(planned[name]))
        check_inputs(self._graph, planned, to_run, self._selection.force, commands)
        self._check_launch(to_run, commands)
        self._drop_checkpoints(to_run)

    def through(self, commands: Commands) -> tuple[str, ...]:
        """Run every selected stage that is not fresh when its turn comes."""
        chosen = selected_names(self._graph, self._selection)
        force = self._selection.force
        for position, name in enumerate(chosen):
            planned = self._plan()
            if not _due(planned[name]):
                why = "" if planned[name].needed else f" ({'; '.join(planned[name].reasons)})"
                self._progress.note(f"{name}: {planned[name].state}{why}")
                continue
            rest = tuple(other for other in chosen[position:] if _due(planned[other]))
            check_inputs(self._graph, planned, rest, force, commands)
            if not (self._settings.leads or self._nodes[name].shared):
                break  # nothing shared comes after it: the first process ends this alone
            reasons = "; ".join(planned[name].reasons)
            self._progress.note(
                f"{name}: {planned[name].state}{f' ({reasons})' if reasons else ''}, running"
            )
            self._run_one(self._nodes[name])
        return tuple(self._ended)

    def still_forced(self) -> frozenset[str]:
        """Name the forced stages that a continuation must force again: those not begun yet.

        A cache is removed by its own stage, so whether that happened is read from the disk.
        """
        left = self._selection.force - self._begun
        for name in self._selection.force & self._begun - set(self._ended):
            node = self._nodes[name]
            if node.examine is not None:
                found = node.examine()
                if found.fingerprint is not None or found.differing or found.problem:
                    left |= {name}
        return frozenset(left)

    def _plan(self) -> dict[str, PlannedStage]:
        forced = frozenset(self._selection.force - self._begun)
        return {stage.name: stage for stage in plan(self._graph, self._observed, forced)}

    def _check_launch(self, to_run: tuple[str, ...], commands: Commands) -> None:
        """Refuse a launch in which most processes would wait for one of them."""
        if self._settings.processes == 1:
            return
        alone = [name for name in to_run if not self._nodes[name].shared]
        late = [name for name in to_run if self._nodes[name].shared and alone]
        if late and to_run.index(alone[0]) < to_run.index(late[-1]):
            raise ConfigError(
                f"{alone[0]} runs in one process, before {late[-1]}: do it first, without "
                f"accelerate launch: {commands.stage(alone[0], False)}"
            )

    def _drop_checkpoints(self, to_run: tuple[str, ...]) -> None:
        if not self._settings.leads:
            return
        for name in to_run:
            if not self._resumes(name) and self._nodes[name].examine is None:
                for folder in CHECKPOINT_FOLDERS:
                    path = self._settings.directory / name / folder
                    if path.is_dir():
                        shutil.rmtree(path)
                self._observed |= observe((self._nodes[name],), self._settings.directory)

    def _resumes(self, name: str) -> bool:
        return self._settings.resume and name not in self._selection.force

    def _folder(self, node: StageNode) -> Path:
        if node.examine is not None:
            return self._settings.cache
        return self._settings.directory / node.name

    def _run_one(self, node: StageNode) -> None:
        upstream = {name: self._identity(name) for name in node.upstream}
        context = StageContext(
            directory=self._folder(node),
            inputs={name: self._folder(self._nodes[name]) for name in node.upstream},
            cache=self._settings.cache,
            fingerprint=fingerprint(node.settings, upstream),
            seed=self._settings.seed,
            device=self._settings.device,
            resume=self._resumes(node.name),
            progress=self._progress,
            cluster=self._settings.cluster,
            mirror=self._settings.mirror,
        )
        self.current = node.name
        context.directory.mkdir(parents=True, exist_ok=True)
        self._begun.add(node.name)
        recorded = node.examine is None and self._settings.leads
        if recorded:
            (context.directory / MANIFEST_NAME).unlink(missing_ok=True)
        started, started_s = datetime.now(UTC), time.monotonic()
        artifact = node.run(context)
        if not self._settings.leads:
            self._wait_for_record(node)
        if recorded:
            manifest = _manifest(node, context, artifact, upstream=upstream, started=started)
            write_manifest(context.directory, manifest)
        self._look_again(node)
        self._ended.append(node.name)
        self.current = None
        self._progress.note(
            f"{node.name}: done in {time.monotonic() - started_s:.1f} s{_figures(artifact.summary)}"
        )

    def _wait_for_record(self, node: StageNode) -> None:
        """Wait until the first process has written the manifest.

        It removed the old one before the stage began. Where it fails instead, the launcher ends
        this process too.
        """
        while not (self._folder(node) / MANIFEST_NAME).is_file():
            time.sleep(_POLL_S)

    def _identity(self, name: str) -> str:
        identity = self._observed[name].identity
        assert identity is not None, f"{name} was checked to be fresh"
        return identity

    def _look_again(self, node: StageNode) -> None:
        """Read from disk what a run may have changed: its own record, and caches made from it."""
        touched = tuple(
            other
            for other in self._graph
            if other is node or (other.examine is not None and node.name in other.upstream)
        )
        self._observed |= observe(touched, self._settings.directory)
        state = self._plan()[node.name]
        if state.state != "fresh":
            raise PipelineError(
                f"{node.name} ended, yet its result is {state.state}: {'; '.join(state.reasons)}"
            )


def _due(stage: PlannedStage) -> bool:
    return stage.state != "fresh" and stage.needed


def _manifest(
    node: StageNode,
    context: StageContext,
    artifact: Artifact,
    *,
    upstream: Mapping[str, str],
    started: datetime,
) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        stage=node.name,
        fingerprint=context.fingerprint,
        settings=dict(node.settings),
        upstream=dict(upstream),
        files=describe_files(context.directory, artifact.files),
        summary=json_value(artifact.summary),
        started_utc=started.isoformat(timespec="seconds"),
        finished_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(),
    )


def _figures(summary: Mapping[str, Any]) -> str:
    """Numbers of a summary on one line."""
    numbers = {k: v for k, v in json_value(summary).items() if isinstance(v, int | float)}
    if not numbers:
        return ""
    return f" ({', '.join(f'{name} {value:.4g}' for name, value in numbers.items())})"
