from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from cache import CacheReader
from pipeline.progress import make_progress
from stages import precompute
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.cases import DataConfig
from stages.context import StageContext
from stages.row_settings import PromptConfig, TrackConfig
from stages.teacher_source import TeacherConfig
from tests.end_to_end import small


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Networks as small as these lose more to waiting threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Notes:
    """A progress that keeps its notes and shows no bars."""

    lines: list[str] = field(default_factory=list)

    def bar(self, *, total, description, unit, initial=0):
        return make_progress("none").bar(total=total, description=description, unit=unit)

    def note(self, text):
        self.lines.append(text)


@pytest.fixture
def context(tmp_path):
    """Surroundings of a stage in ``tmp_path / "stage"``, with a cache beside it."""
    (tmp_path / "stage").mkdir()
    return make_context(tmp_path / "stage", tmp_path / "cache")


def make_context(directory, cache, **changes):
    values = {
        "directory": directory,
        "inputs": {},
        "cache": cache,
        "fingerprint": "f" * 64,
        "seed": 3,
        "device": "cpu",
        "resume": True,
        "progress": Notes(),
    }
    return StageContext(**values | changes)


@dataclass(frozen=True)
class Blocks:
    """The blocks of the configuration that a cache is made from."""

    data: DataConfig
    teacher: TeacherConfig
    cache: CacheConfig
    precompute: PrecomputeConfig


@pytest.fixture(scope="session")
def blocks(tmp_path_factory):
    teacher = small.save_tiny_teacher(tmp_path_factory.mktemp("teacher") / "model")
    return Blocks(
        data=DataConfig(source="phantom", phantom_size=48, phantom_depth=24, smallest=5),
        teacher=TeacherConfig(checkpoint=teacher),
        cache=CacheConfig(rows_per_shard=8),
        precompute=PrecomputeConfig(
            prompts=PromptConfig(per_object=1), tracks=TrackConfig(per_object=1, length=3)
        ),
    )


def make_cache(blocks: Blocks, path: Path) -> StageContext:
    context = make_context(path, path)
    precompute.run(blocks.data, blocks.teacher, blocks.cache, blocks.precompute, context)
    return context


@pytest.fixture(scope="session")
def cache_path(blocks, tmp_path_factory):
    """A finished cache of the phantom that no test may change."""
    path = tmp_path_factory.mktemp("cache") / "phantom.cache"
    make_cache(blocks, path)
    return path


@pytest.fixture(scope="session")
def reader(cache_path):
    return CacheReader(cache_path)
