from collections import Counter
from pathlib import Path

import pytest

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import CaseSource, SplitReport, assign_splits

FRACTIONS = (0.7, 0.1, 0.2)


def source(case_id, patient_id=None, split=None):
    return CaseSource(
        case_id=case_id,
        patient_id=patient_id or case_id,
        format="npz",
        root=Path(),
        image_files=(Path(f"{case_id}.npz"),),
        split=split,
    )


def sources(count):
    return [source(f"c{i}") for i in range(count)]


@pytest.mark.parametrize("count", range(3, 40))
def test_shares_are_met_and_none_is_empty(count):
    report = assign_splits(sources(count), fractions=FRACTIONS, seed=0)
    sizes = Counter(report.assignment.values())
    assert sum(sizes.values()) == count
    assert not report.shared
    for split, share in zip(("train", "validation", "test"), FRACTIONS, strict=True):
        assert sizes[split] >= 1
        assert abs(sizes[split] - share * count) <= 2 if count < 10 else 1


def test_file_order_does_not_matter_and_the_seed_does():
    cases = sources(20)
    first = assign_splits(cases, fractions=FRACTIONS, seed=0)
    assert assign_splits(cases[::-1], fractions=FRACTIONS, seed=0) == first
    assert assign_splits(cases, fractions=FRACTIONS, seed=1).assignment != first.assignment


def test_a_patient_is_never_parted():
    cases = [source(f"p{i}_{j}", f"p{i}") for i in range(9) for j in range(3)]
    report = assign_splits(cases, fractions=FRACTIONS, seed=3)
    for i in range(9):
        assert len({report.assignment[f"p{i}_{j}"] for j in range(3)}) == 1


def test_given_splits_win():
    cases = [source("a", "p", "test"), source("b", "p"), *sources(8)]
    report = assign_splits(cases, fractions=FRACTIONS, seed=0)
    assert report.assignment["a"] == report.assignment["b"] == "test"
    conflict = [source("a", "p", "test"), source("b", "p", "train")]
    with pytest.raises(DataError, match=r"patient 'p' is in test .case a. and in train .case b."):
        assign_splits(conflict, fractions=FRACTIONS, seed=0)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_patients_share_and_say_so(count):
    report = assign_splits(sources(count), fractions=FRACTIONS, seed=0)
    everyone = tuple(f"c{i}" for i in range(count))
    assert set(report.assignment.values()) == {"train"}
    assert report.shared == {"validation": everyone, "test": everyone}
    assert report.cases("train") == report.cases("test") == everyone


def test_zero_fraction_stays_empty():
    report = assign_splits(sources(5), fractions=(0, 0, 1), seed=0)
    assert set(report.assignment.values()) == {"test"}
    assert not report.shared
    assert report.cases("train") == ()


def test_bad_requests():
    with pytest.raises(DataError, match="sum to 1"):
        assign_splits(sources(5), fractions=(0.7, 0.1, 0.1), seed=0)
    with pytest.raises(DataError, match="no case to split"):
        assign_splits([], fractions=FRACTIONS, seed=0)
    with pytest.raises(DataError, match="no patient is left to train on"):
        assign_splits([source("a", split="test")], fractions=FRACTIONS, seed=0)


def test_json_round_trip(tmp_path):
    report = assign_splits(sources(2), fractions=FRACTIONS, seed=4)
    file = tmp_path / "splits.json"
    report.write(file)
    assert SplitReport.read(file) == report
    assert [path.name for path in tmp_path.iterdir()] == ["splits.json"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"seed": 0, "assignment": {"a": "dev"}, "shared": {}}']
)
def test_damaged_json(tmp_path, text):
    file = tmp_path / "splits.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"splits\.json.*made again"):
        SplitReport.read(file)
