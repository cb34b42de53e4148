"""What makes rows of a cache again: the config, the data and the teacher that it was made with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import user_models_folder

if TYPE_CHECKING:
    from cache import CacheMissingError, CacheSpec
    from cache.mirror import Mirror
    from pipeline.config import Config
    from pipeline.stage_node import StageNode
    from stages.context import Progress

__all__ = ["Computing", "prepared", "wants_config"]


def prepared(
    path: Path, needed: list[str], config: str | None, overrides: tuple[str, ...]
) -> "Computing":
    """Load what computes rows of this cache, and refuse what would not.

    Raises:
        CacheMissingError: there is no config.
        CacheStaleError: the config or the teacher is of another cache.
        ConfigError, DataError, WeightsError: it cannot be used, or data or teacher are not here.
    """
    from cache import CacheStaleError
    from cache.address import place_of
    from cache.conversions import CONVERTED_NAME, unknown_origin
    from efficient_medsam2.checkpoints import checkpoint_sha256
    from pipeline.config import load_config
    from pipeline.stage_graph import build_graph
    from stages.cache_examine import settings_differences
    from stages.cases import source_is_present
    from stages.side_files import TEACHER_FOLDER

    if CONVERTED_NAME in needed:
        raise unknown_origin(path, "is missing or damaged")
    if config is None:
        raise wants_config(path, needed)
    spec = _spec_of(path)
    own: tuple[str, ...] = (f"cache.path={json.dumps(place_of(path))}",)
    if spec is not None:  # how it is stored is the cache's own affair
        stored = {"format": spec.format, "rows_per_shard": spec.rows_per_shard}
        stored |= {"dtype": spec.precompute["cache.dtype"]}
        own += tuple(f"cache.{key}={json.dumps(value)}" for key, value in stored.items())
    loaded = load_config(config, (*overrides, *own), models=user_models_folder())
    teacher_alone = all(name.startswith(f"{TEACHER_FOLDER}/") for name in needed)
    if not teacher_alone and not source_is_present(loaded.data):
        raise click.UsageError(
            f"the raw data are not here ({loaded.data.source}), and rows are made from them: "
            "--set data.source=FOLDER"
        )
    if spec is not None:
        differing = settings_differences(spec, loaded.data, loaded.cache, loaded.precompute)
        if differing:
            key, there, wanted = differing[0]
            raise CacheStaleError(
                f"{place_of(path)} was made with {key}={there!r}, this config has {wanted!r}; "
                f"nothing was touched. Type the command again with --set {key}={json.dumps(there)}"
            )
    trained = loaded.run.dir / "teacher"
    checkpoint = trained / "model" if loaded.teacher.train else loaded.teacher.checkpoint
    digest = checkpoint_sha256(loaded.teacher.kind, checkpoint)  # names it where it is missing
    if spec is not None and digest != spec.teacher.weights_sha256:
        raise CacheStaleError(
            f"{place_of(path)} was made by the weights {spec.teacher.weights_sha256[:12]}, this "
            f"config's are {digest[:12]}; nothing was touched. Name those: "
            "--set teacher.checkpoint=FILE"
        )
    if (path / CONVERTED_NAME).is_file() and any("shard" in name for name in needed):
        click.echo(
            "note: this cache was converted from another one. Rows that are made again come from "
            "the teacher itself, so its content changes, and students trained from it become stale"
        )
    node = next(node for node in build_graph(loaded) if node.name == "precompute")
    return Computing(config=loaded, node=node, teacher_alone=teacher_alone)


def wants_config(path: Path, needed: list[str]) -> "CacheMissingError":
    """Make the error of a repair that takes a config, and was given none."""
    from cache import CacheMissingError
    from cache.address import place_of
    from cache.mending import repair_command

    return CacheMissingError(
        f"{place_of(path)}: to be made again: {', '.join(needed)}. That takes the raw data "
        f"and the teacher: {repair_command(path)}"
    )


def _spec_of(path: Path) -> "CacheSpec | None":
    from cache import CacheCorruptError
    from cache.layout import read_header

    try:
        return read_header(path).spec
    except CacheCorruptError:
        return None


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What makes rows again, or the teacher's folder alone."""

    config: "Config"
    node: "StageNode"
    teacher_alone: bool

    def run(self, path: Path, mirror: "Mirror | None", shown: "Progress") -> None:
        """Write what the cache lacks."""
        from pipeline.artifacts import fingerprint
        from pipeline.run_lock import locked
        from stages import precompute
        from stages.context import StageContext

        run = self.config.run
        run.dir.mkdir(parents=True, exist_ok=True)
        trained = run.dir / "teacher"
        with locked(run.dir):
            context = StageContext(
                directory=path,
                inputs={"teacher": trained} if self.config.teacher.train else {},
                cache=path,
                fingerprint=fingerprint(self.node.settings, {}),
                seed=run.seed,
                device=run.device,
                resume=True,
                progress=shown,
                mirror=mirror,
            )
            if self.teacher_alone:
                precompute.restore_teacher(self.config.teacher, context)
            else:
                self.node.run(context)
