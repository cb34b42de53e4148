"""What a conversion of a cache costs in accuracy: of the numbers, and of the masks made of them.

Both caches are read as students read them, on rows spread evenly over the cache.

Shape letters: R prompt rows, S network input in pixels.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache import ArraySpec, CacheReader
from cache.dataset import ALL_LEVELS, Levels
from cache.encoding import stored_word
from cache.levels import STORED_LEVELS, StoredLevel, level_of
from cache.stored import read_stored, to_stored
from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.networks.mask_prompts import low_res_logits
from efficient_medsam2.networks.records import Prompts, SliceRecord
from stages.cache_prompt_pass import prompts_of, read_masks
from stages.training.heads import TeacherHeads
from stages.training.slice_batches import decoded_features

__all__ = ["ArrayError", "Comparison", "DecoderAgreement", "compare_caches"]

_ROWS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class ArrayError:
    """One array in two caches.

    Attributes:
        level: of the array.
        name: of the array.
        before: how the source stores it.
        after: how the other cache does.
        rows: compared.
        relative_rms: root of the mean squared error over that of the values.
        largest: error of one value, over the largest magnitude of its array.
        cosine: of all values with all values.
        dsc: of the masks (logits above 0), over all rows together; None of features. Values that
            are not finite agree with nothing.
        not_finite: values that are NaN or infinite in either cache, which no sound cache has; the
            errors are of the others.
    """

    level: str
    name: str
    before: str
    after: str
    rows: int
    relative_rms: float
    largest: float
    cosine: float
    dsc: float | None
    not_finite: int


@dataclass(frozen=True, kw_only=True)
class DecoderAgreement:
    """DSC of the teacher's masks from converted features against those from the source's.

    Attributes:
        prompts: stored prompts that were asked.
        mean: over prompts; 1 where both masks are empty.
        percentile_5: DSC that 95 % of the prompts reach.
        smallest: the worst prompt's.
        not_finite: prompts of which the decoder says something that is NaN or infinite, from
            either cache; their DSC counts as 0.
    """

    prompts: int
    mean: float
    percentile_5: float
    smallest: float
    not_finite: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Of two caches.

    Attributes:
        arrays: every array of a level, by level.
        decoder: None where the caches have no prompts.
    """

    arrays: tuple[ArrayError, ...]
    decoder: DecoderAgreement | None

    @property
    def damage(self) -> tuple[str, ...]:
        """A sentence on each array and on the decoder, where values are not finite."""
        found = [
            f"{array.name} has {array.not_finite} values that are NaN or infinite"
            for array in self.arrays
            if array.not_finite
        ]
        if self.decoder is not None and self.decoder.not_finite:
            found.append(
                f"{self.decoder.not_finite} of {self.decoder.prompts} prompts get answers that are "
                "NaN or infinite"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def compare_caches(
    source: CacheReader, target: CacheReader, *, rows: int = 256, device: str = "auto"
) -> Comparison:
    """Compare the levels of two caches that have the same rows.

    Args:
        source: the reference.
        target: the other one.
        rows: of each array, and prompts, at most.
        device: where the teacher's decoder runs.

    Raises:
        CacheError: a row is damaged.
        WeightsError: the source's teacher folder is incomplete.
    """
    return Comparison(
        arrays=tuple(
            _array_error(source, target, array, level, rows)
            for level in STORED_LEVELS
            for array in source.spec.arrays
            if level_of(array.name) == level and source.counts[array.rows]
        ),
        decoder=_decoder(source, target, rows, pick_device(device)),
    )


def _spread(count: int, most: int) -> np.ndarray:
    """At most so many of ``count`` rows, evenly spread, the first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _array_error(
    source: CacheReader, target: CacheReader, array: ArraySpec, level: StoredLevel, most: int
) -> ArrayError:
    rows = _spread(source.counts[array.rows], most)
    # Squared errors, squares of both, their product; then pixels in common and pixels of both.
    sums = np.zeros(4)
    inside = np.zeros(2)
    largest = magnitude = 0.0
    not_finite = 0
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        old, new = (
            to_stored(read_stored(reader, array.name, part), "cpu", torch.float64)
            for reader in (source, target)
        )
        sound = old.isfinite() & new.isfinite()
        bad = int((~sound).sum())
        not_finite += bad
        inside += _common((old > 0) & sound, (new > 0) & sound)
        inside[1] += bad
        old, new = old.where(sound, 0.0), new.where(sound, 0.0)
        error = (old - new).abs()
        products = ((error, error), (old, old), (new, new), (old, new))
        sums += [float((one * other).sum()) for one, other in products]
        largest = max(largest, float(error.max()))
        magnitude = max(magnitude, float(old.abs().max()))
    errors, squares, others, product = sums.tolist()
    both = (squares * others) ** 0.5
    return ArrayError(
        level=level,
        name=array.name,
        before=stored_word(array),
        after=stored_word(target.spec.array(array.name)),
        rows=len(rows),
        relative_rms=(errors / squares) ** 0.5 if squares else float(errors > 0),
        largest=largest / magnitude if magnitude else float(largest > 0),
        cosine=product / both if both else float(squares == others),
        dsc=(inside[0] / inside[1] if inside[1] else 1.0) if level == "logits" else None,
        not_finite=not_finite,
    )


def _common(old: Tensor, new: Tensor) -> tuple[float, float]:
    return 2.0 * int((old & new).sum()), float(int(old.sum()) + int(new.sum()))


@torch.no_grad()
def _decoder(
    source: CacheReader, target: CacheReader, most: int, device: torch.device
) -> DecoderAgreement | None:
    table = source.index.prompts
    if not len(table):
        return None
    heads = TeacherHeads.of_cache(source)
    scores: list[float] = []
    not_finite = 0
    for rows in _alike(np.diff(table.prompt.offsets), _spread(len(table), most)):
        prompts = _prompts(source, rows).to(device)
        old, new = (
            heads.answer(_features(reader, table.slice_row[rows], device), prompts)
            for reader in (source, target)
        )
        sound = (_finite(old) & _finite(new)).tolist()
        masks = (record.mask_logits.flatten(1).cpu() > 0 for record in (old, new))
        for mine, theirs, is_sound in zip(*masks, sound, strict=True):
            common, both = _common(mine, theirs)
            # Masks of NaN are empty, and would agree.
            scores.append((common / both if both else 1.0) if is_sound else 0.0)
        not_finite += sound.count(False)
    return DecoderAgreement(
        prompts=len(scores),
        mean=float(np.mean(scores)),
        percentile_5=float(np.percentile(scores, 5)),
        smallest=float(np.min(scores)),
        not_finite=not_finite,
    )


def _finite(record: SliceRecord) -> Tensor:
    """Whether all that the decoder says of a prompt is finite, (R,).

    An object whose score is NaN counts as absent, so its mask alone would not tell.
    """
    said = (record.mask_logits, record.visible_logits, record.iou, record.object_score)
    return torch.stack([part.flatten(1).isfinite().all(dim=1) for part in said]).all(dim=0)


def _alike(lengths: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of prompts with the same number of points: filling up would change the answer."""
    for length in np.unique(lengths[rows]):
        chosen = rows[lengths[rows] == length]
        for start in range(0, len(chosen), _ROWS_AT_ONCE):
            yield chosen[start : start + _ROWS_AT_ONCE]


def _prompts(reader: CacheReader, rows: np.ndarray) -> Prompts:
    table = reader.index.prompts
    prompts = prompts_of(table.prompt, rows)
    if prompts.labels_BN.shape[1]:
        return prompts
    mask_R1SS = read_masks(reader, table.slice_row[rows].astype(np.int64), table.object_id[rows])
    side = reader.spec.array("mask_logits").shape[-1]
    return Prompts(
        points_BN2=prompts.points_BN2,
        labels_BN=prompts.labels_BN,
        mask_logits=low_res_logits(mask_R1SS.float(), side),
    )


def _features(reader: CacheReader, rows: np.ndarray, device: torch.device) -> Any:  # noqa: ANN401
    stored = {array.name for array in reader.spec.arrays}
    return decoded_features(
        Levels(
            **{
                level: read_stored(reader, f"features_{level}", rows.astype(np.int64))
                for level in ALL_LEVELS
                if f"features_{level}" in stored
            }
        ),
        device,
    )
