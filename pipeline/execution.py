"""From a command line to stages that run: what every running command shares."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.options import Invocation, user_models_folder

if TYPE_CHECKING:
    from pipeline.selection import Selection
    from pipeline.stage_node import StageNode

__all__ = ["Ran", "execute", "only_stages"]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """The run folder, and the stages that were not fresh."""

    directory: Path
    stages: tuple[str, ...]


def only_stages(names: tuple[str, ...], force: tuple[str, ...]) -> "Selection":
    """Select these stages alone."""
    from pipeline.selection import Selection

    return Selection(only=names, force=frozenset(force))


def execute(
    invocation: Invocation,
    resume: bool,
    force: tuple[str, ...],
    select: Callable[[tuple["StageNode", ...]], "Selection"],
    resume_invocation: Invocation | None = None,
) -> Ran:
    """Load the config and run what ``select`` picks from its stages."""
    import yaml

    from pipeline.cluster import open_cluster
    from pipeline.config import load_config
    from pipeline.object_store import config_of_process, mirror_of
    from pipeline.progress import PROGRESS_KINDS, make_progress
    from pipeline.run_settings import RunSettings
    from pipeline.runner import run_stages
    from pipeline.selection import Commands
    from pipeline.stage_graph import build_graph

    assert invocation.config is not None
    config = load_config(invocation.config, invocation.overrides, models=user_models_folder())
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    again = resume_invocation or invocation
    # Set by `accelerate launch`; the first process tells the progress of all.
    process, processes = (
        int(os.environ.get(n, d)) for n, d in (("RANK", "0"), ("WORLD_SIZE", "1"))
    )
    config = config_of_process(config, process)
    graph = build_graph(config)
    kind = next(k for k in PROGRESS_KINDS if k == invocation.progress) if process == 0 else "none"
    progress = make_progress(kind)
    with (
        mirror_of(config, note=progress.note) as mirror,
        open_cluster(invocation.cluster, threads=config.run.threads, note=progress.note) as cluster,
    ):
        stages = run_stages(
            graph,
            settings=RunSettings(
                directory=config.run.dir,
                cache=config.cache_folder,
                seed=config.run.seed,
                device=config.run.device,
                resume=resume,
                process=process,
                processes=processes,
                cluster=cluster,
                mirror=mirror,
            ),
            selection=select(graph),
            progress=progress,
            commands=Commands(
                stage=invocation.stage_text,
                resume=lambda forced: again.text(tuple(forced)),
                with_settings=lambda settings: again.with_settings(settings, force),
            ),
            config_text=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        )
        if mirror is not None:
            progress.note(f"mirror: {mirror.figures()}")
    return Ran(directory=config.run.dir, stages=stages if process == 0 else ())
