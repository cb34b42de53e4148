"""A run's repetitions with other seeds, in ``<run.dir>/seeds/<seed>``, for its report.

A repetition counts only where it is one: every stage has the settings of the run's own stage but
for the seed, was made from the same cache, and the evaluation read the weights that lie there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.artifacts import Manifest, read_manifest
from pipeline.report_records import SEED_FIGURES, Repetition, Row

__all__ = ["SEEDS_FOLDER", "fits", "seed_folders", "with_seeds"]

SEEDS_FOLDER = "seeds"


def seed_folders(run_dir: Path) -> dict[int, Path]:
    """Seed → run folder of every repetition, by seed."""
    folder = run_dir / SEEDS_FOLDER
    if not folder.is_dir():
        return {}
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    return {int(path.name): path for path in sorted(found, key=lambda path: int(path.name))}


def fits(run_dir: Path, repetition: Path) -> str:
    """Why ``repetition`` is none of the run in ``run_dir``; empty where it is one.

    Raises:
        ArtifactError: a damaged manifest.
    """
    own, other = read_manifest(run_dir / "evaluate"), read_manifest(repetition / "evaluate")
    if own is None or other is None:
        return "it has not ended" if own is not None else "the run itself has not ended"
    if own.upstream.keys() != other.upstream.keys():
        return "it has other stages"
    if own.upstream.get("precompute") != other.upstream.get("precompute"):
        return "it was made from another cache"
    for name in (*own.upstream, "evaluate"):
        if name == "precompute":
            continue
        mine, theirs = read_manifest(run_dir / name), read_manifest(repetition / name)
        if mine is None or theirs is None:
            return f"{name} is missing"
        if _settings(mine) != _settings(theirs):
            return f"{name} has other settings"
        if name != "evaluate" and other.upstream[name] != theirs.identity:
            return f"{name} was made again after its evaluation"
    return ""


def with_seeds(rows: Sequence[Row], repetitions: Sequence[Repetition]) -> tuple[Row, ...]:
    """Rows with their figures by seed: the run's own first, then those of the repetitions."""
    counted = [each for each in repetitions if not each.problem]
    return tuple(_with_seeds(row, counted) for row in rows)


def _with_seeds(row: Row, repetitions: Sequence[Repetition]) -> Row:
    others = [next((r for r in each.rows if r.model == row.model), None) for each in repetitions]
    figures: Mapping[str, tuple[float | None, ...]] = {
        f"{name}_seeds": (
            getattr(row, name),
            *(None if other is None else getattr(other, name) for other in others),
        )
        for name in SEED_FIGURES
    }
    return row.model_copy(update=dict(figures))


def _settings(manifest: Manifest) -> dict[str, object]:
    return {key: value for key, value in manifest.settings.items() if key != "run.seed"}
