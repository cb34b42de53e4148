"""A small pipeline of real stage functions that write real files."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.options import Invocation
from pipeline.progress import make_progress
from pipeline.run_settings import RunSettings
from pipeline.runner import run_stages
from pipeline.selection import Commands, Selection
from pipeline.stage_node import StageNode, StageState
from stages.context import Artifact, Progress, StageContext

FOLLOWER = "second process of a launch"


@dataclass
class Notes:
    """A progress that keeps its notes and shows no bars."""

    lines: list[str] = field(default_factory=list)
    silent: Progress = field(default_factory=lambda: make_progress("none"))

    def bar(self, *, total: int, description: str, unit: str, initial: int = 0):
        return self.silent.bar(total=total, description=description, unit=unit, initial=initial)

    def note(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class SmallPipeline:
    """teacher → precompute (its own record) → encoder → memory → evaluate, and a baseline.

    Each stage writes ``weights.txt``: its settings and what its inputs hold.
    """

    root: Path
    settings: dict[str, dict[str, object]] = field(
        default_factory=lambda: {
            "teacher": {"teacher.steps": 3},
            "precompute": {"data.source": "a"},
            "encoder": {"encoder.learning_rate": 0.001},
            "memory": {"memory.steps": 2},
            "baseline": {"baseline.steps": 5},
            "evaluate": {"evaluate.tolerance_mm": 2.0},
        }
    )
    with_teacher: bool = False
    ran: list[str] = field(default_factory=list)
    contexts: dict[str, StageContext] = field(default_factory=dict)
    during: dict[str, Callable[[StageContext], None]] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)

    @property
    def run_dir(self) -> Path:
        return self.root / "run"

    @property
    def cache(self) -> Path:
        return self.root / "my.cache"

    def graph(self) -> tuple[StageNode, ...]:
        upstream = {
            "precompute": ("teacher",) if self.with_teacher else (),
            "encoder": ("precompute",),
            "memory": ("encoder", "precompute"),
            "baseline": ("precompute",),
            "evaluate": ("precompute", "memory", "baseline"),
        }
        names = (["teacher"] if self.with_teacher else []) + list(upstream)
        return tuple(
            StageNode(
                name=name,
                upstream=upstream.get(name, ()),
                settings=dict(self.settings[name]),
                run=self._stage(name),
                examine=self._examine if name == "precompute" else None,
                shared=name in ("encoder", "memory", "baseline"),
            )
            for name in names
        )

    def run(
        self,
        *,
        only: tuple[str, ...] = (),
        from_stage: str | None = None,
        force: tuple[str, ...] = (),
        resume: bool = True,
        config_text: str | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> tuple[str, ...]:
        self.ran.clear()
        self.notes.lines.clear()
        typed = Invocation(command=("run",), config="laptop", overrides=("run.seed=3",))
        return run_stages(
            self.graph(),
            settings=RunSettings(
                directory=self.run_dir,
                cache=self.cache,
                seed=3,
                device="cpu",
                resume=resume,
                process=process,
                processes=processes,
            ),
            selection=Selection(only=only, from_stage=from_stage, force=frozenset(force)),
            progress=self.notes,
            commands=Commands(
                stage=typed.stage_text,
                resume=lambda forced: typed.text(tuple(forced)),
                with_settings=lambda settings: typed.with_settings(settings, force),
            ),
            config_text=config_text,
        )

    def weights(self, stage: str) -> str:
        folder = self.cache if stage == "precompute" else self.run_dir / stage
        return (folder / "weights.txt").read_text()

    def _stage(self, name: str) -> Callable[[StageContext], Artifact]:
        def run(context: StageContext) -> Artifact:
            self.ran.append(name)
            self.contexts[name] = context
            if name in self.during:
                self.during[name](context)
            inputs = {
                other: (folder / "weights.txt").read_text()
                for other, folder in context.inputs.items()
            }
            text = json.dumps([self.settings[name], inputs], sort_keys=True)
            if threading.current_thread().name == FOLLOWER:
                return Artifact(files=("weights.txt",))  # the first process of a launch writes
            (context.directory / "weights.txt").write_text(text)
            if name == "precompute":
                record = {"settings": self.settings[name], "teacher": inputs.get("teacher")}
                (context.directory / "cache.json").write_text(json.dumps(record))
            return Artifact(files=("weights.txt",), summary={"size": len(text)})

        return run

    def _examine(self) -> StageState:
        path = self.cache / "cache.json"
        if not path.is_file():
            rows = self.cache / "rows.txt"
            return StageState(fingerprint=None, note=rows.read_text() if rows.is_file() else "")
        if path.read_text() == "damaged":
            return StageState(fingerprint=None, problem="cache.json is damaged")
        record = json.loads(path.read_text())
        wanted = self.settings["precompute"]
        differing = [
            (key, record["settings"].get(key), value)
            for key, value in wanted.items()
            if record["settings"].get(key) != value
        ]
        teacher = self.run_dir / "teacher" / "weights.txt"
        if self.with_teacher and teacher.is_file() and teacher.read_text() != record["teacher"]:
            differing.append(("teacher.weights", "old", "new"))
        return StageState(fingerprint=path.read_text(), differing=tuple(differing))


@pytest.fixture
def small(tmp_path: Path) -> SmallPipeline:
    return SmallPipeline(root=tmp_path)
