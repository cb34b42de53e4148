"""An ablation: the stages for every combination of values and every seed, equal stages once."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.ablation_grid import combinations
from pipeline.ablation_layout import lay_out
from pipeline.ablation_request import AblationRequest
from pipeline.ablation_results import (
    AblationResults,
    CombinationResults,
    Failure,
    ModelFigures,
    SeedResults,
    read_results,
    write_results,
)
from pipeline.ablation_store import CacheSource, Variant
from pipeline.artifacts import library_versions, read_manifest
from pipeline.errors import RunInterruptedError
from pipeline.execution import execute
from pipeline.options import Invocation
from pipeline.report_records import finite
from pipeline.selection import Selection
from pipeline.stage_node import StageState

__all__ = ["Ablation", "StageCount"]

RESULTS_NAME = "results.json"
_CACHE_PREFIX = "precompute-"


@dataclass(frozen=True, kw_only=True)
class StageCount:
    """How often a stage is used, how many different ones that are, and how many are fresh."""

    stage: str
    uses: int
    different: int
    fresh: int


class Ablation:
    """One ablation, laid out; :meth:`run` does what is not fresh.

    Args:
        request: what was asked for.
        models: folder of pulled models.

    Raises:
        ConfigError: a key, value or stage that does not exist.
    """

    def __init__(self, request: AblationRequest, *, models: Path | None) -> None:
        self._request = request
        self.grid = combinations(request.factors)
        assert request.invocation.config is not None
        layout = lay_out(
            request.invocation.config,
            request.invocation.overrides,
            self.grid,
            request.seeds,
            request.stages,
            models=models,
        )
        self.store, self.seeds, self.variants = layout.store, layout.seeds, layout.variants
        self.folder = self.store.results_folder(request.folder)
        self._failures: list[Failure] = []
        self._ended: list[Variant] = []
        earlier = self.folder / RESULTS_NAME
        self._earlier = read_results(earlier) if earlier.is_file() else None
        self._wall_s = self._earlier.wall_s if self._earlier else 0.0
        took = self._earlier.stage_seconds if self._earlier else {}
        self._cache_seconds = {
            name.removeprefix(_CACHE_PREFIX): seconds
            for name, seconds in took.items()
            if name.startswith(_CACHE_PREFIX)
        }
        self._started = self._earlier.started_utc if self._earlier else _now()

    @property
    def command(self) -> str:
        """The command line, to be typed again."""
        return self._request.invocation.text()

    def counts(self) -> tuple[StageCount, ...]:
        """What a run of this ablation takes, by stage."""
        uses: dict[str, int] = {}
        entries: dict[str, dict[str, bool]] = {}
        for variant, examined in self._examined():
            planned = self.store.planned(variant.graph, variant.keys, examined)
            wanted = self._request.stages.of(variant.graph)
            keys = dict(variant.keys)
            if "precompute" in wanted and variant.cache.run is not None:
                teacher = variant.cache.graph[:-1]  # where one is trained
                planned = self.store.planned(teacher, variant.cache.keys) | planned
                keys |= {node.name: variant.cache.keys[node.name] for node in teacher}
                wanted = (*(node.name for node in teacher), *wanted)
            for name in wanted:
                uses[name] = uses.get(name, 0) + 1
                entries.setdefault(name, {})[keys[name]] = planned[name].state == "fresh"
        return tuple(
            StageCount(
                stage=name,
                uses=count,
                different=len(entries[name]),
                fresh=sum(entries[name].values()),
            )
            for name, count in uses.items()
        )

    def run(self, *, tell: Callable[[str], None]) -> AblationResults:
        """Run what is not fresh; the results file is written again after every run.

        Args:
            tell: prints a line about what comes next.

        Raises:
            RunInterruptedError: Ctrl-C or SIGTERM.
            Exception: what a stage raises, unless ``keep_going``.
        """
        for number, variant in enumerate(self.variants, start=1):
            tell(f"[{number}/{len(self.variants)}] {variant.title}")
            started_s = time.monotonic()
            try:
                worked = self._run_one(variant)
            except RunInterruptedError:
                raise
            except Exception as error:
                if not self._request.keep_going:
                    raise
                tell(f"failed: {error}")
                self._failures.append(
                    Failure(
                        values=variant.combination.labels,
                        seed=variant.seed,
                        error=str(error) or type(error).__name__,
                    )
                )
                worked = True
            else:
                self._ended.append(variant)
            if worked:
                self._wall_s += time.monotonic() - started_s
            write_results(self.folder / RESULTS_NAME, self.results())
        return self.results()

    def results(self) -> AblationResults:
        """What is known so far."""
        documents = {id(variant): self._evaluation(variant) for variant in self._ended}
        first = next((each for each in documents.values() if each is not None), None)
        found = tuple(
            CombinationResults(
                values=combination.labels,
                runs=tuple(
                    self._seed_results(variant, documents[id(variant)])
                    for variant in self._ended
                    if variant.combination is combination
                ),
            )
            for combination in self.grid
        )
        return AblationResults(
            title=self._request.heading,
            command=self.command,
            factors=self._request.factor_records(),
            seeds=self.seeds,
            started_utc=self._started,
            finished_utc=_now(),
            wall_s=round(self._wall_s, 1),
            stage_seconds=dict(self._seconds()),
            stage_uses=sum(len(self._request.stages.of(v.graph)) for v in self.variants),
            versions=library_versions(),
            context=first["context"] if first is not None else {},
            combinations=found,
            failures=tuple(self._failures),
            complete=len(self._ended) == len(self.variants),
        )

    def _run_one(self, variant: Variant) -> bool:
        """Whether a stage had to run."""
        wanted = self._request.stages.of(variant.graph)
        made = self._make_cache(variant.cache) if "precompute" in wanted else False
        self.store.link(variant.folder, variant.graph, variant.keys)
        rest = tuple(name for name in wanted if name != "precompute")
        if not rest:
            return made
        if "evaluate" in rest:
            self._take_over_measurements(variant)
        return bool(self._execute(variant.overrides, rest)) or made

    def _make_cache(self, cache: CacheSource) -> bool:
        """Whether it had to be made."""
        if cache.run is None:
            return False
        started_s = time.monotonic()
        self.store.link(cache.run, cache.graph, cache.keys)
        ran = self._execute(cache.overrides, tuple(node.name for node in cache.graph))
        if "precompute" in ran:
            self._cache_seconds[cache.run.name] = round(time.monotonic() - started_s, 1)
        return bool(ran)

    def _execute(self, overrides: tuple[str, ...], stages: tuple[str, ...]) -> tuple[str, ...]:
        typed = self._request.invocation
        return execute(
            Invocation(
                command=("run",), config=typed.config, overrides=overrides, progress=typed.progress
            ),
            True,
            (),
            lambda graph: Selection(only=stages),
            resume_invocation=typed,
        ).stages

    def _take_over_measurements(self, variant: Variant) -> None:
        """Give the evaluation what it measured of equal models in an earlier variant.

        It takes over a figure only where weights, data, seed and settings are the same.
        """
        models = self.store.entry("evaluate", variant.keys["evaluate"]) / "models"
        models.mkdir(exist_ok=True)
        for other in self._ended:
            if other.seed != variant.seed or "evaluate" not in other.keys:
                continue
            for path in (other.folder / "evaluate" / "models").glob("*.json"):
                teachers = path.stem == "teacher" and other.cache.key == variant.cache.key
                same = variant.keys.get(path.stem) == other.keys.get(path.stem, "")
                if (teachers or same) and not (models / path.name).exists():
                    shutil.copyfile(path, models / path.name)

    def _examined(self) -> Iterator[tuple[Variant, StageState]]:
        """Every variant and what its cache says; a cache is asked once."""
        known: dict[str, StageState] = {}
        for variant in self.variants:
            key = variant.cache.key
            if key not in known:
                examine = next(node.examine for node in variant.graph if node.examine is not None)
                known[key] = examine()
            yield variant, known[key]

    def _seconds(self) -> Iterator[tuple[str, float]]:
        """Artifact → seconds that its stage took, of everything that is there."""
        keys = {variant.cache.run.name for variant in self.variants if variant.cache.run}
        for name in sorted(keys & self._cache_seconds.keys()):
            yield f"{_CACHE_PREFIX}{name}", self._cache_seconds[name]
        entries: dict[Path, None] = {}
        for variant in self._ended:
            for name in self._request.stages.of(variant.graph):
                if name != "precompute":
                    entries[self.store.entry(name, variant.keys[name])] = None
        for entry in entries:
            manifest = read_manifest(entry)
            if manifest is not None:
                began = datetime.fromisoformat(manifest.started_utc)
                ended = datetime.fromisoformat(manifest.finished_utc)
                yield entry.name, (ended - began).total_seconds()

    def _seed_results(self, variant: Variant, document: Mapping[str, Any] | None) -> SeedResults:
        rows = () if document is None else document["rows"]
        return SeedResults(
            seed=variant.seed,
            folder=variant.folder.relative_to(self.store.root).as_posix(),
            rows=tuple(ModelFigures.model_validate(row) for row in rows),
        )

    def _evaluation(self, variant: Variant) -> dict[str, Any] | None:
        """``rows.json`` of a variant's finished evaluation; None where it was not asked for."""
        if "evaluate" not in self._request.stages.of(variant.graph):
            return None
        text = (variant.folder / "evaluate" / "rows.json").read_text(encoding="utf-8")
        document: dict[str, Any] = finite(json.loads(text))
        return document


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
