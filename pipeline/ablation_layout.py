"""The variants of an ablation: a config, a seed and a cache for each, before anything runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.ablation_grid import Combination
from pipeline.ablation_store import CacheSource, Store, Variant, stage_keys
from pipeline.config import Config, load_config
from pipeline.config_file import known_keys
from pipeline.errors import ConfigError
from pipeline.options import PROGRAM
from pipeline.plan import observe, plan
from pipeline.selection import stage_family
from pipeline.stage_graph import build_graph
from pipeline.stage_node import StageNode

__all__ = ["AblationStages", "Layout", "lay_out", "seed_overrides"]


@dataclass(frozen=True, kw_only=True)
class AblationStages:
    """Which stages of every variant are wanted.

    Attributes:
        only: these and no other (``finetune`` stands for ``finetune_10`` too); all if empty.
        until: those up to this one; all if None.
    """

    only: tuple[str, ...] = ()
    until: str | None = None

    def of(self, graph: tuple[StageNode, ...]) -> tuple[str, ...]:
        """Names of the wanted stages of ``graph``, in its order."""
        names = tuple(node.name for node in graph)
        if self.only:
            wanted = {name for family in self.only for name in stage_family(graph, family)}
            return tuple(name for name in names if name in wanted)
        if self.until is not None:
            family = stage_family(graph, self.until)
            return names[: max((names.index(name) + 1 for name in family), default=0)]
        return names

    def check(self, graphs: Sequence[tuple[StageNode, ...]]) -> None:
        """Refuse names that are a stage of no graph, and both options at once.

        Raises:
            ConfigError: names the stages.
        """
        if self.only and self.until is not None:
            raise ConfigError("--only and --until exclude each other: give one of them")
        known = dict.fromkeys(node.name for graph in graphs for node in graph)
        until = () if self.until is None else (self.until,)
        for option, names in (("--only", self.only), ("--until", until)):
            for name in names:
                if not any(stage_family(graph, name) for graph in graphs):
                    raise ConfigError(
                        f"{option} {name}: no such stage here; the stages are: {', '.join(known)}"
                    )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An ablation, ready to run.

    Attributes:
        store: its folders.
        seeds: the seeds.
        variants: every combination with the first seed, then with the second, and so on.
    """

    store: Store
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]


def lay_out(
    name: str,
    overrides: tuple[str, ...],
    grid: Sequence[Combination],
    seeds: tuple[int, ...] | int,
    stages: AblationStages,
    *,
    models: Path | None,
) -> Layout:
    """Load the config of every variant and find out which stages are equal.

    Args:
        name: config file or preset.
        overrides: settings on top of it.
        grid: combinations of the varied keys.
        seeds: the seeds; a number: so many, from the config's own on.
        stages: which stages are wanted.
        models: folder of pulled models.

    Raises:
        ConfigError: a key, value or stage that does not exist, or one that is not to be varied;
            or the cache lies on an object store.
    """
    base = load_config(name, overrides, models=models)
    if (url := base.cache.remote_url) is not None:
        local = url.rstrip("/").rpartition("/")[2]
        raise ConfigError(
            f"ablate reads caches in folders, not {url}. Copy it: {PROGRAM} cache copy {url} "
            f"{local}, then type the same command with --set cache.path={local}"
        )
    for key in grid[0].labels:
        if key not in known_keys(Config):
            load_config(name, (*overrides, f"{key}=null"), models=models)  # names the near keys
    chosen = tuple(range(base.run.seed, base.run.seed + seeds)) if isinstance(seeds, int) else seeds
    store = Store(base.run.dir / "ablate")
    caches: dict[str, CacheSource] = {}
    variants: list[Variant] = []
    sources = []
    for combination in grid:
        settings = overrides + combination.overrides
        config = load_config(name, settings, models=models)
        _check_own(base, config, combination)
        source = _cache_source(config, settings, store)
        sources.append((combination, settings, caches.setdefault(source.key, source)))
    for seed in chosen:
        for combination, settings, source in sources:
            folder = store.run_folder(combination, seed)
            full = settings + seed_overrides(
                folder, seed=seed, cache=source.folder, teacher=source.teacher
            )
            graph = build_graph(load_config(name, full, models=models))
            variants.append(
                Variant(
                    combination=combination,
                    seed=seed,
                    folder=folder,
                    overrides=full,
                    graph=graph,
                    keys=stage_keys(graph, cache=source.key),
                    cache=source,
                )
            )
    stages.check([variant.graph for variant in variants])
    return Layout(store=store, seeds=chosen, variants=tuple(variants))


def seed_overrides(
    folder: Path, *, seed: int, cache: Path | str, teacher: Path | None
) -> tuple[str, ...]:
    """Settings that repeat the student's stages with another seed in another folder.

    Args:
        folder: the run folder.
        seed: the seed.
        cache: the cache to learn from: its folder or address.
        teacher: model folder of the run's own trained teacher: taken as it is, not trained again.
    """
    changed = (
        _path("run.dir", folder),
        f"run.seed={seed}",
        _path("cache.path", cache),
    )
    if teacher is None:
        return changed
    return (*changed, "teacher.train=false", _path("teacher.checkpoint", teacher))


def _cache_source(config: Config, settings: tuple[str, ...], store: Store) -> CacheSource:
    """The cache of a combination: one of the store, or the config's own where it fits."""
    graph = build_graph(config)
    keys = stage_keys(graph)
    until = next(place for place, node in enumerate(graph) if node.examine is not None) + 1
    key = keys[graph[until - 1].name]
    run = store.cache_run(key)
    trained = config.teacher.train
    if not (run / "cache").is_dir():
        planned = plan(graph, observe(graph, config.run.dir))
        if planned[until - 1].state == "fresh":
            return CacheSource(
                key=key,
                folder=config.cache_folder,
                run=None,
                overrides=(),
                graph=graph[:until],
                keys=keys,
                teacher=config.run.dir / "teacher" / "model" if trained else None,
            )
    return CacheSource(
        key=key,
        folder=run / "cache",
        run=run,
        overrides=(*settings, _path("run.dir", run), _path("cache.path", run / "cache")),
        graph=graph[:until],
        keys=keys,
        teacher=run / "teacher" / "model" if trained else None,
    )


def _check_own(base: Config, config: Config, combination: Combination) -> None:
    """Refuse a block of settings that changes what the ablation itself sets."""
    for key, same in (
        ("run", config.run == base.run),
        ("cache.path", config.cache.path == base.cache.path),
        ("teacher.train", config.teacher.train == base.teacher.train),
    ):
        if not same:
            raise ConfigError(
                f"--over {combination.title}: {key} cannot be varied: folders, seeds and the "
                f"teacher stage are those of the config"
            )


def _path(key: str, path: Path | str) -> str:
    """``--set`` text of a path, quoted for YAML."""
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"
