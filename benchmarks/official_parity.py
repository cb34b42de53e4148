"""A cache of MedSAM2 against the network itself: features, tracks, and masks from features alone.

The cache is one that ``precompute`` wrote of a folder of cases. The same slices are encoded again,
tracks are followed again in the official order (prompted slice, forward; bank reset; prompted
slice, reverse) from features that were never rounded, and random prompts are answered twice: from
cached features by the decoder alone, and by the whole teacher.

    efficient-medsam2 precompute -c laptop --set data.source=FOLDER --set teacher.kind=medsam2 \
        --set teacher.checkpoint=MedSAM2_latest.pt --set cache.path=FOLDER.cache
    python -m benchmarks.official_parity FOLDER.cache MedSAM2_latest.pt
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from cache import CacheReader
from efficient_medsam2.images import squash_labels, to_network_input
from efficient_medsam2.metrics import dsc
from efficient_medsam2.networks.records import MemoryEntry, Prompts, SliceFeatures, SliceRecord
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.prompts import sample_prompt, stack_prompts
from efficient_medsam2.teachers.load import load_teacher
from stages.training.heads import TeacherHeads

__all__ = ["decoder_agreement", "feature_errors", "track_errors"]

LEVELS = ("s4", "s8", "s16")


def relative(found: Tensor, wanted: Tensor) -> float:
    """max|found - wanted| / max|wanted|."""
    return float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def feature_errors(reader: CacheReader, runner: SliceRunner, rows: np.ndarray) -> dict[str, float]:
    """Worst relative error by level, and of rounding alone (``*_rounding``)."""
    worst = {f"{level}{kind}": 0.0 for level in LEVELS for kind in ("", "_rounding")}
    for row in rows.tolist():
        image = torch.from_numpy(reader.read("image", [row]))
        direct = runner.encode(to_network_input(image))
        for level in LEVELS:
            wanted: Tensor = getattr(direct, level)
            stored = torch.from_numpy(reader.read(f"features_{level}", [row]))
            rounding = relative(wanted.to(stored.dtype), wanted)
            worst[level] = max(worst[level], relative(stored, wanted))
            worst[f"{level}_rounding"] = max(worst[f"{level}_rounding"], rounding)
    return worst


def track_errors(reader: CacheReader, runner: SliceRunner, tracks: np.ndarray) -> dict[str, float]:
    """Worst relative error of each array along tracks that are followed again from images."""
    worst: dict[str, float] = {}
    for track in tracks.tolist():
        first = int(reader.index.tracks.first_rows[track])
        for step, (record, entry) in enumerate(_followed(reader, runner, first)):
            made = {
                "conditioned_s16": record.conditioned_s16,
                "memory_s16": entry.memory,
                "object_pointer": entry.object_pointer,
                "mask_logits": record.mask_logits[:, 0],
            }
            for name, wanted in made.items():
                stored = torch.from_numpy(reader.read(f"track_{name}", [first + step]))
                worst[name] = max(worst.get(name, 0.0), relative(stored, wanted))
    return worst


def _followed(
    reader: CacheReader, runner: SliceRunner, first: int
) -> Iterator[tuple[SliceRecord, MemoryEntry]]:
    """One direction of one object: the prompted slice, then each next one; a bank of its own."""
    table = reader.index.tracks
    start = reader.index.track_row(first)
    track = int(table.track[first])
    bank: list[MemoryEntry] = []
    for row in range(first, first + int(table.lengths[track])):
        here = reader.index.track_row(row)
        image = torch.from_numpy(reader.read("image", [here.slice_row]))
        features = runner.encode(to_network_input(image))
        prompted = row == first
        mask: Tensor | None = None
        if prompted and start.kind == "mask":
            label = torch.from_numpy(reader.read("label", [here.slice_row]).astype(np.int64))
            mask = (label == start.object_id).float().unsqueeze(1)
            record = runner.mask_prompted(features, mask)
        elif prompted:
            record = runner.prompted(features, _prompts(start.points, start.labels))
        else:
            record = runner.tracked(
                features,
                bank,
                position=here.slice_index,
                reverse=here.direction < 0,
                num_frames=here.num_frames,
            )
        entry = runner.remember(
            features,
            record,
            position=here.slice_index,
            prompted=prompted,
            full_mask_B1SS=mask,
        )
        bank.append(entry)
        yield record, entry


def _prompts(points: Any, labels: Any) -> Prompts:  # noqa: ANN401 - tuples of a track's record
    return Prompts(
        points_BN2=torch.tensor([points], dtype=torch.float32),
        labels_BN=torch.tensor([labels], dtype=torch.int64),
    )


def decoder_agreement(
    reader: CacheReader, runner: SliceRunner, *, prompts: int, seed: int
) -> dict[str, float]:
    """DSC between masks from cached features and those of the whole teacher, new random prompts."""
    generator = np.random.default_rng(seed)
    heads = TeacherHeads.of_cache(reader)
    rows = [row for row in range(reader.counts["slices"]) if reader.read("label", [row]).any()]
    chosen = generator.choice(rows, size=min(len(rows), max(prompts // 4, 1)), replace=False)
    scores: list[float] = []
    per_slice = -(-prompts // len(chosen))
    for row in chosen.tolist():
        image = torch.from_numpy(reader.read("image", [row]))
        label = squash_labels(reader.read("label", [row]), image.shape[-1])[0]
        ids = np.flatnonzero(np.bincount(label.ravel())[1:]) + 1
        drawn = [
            sample_prompt(label == generator.choice(ids), generator, box_share=0.5, jitter=0.3)
            for _ in range(per_slice)
        ]
        direct = runner.encode(to_network_input(image))
        cached = SliceFeatures(
            **{
                level: torch.from_numpy(reader.read(f"features_{level}", [row])).float()
                for level in LEVELS
            }
        )
        zero = torch.zeros(1, dtype=torch.int64)
        for prompt in drawn:
            one = stack_prompts([prompt])
            from_cache = heads.answer(cached.take(zero), one).mask_logits[0, 0] > 0
            whole = runner.prompted(direct.take(zero), one).mask_logits[0, 0] > 0
            scores.append(dsc(from_cache.numpy(), whole.numpy()))
    return {
        "prompts": len(scores),
        "mean_dsc": float(np.mean(scores)),
        "lowest_dsc": float(np.min(scores)),
    }


@click.command()
@click.argument("cache", type=click.Path(path_type=Path, exists=True))
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--slices", default=8, show_default=True, help="Slices that are encoded again.")
@click.option("--tracks", default=4, show_default=True, help="Tracks that are followed again.")
@click.option("--prompts", default=100, show_default=True, help="Random prompts answered twice.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures here.")
@torch.no_grad()
def main(
    cache: Path,
    checkpoint: Path,
    slices: int,
    tracks: int,
    prompts: int,
    seed: int,
    json_file: Path | None,
) -> None:
    """Compare the CACHE that precompute wrote with the teacher in CHECKPOINT."""
    reader = CacheReader(cache)
    runner = load_teacher("medsam2", checkpoint).runner
    generator = np.random.default_rng(seed)
    rows = generator.permutation(reader.counts["slices"])[:slices]
    followed = generator.permutation(len(reader.index.tracks.first_rows))[:tracks]
    figures = {
        "features": feature_errors(reader, runner, rows),
        "tracks": track_errors(reader, runner, followed),
        "decoder": decoder_agreement(reader, runner, prompts=prompts, seed=seed),
    }
    for name, values in figures.items():
        for key, value in values.items():
            click.echo(f"{name:9} {key:16} {value:.6g}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
