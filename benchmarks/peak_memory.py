"""Peak memory of one precompute, in this process alone; ``benchmarks.precompute`` starts it.

python -m benchmarks.peak_memory DATA CHECKPOINT CACHE [--kind scratch]
"""

import json
from pathlib import Path

import click

from benchmarks.bare_stage import bare_context
from benchmarks.resident import peak_rss_mb
from efficient_medsam2.networks.hiera import SmallNetConfig, new_model, small_config
from efficient_medsam2.networks.model_folder import save_model
from efficient_medsam2.networks.runner import SliceRunner
from stages import precompute
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.cases import DataConfig
from stages.row_settings import PromptConfig, TrackConfig
from stages.teacher_source import TeacherConfig

__all__ = ["save_small_teacher"]

_SMALL = SmallNetConfig(
    image_size=64,
    hidden_size=64,
    embed_dims=(8, 16, 24, 32),
    blocks=(1, 1, 1, 1),
    memory_layers=1,
    memory_slices=3,
)


def save_small_teacher(folder: Path) -> Path:
    """A teacher of random weights that takes milliseconds a slice."""
    save_model(SliceRunner(new_model(small_config(_SMALL)).eval()), folder, origin={"name": "tiny"})
    return folder


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["scratch", "medsam2"]), default="scratch")
@click.option("--device", default="cpu", show_default=True)
@click.option("--rows-per-shard", default=8, show_default=True)
def main(
    data: Path, checkpoint: Path, cache: Path, kind: str, device: str, rows_per_shard: int
) -> None:
    """Precompute DATA with the teacher in CHECKPOINT into CACHE; print the peak as JSON."""
    cache.mkdir(parents=True)
    context = bare_context(cache, cache=cache, device=device, resume=True)
    artifact = precompute.run(
        DataConfig(source=str(data), slices="all", smallest=1, splits=(1.0, 0.0, 0.0)),
        TeacherConfig.model_validate({"kind": kind, "checkpoint": checkpoint}),
        CacheConfig(rows_per_shard=rows_per_shard),
        PrecomputeConfig(
            prompts=PromptConfig(per_object=1), tracks=TrackConfig(per_object=1, length=None)
        ),
        context,
    )
    summary = {name: artifact.summary[name] for name in ("slices", "prompts", "tracks")}
    click.echo(json.dumps({"peak_memory_mb": peak_rss_mb(), **summary}))


if __name__ == "__main__":
    main()
