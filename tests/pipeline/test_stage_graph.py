"""Which settings make which stages stale."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.stage_graph import build_graph, fraction_suffix


class Run(BaseModel):
    dir: Path = Path("runs/x")
    seed: int = 0
    device: str = "auto"


class Teacher(BaseModel):
    train: bool = False


class Source(BaseModel):
    source: str = "mni152"


class Cache(BaseModel):
    path: Path | None = None
    dtype: str = "fp16"


class Backbone(BaseModel):
    channels: tuple[int, ...] = (8, 16)


class Student(BaseModel):
    backbone: str = "repvit_m0_9"
    neck: Backbone = Backbone()


class Loop(BaseModel):
    steps: int = 10
    learning_rate: float = 1e-3
    log_every: int = 10
    checkpoint_seconds: float = 15.0
    at_once: int = 4


class Memory(Loop):
    enabled: bool = True


class Finetune(Loop):
    label_fractions: tuple[float, ...] = (1.0,)


class Baseline(BaseModel):
    enabled: bool = True
    learning_rate: float = 1e-3


class Evaluate(BaseModel):
    tolerance_mm: float = 2.0


@dataclass(frozen=True)
class Whole:
    """The blocks of the real configuration, with few settings each."""

    run: Run = field(default_factory=Run)
    data: Source = field(default_factory=Source)
    teacher: Teacher = field(default_factory=Teacher)
    teacher_training: Loop = field(default_factory=Loop)
    cache: Cache = field(default_factory=Cache)
    precompute: Loop = field(default_factory=Loop)
    student: Student = field(default_factory=Student)
    encoder: Loop = field(default_factory=Loop)
    memory: Memory = field(default_factory=Memory)
    finetune: Finetune = field(default_factory=Finetune)
    baseline: Baseline = field(default_factory=Baseline)
    evaluate: Evaluate = field(default_factory=Evaluate)
    cache_folder: Path = Path("runs/x/cache")


def settings(**blocks):
    return {node.name: dict(node.settings) for node in build_graph(Whole(**blocks))}


def stale(**blocks):
    """Names of the stages whose settings, or those of what they consume, differ from default."""
    before, graph = settings(), build_graph(Whole(**blocks))
    found: set[str] = set()
    for node in graph:
        if node.settings != before[node.name] or found & set(node.upstream):
            found.add(node.name)
    return found


def test_stages_and_what_they_consume():
    fractions = Finetune(label_fractions=(1.0, 0.1))
    graph = build_graph(Whole(teacher=Teacher(train=True), finetune=fractions))
    assert {node.name: node.upstream for node in graph} == {
        "teacher": (),
        "precompute": ("teacher",),
        "encoder": ("precompute",),
        "memory": ("encoder", "precompute"),
        "finetune": ("memory", "precompute"),
        "finetune_10": ("memory", "precompute"),
        "baseline": ("precompute",),
        "baseline_10": ("precompute",),
        "evaluate": (
            "precompute",
            "encoder",
            "memory",
            "finetune",
            "finetune_10",
            "baseline",
            "baseline_10",
        ),
    }
    assert [node.name for node in graph if node.examine is not None] == ["precompute"]


def test_teacher_and_baseline_are_optional():
    assert list(settings(baseline=Baseline(enabled=False))) == [
        "precompute",
        "encoder",
        "memory",
        "finetune",
        "evaluate",
    ]


STUDENT = {"encoder", "memory", "finetune", "evaluate"}


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ({"encoder": Loop(learning_rate=2e-3)}, STUDENT),
        ({"encoder": Loop(steps=20)}, STUDENT | {"baseline"}),
        ({"memory": Memory(learning_rate=2e-3)}, STUDENT - {"encoder"}),
        ({"finetune": Finetune(learning_rate=2e-3)}, {"finetune", "evaluate"}),
        ({"baseline": Baseline(learning_rate=2e-3)}, {"baseline", "evaluate"}),
        ({"evaluate": Evaluate(tolerance_mm=1)}, {"evaluate"}),
        ({"student": Student(backbone="vit_tiny")}, STUDENT | {"baseline"}),
        ({"student": Student(neck=Backbone(channels=(4,)))}, STUDENT | {"baseline"}),
        ({"data": Source(source="b")}, STUDENT | {"baseline", "precompute"}),
        ({"cache": Cache(dtype="fp32")}, STUDENT | {"baseline", "precompute"}),
        ({"run": Run(seed=1)}, STUDENT | {"baseline"}),
        ({"cache": Cache(path=Path("/elsewhere"))}, set()),
        ({"run": Run(device="cpu", dir=Path("runs/other"))}, set()),
        ({"encoder": Loop(log_every=1, checkpoint_seconds=1.0)}, set()),
        ({"encoder": Loop(at_once=2)}, STUDENT),  # batch norms take their statistics of a part
        ({"memory": Memory(at_once=2)}, set()),  # there they keep still
    ],
)
def test_a_setting_makes_stale_what_it_determines_and_nothing_else(blocks, expected):
    assert stale(**blocks) == expected


def test_without_the_memory_stage_finetuning_takes_the_encoders_student():
    graph = build_graph(Whole(memory=Memory(enabled=False)))
    nodes = {node.name: node for node in graph}
    assert "memory" not in nodes
    assert nodes["finetune"].upstream == ("encoder", "precompute")
    assert nodes["evaluate"].upstream == ("precompute", "encoder", "finetune", "baseline")
    assert nodes["baseline"].settings["baseline.total_steps"] == 20
    assert "memory.enabled" not in settings()["memory"]
    # What an older recipe trained from the same settings is stale.
    assert settings()["memory"]["memory.recipe"] == 4


def test_another_label_fraction_leaves_the_first_one_alone():
    one = settings()
    two = settings(finetune=Finetune(label_fractions=(1.0, 0.1)))
    assert one["finetune"] == two["finetune"]
    assert one["baseline"] == two["baseline"]
    assert two["finetune_10"]["finetune.label_fraction"] == 0.1


def test_settings_are_flat_and_as_json_gives_them_back():
    assert settings()["encoder"]["student.neck.channels"] == [8, 16]


@pytest.mark.parametrize(
    ("fraction", "suffix"), [(1.0, ""), (0.1, "_10"), (0.05, "_5"), (0.005, "_0p5"), (0.29, "_29")]
)
def test_fraction_suffix(fraction, suffix):
    assert fraction_suffix(fraction) == suffix
