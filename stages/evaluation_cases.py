"""Evaluation case by case, in this process or on workers; both give the same figures."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from efficient_medsam2.networks.device import pick_device
from efficient_medsam2.networks.model_folder import load_network
from efficient_medsam2.networks.sam1 import PromptedNetwork
from stages.cases import CaseHandle, DataConfig
from stages.cluster import Cluster
from stages.evaluation_samples import SampleBook
from stages.evaluation_scores import Scores, measure_case
from stages.evaluation_settings import EvaluateConfig

__all__ = ["CaseMeasured", "CaseTask", "measure_cases", "measure_here", "measure_on_workers"]


@dataclass(frozen=True, kw_only=True)
class CaseTask:
    """One case, and what is to be measured on it.

    Attributes:
        handle: the case.
        data: how grey values are read.
        config: what is measured.
        folders: model → its folder, absolute, and the digest of its weights.
        scored: models whose scores are wanted; the others are only shown.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    handle: CaseHandle
    data: DataConfig
    config: EvaluateConfig
    folders: Mapping[str, tuple[Path, str]]
    scored: tuple[str, ...]
    device: str


@dataclass(frozen=True, kw_only=True)
class CaseMeasured:
    """What came of a case.

    Attributes:
        scores: model → its scores on this case.
        samples: pictures of this case.
    """

    scores: Mapping[str, Scores]
    samples: SampleBook


def measure_cases(
    measured: Iterator[tuple[int, CaseMeasured]],
    scores: Mapping[str, Scores],
    samples: SampleBook,
) -> Iterator[int]:
    """Put together what comes in any order as if it came in order.

    Args:
        measured: (number of the case, what came of it), numbers from 0 without a gap.
        scores: model → where its scores go.
        samples: where pictures go, as many as it takes.

    Yields:
        1 for each case that has come.
    """
    early: dict[int, CaseMeasured] = {}
    turn = 0
    for number, case in measured:
        if samples.full:
            # Pictures are large, and cases may wait long for their turn.
            case = CaseMeasured(scores=case.scores, samples=SampleBook(0))
        early[number] = case
        while turn in early:
            due = early.pop(turn)
            for model, of_case in due.scores.items():
                scores[model].extend(of_case)
            samples.extend(due.samples)
            turn += 1
        yield 1


def measure_here(
    handles: Sequence[CaseHandle],
    data: DataConfig,
    config: EvaluateConfig,
    runners: Mapping[str, PromptedNetwork],
    scored: Sequence[str],
    samples: SampleBook,
) -> Iterator[tuple[int, CaseMeasured]]:
    """Measure cases in this process, one after the other.

    Args:
        handles: the cases.
        data: how grey values are read.
        config: what is measured.
        runners: model → network.
        scored: models whose scores are wanted; the others are only shown.
        samples: the book of all cases: once it is full, no more pictures are made.
    """
    for number, handle in enumerate(handles):
        if samples.full:
            config = config.model_copy(update={"samples": 0})
        yield number, _measure(handle, data, config, runners, scored)


def measure_on_workers(
    cluster: Cluster, tasks: Sequence[CaseTask]
) -> Iterator[tuple[int, CaseMeasured]]:
    """Measure cases on workers, a case a task.

    Raises:
        ClusterError: the cluster is lost, or a case kills its workers.
        DataError: a case cannot be read.
    """
    return cluster.run(_measure_task, tasks, name="evaluate", gpu=True)


def _measure(
    handle: CaseHandle,
    data: DataConfig,
    config: EvaluateConfig,
    runners: Mapping[str, PromptedNetwork],
    scored: Sequence[str],
) -> CaseMeasured:
    scores = {name: Scores() for name in scored}
    samples = SampleBook(config.samples)
    measure_case(handle.load(), handle, data, config, runners, scores, samples)
    return CaseMeasured(scores=scores, samples=samples)


_ONE_TASK = threading.Lock()
_loaded: tuple[object, dict[str, PromptedNetwork]] | None = None


def _measure_task(task: CaseTask) -> CaseMeasured:
    # The networks have the device to themselves, whatever threads this worker has.
    with _ONE_TASK:
        return _measure(task.handle, task.data, task.config, _runners_of(task), task.scored)


def _runners_of(task: CaseTask) -> dict[str, PromptedNetwork]:
    """The models of a run, loaded once in this process."""
    global _loaded
    key = (task.device, sorted(task.folders.items()))
    if _loaded is None or _loaded[0] != key:
        _loaded = None
        device = pick_device(task.device)
        runners = {name: load_network(folder) for name, (folder, _) in task.folders.items()}
        for runner in runners.values():
            runner.model.to(device)
        _loaded = (key, runners)
    return _loaded[1]
