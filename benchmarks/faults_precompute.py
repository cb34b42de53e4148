"""The command line over the phantom as a writer that can be killed, and its judge."""

import importlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.faults_cache import Verdict
from benchmarks.faults_dask import command
from benchmarks.peak_memory import save_small_teacher
from cache import CacheError, CacheReader, verify
from cache.layout import HEADER_NAME
from cache.schema import ROW_SPACES
from pipeline.cli import main

__all__ = ["Precompute"]

_IMPORTED = (
    "efficient_medsam2.teachers.load",
    "pipeline.config",
    "pipeline.runner",
    "pipeline.stage_graph",
    "stages.precompute",
)


class Precompute:
    """``precompute`` with a teacher that takes milliseconds a slice.

    Args:
        folder: where the teacher goes, and the cache ``whole`` that others are compared with.
        prepare: does something in a forked process, so that this one gets no threads.
    """

    def __init__(self, folder: Path, *, prepare: Callable[[Callable[[], object]], object]) -> None:
        torch.set_num_threads(1)
        self._folder = folder
        self._teacher = folder / "teacher"
        prepare(lambda: save_small_teacher(self._teacher))
        for module in _IMPORTED:  # what every child would import, once
            importlib.import_module(module)

    def work(self, path: Path) -> None:
        """Fill the cache of the run folder ``path``, or go on."""
        words = command(path, self._teacher)
        code = main(words[words.index("precompute") :])
        if code:
            raise RuntimeError(f"precompute ended with {code}")

    def check(self, path: Path, complete: bool) -> Verdict:
        """Compare what is finished with the cache that nobody disturbed."""
        return _compare(path / "cache", self._truth, complete)

    @cached_property
    def _truth(self) -> CacheReader:
        return CacheReader(self._folder / "whole" / "cache")


def _compare(path: Path, truth: CacheReader, complete: bool) -> Verdict:
    """Judge a cache by another one instead of known values."""
    found = Verdict()
    if not (path / HEADER_NAME).is_file():
        return found
    try:
        reader = CacheReader(path)
        for space in ROW_SPACES:
            rows = reader.finished_rows(space)
            for array in reader.spec.arrays_of(space):
                same = (
                    reader.read(array.name, rows).tobytes()
                    == truth.read(array.name, rows).tobytes()
                )
                if not same:
                    found.wrong.append(f"{array.name}: other values without an error")
        found.named += [f"verify: {part}" for part in verify(path).bad]
        if complete and reader.digest() != truth.digest():
            found.wrong.append("another digest")
    except CacheError as error:
        found.named.append(str(error))
    return found
