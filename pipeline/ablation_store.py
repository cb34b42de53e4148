"""Where an ablation keeps its artifacts, so that equal stages are run once.

``<run.dir>/ablate``::

    store/encoder-<key>/     an artifact; the key is a digest of all that determines it
    caches/<key>/cache/      an embedding cache (caches/<key>/teacher: its teacher, if trained)
    runs/<combination>/seed0/encoder -> ../../../store/encoder-<key>

A run folder of links is a run folder like any other: `status` and `report` read it. Keys are known
before anything runs, because they are digests of settings and of the keys of what comes before;
whether an artifact is fresh is still told by its manifest.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import fingerprint
from pipeline.errors import ArtifactError
from pipeline.plan import Observation, PlannedStage, observe, plan
from pipeline.stage_node import StageNode, StageState

if TYPE_CHECKING:
    from pipeline.ablation_grid import Combination

__all__ = ["CacheSource", "Store", "Variant", "stage_keys"]

_KEY_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class CacheSource:
    """The embedding cache of one or more variants.

    Attributes:
        key: digest of what determines it.
        folder: where it lies, or will.
        run: run folder in which it is made; None for the config's own cache, which is there.
        overrides: settings with which it is made in ``run``.
        graph: the stages that make it: the teacher's, where one is trained, and its own.
        keys: stage → key of its artifact.
        teacher: model folder of the trained teacher; None where none is trained.
    """

    key: str
    folder: Path
    run: Path | None
    overrides: tuple[str, ...]
    graph: tuple[StageNode, ...]
    keys: Mapping[str, str]
    teacher: Path | None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One combination with one seed.

    Attributes:
        combination: the values.
        seed: of the student's stages.
        folder: its run folder.
        overrides: every setting on top of the config.
        graph: its stages; the teacher's is not among them.
        keys: stage → key of its artifact.
        cache: its cache.
    """

    combination: "Combination"
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    graph: tuple[StageNode, ...]
    keys: Mapping[str, str]
    cache: CacheSource

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.combination.title}, seed {self.seed}"


def stage_keys(graph: Sequence[StageNode], *, cache: str | None = None) -> dict[str, str]:
    """Stage → digest of its settings and of the keys of its inputs.

    Args:
        graph: stages, each after its upstream stages.
        cache: key of the cache; by default that of its own stage in ``graph``.
    """
    keys: dict[str, str] = {}
    for node in graph:
        if node.examine is not None and cache is not None:
            keys[node.name] = cache
        else:
            upstream = {name: keys[name] for name in node.upstream}
            keys[node.name] = fingerprint(node.settings, upstream)
    return keys


class Store:
    """The folders of an ablation below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, stage: str, key: str) -> Path:
        """Folder of an artifact."""
        return self.root / "store" / f"{stage}-{key[:_KEY_LENGTH]}"

    def cache_run(self, key: str) -> Path:
        """Run folder in which a cache is made."""
        return self.root / "caches" / key[:_KEY_LENGTH]

    def run_folder(self, combination: "Combination", seed: int) -> Path:
        """Run folder of a variant."""
        return self.root / "runs" / combination.folder / f"seed{seed}"

    def results_folder(self, name: str) -> Path:
        """Folder of an ablation's results."""
        return self.root / "results" / name

    def link(self, folder: Path, graph: Sequence[StageNode], keys: Mapping[str, str]) -> None:
        """Make ``folder`` a run folder whose artifacts lie in the store.

        Raises:
            ArtifactError: a stage's name is taken by something that is no link.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for node in graph:
            if node.examine is not None:
                continue
            entry = self.entry(node.name, keys[node.name])
            entry.mkdir(parents=True, exist_ok=True)
            _point(folder / node.name, Path(os.path.relpath(entry, folder)))

    def planned(
        self,
        graph: Sequence[StageNode],
        keys: Mapping[str, str],
        examined: StageState | None = None,
    ) -> dict[str, PlannedStage]:
        """States of a variant's stages; nothing is written.

        Args:
            graph: its stages.
            keys: stage → key.
            examined: what the cache said, where it was asked already.
        """
        observed: dict[str, Observation] = {}
        for node in graph:
            if node.examine is not None:
                observed[node.name] = Observation(examined=examined or node.examine())
                continue
            entry = self.entry(node.name, keys[node.name])
            stored = replace(node, name=entry.name)
            observed[node.name] = observe((stored,), entry.parent)[entry.name]
        return {stage.name: stage for stage in plan(tuple(graph), observed)}


def _point(link: Path, target: Path) -> None:
    """Make ``link`` a symbolic link to ``target``, at once if it was another one."""
    if link.is_symlink():
        if link.readlink() == target:
            return
    elif link.exists():
        raise ArtifactError(
            f"{link} is no link into the ablation's store. Move it away and type the same command "
            f"again"
        )
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
