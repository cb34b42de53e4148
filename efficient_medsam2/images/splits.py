"""Patients to train, validation and test.

Whole patients are dealt, in an order that depends on the seed and their names alone, so neither
the order of files nor the machine changes a split.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.source import CaseSource, Split

__all__ = ["SplitReport", "assign_splits"]

_SPLITS: tuple[Split, ...] = get_args(Split)
_FEWEST_PATIENTS = 3


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Which case is in which split.

    Attributes:
        assignment: case id to its own split.
        shared: split to the training cases that it borrows because no patient was left for it.
            Scores on such a split say nothing about new patients: show them as such.
        seed: the seed of the deal.
    """

    assignment: Mapping[str, Split]
    shared: Mapping[Split, tuple[str, ...]]
    seed: int

    def cases(self, split: Split) -> tuple[str, ...]:
        """Ids of ``split``, borrowed ones included, sorted."""
        own = (case_id for case_id, where in self.assignment.items() if where == split)
        return tuple(sorted({*own, *self.shared.get(split, ())}))

    def write(self, file: Path) -> None:
        """Write as JSON; an existing file is replaced whole or not at all."""
        document = {
            "seed": self.seed,
            "assignment": dict(sorted(self.assignment.items())),
            "shared": {split: list(ids) for split, ids in sorted(self.shared.items())},
        }
        part = file.with_name(f"{file.name}.{os.getpid()}.partial")
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        part.replace(file)

    @classmethod
    def read(cls, file: Path) -> "SplitReport":
        """Read what `write` wrote.

        Raises:
            DataError: the file is missing, damaged or not a split.
        """
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            assignment = dict(document["assignment"])
            shared = {split: tuple(ids) for split, ids in document["shared"].items()}
            seed = int(document["seed"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}: cannot be read as splits ({error!r}). Delete it, and it is made again"
            ) from error
        unknown = sorted({str(split) for split in (*assignment.values(), *shared)} - {*_SPLITS})
        if unknown:
            raise DataError(
                f"{file}: unknown split {', '.join(unknown)}; the known ones are "
                f"{', '.join(_SPLITS)}. Delete the file, and it is made again"
            )
        return cls(assignment=assignment, shared=shared, seed=seed)


def assign_splits(
    sources: Iterable[CaseSource], *, fractions: tuple[float, float, float], seed: int
) -> SplitReport:
    """Deal patients to train, validation and test.

    A ``split`` that a source brings along wins, for all cases of its patient. The other patients
    fill what the fractions still ask for. From three patients on, every fraction above 0 gets at
    least one patient where the given splits allow it. A split that is asked for but stays empty
    (one or two patients) borrows the training cases and is named in ``SplitReport.shared``.

    Args:
        sources: the cases.
        fractions: shares of patients for train, validation and test; they sum to 1.
        seed: another seed deals another way.

    Raises:
        DataError: no case, bad fractions, a patient in two splits, or none left to train on.
    """
    sources = sorted(sources, key=lambda source: source.case_id)
    if not sources:
        raise DataError("no case to split. Check the path of the data")
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"split fractions {fractions} (train, validation, test) must be 0 or more and sum to 1"
        )
    patients = _given_splits(sources)
    free = {source.patient_id for source in sources} - set(patients)
    shuffled = sorted(free, key=lambda patient: _place_in_deal(patient, seed))
    patients.update(zip(shuffled, _deal(len(free), patients, fractions), strict=True))
    assignment = {source.case_id: patients[source.patient_id] for source in sources}
    train = tuple(case_id for case_id, split in assignment.items() if split == "train")
    used = set(assignment.values())
    wanted = [split for split, share in zip(_SPLITS, fractions, strict=True) if share > 0]
    if "train" in wanted and not train:
        raise DataError(
            "no patient is left to train on: the listing puts all of them elsewhere. Give one "
            "`split: train`, or set the train fraction to 0"
        )
    empty = [split for split in wanted if split not in used]
    return SplitReport(
        assignment=assignment, shared=dict.fromkeys(empty, train) if train else {}, seed=seed
    )


def _given_splits(sources: list[CaseSource]) -> dict[str, Split]:
    """Patient to split, for the patients whom the user placed."""
    given: dict[str, CaseSource] = {}
    for source in sources:
        if source.split is None:
            continue
        first = given.setdefault(source.patient_id, source)
        if first.split != source.split:
            raise DataError(
                f"patient {source.patient_id!r} is in {first.split} (case {first.case_id}) and in "
                f"{source.split} (case {source.case_id}). Put both in one split, or name the "
                "patients apart"
            )
    return {patient: source.split for patient, source in given.items() if source.split is not None}


def _place_in_deal(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient}".encode()).digest()


def _deal(
    free: int, given: Mapping[str, Split], fractions: tuple[float, float, float]
) -> list[Split]:
    """Deal splits to ``free`` patients, next to those already given."""
    total = free + len(given)
    if total < _FEWEST_PATIENTS:
        return ["train"] * free
    targets = _targets(total, fractions)
    missing: dict[Split, int] = {
        split: max(0, target - list(given.values()).count(split))
        for split, target in zip(_SPLITS, targets, strict=True)
    }
    dealt: list[Split] = []
    # One patient each where it is short, then the rest; training keeps what is over.
    for most in (1, total):
        for split in ("train", "test", "validation") if most == 1 else ("test", "validation"):
            count = min(most, missing[split], free - len(dealt))
            dealt += [split] * count
            missing[split] -= count
    return dealt + ["train" if fractions[0] > 0 else "test"] * (free - len(dealt))


def _targets(total: int, fractions: tuple[float, float, float]) -> list[int]:
    """Patients per split by largest remainder, at least one where the fraction is above 0."""
    exact = [share * total for share in fractions]
    targets = [int(amount + 1e-9) for amount in exact]
    by_remainder = sorted(range(3), key=lambda i: (targets[i] - exact[i], i))
    for index in by_remainder[: total - sum(targets)]:
        targets[index] += 1
    for index in range(3):
        if fractions[index] > 0 and targets[index] == 0:
            targets[index] = 1
            targets[targets.index(max(targets))] -= 1
    return targets
