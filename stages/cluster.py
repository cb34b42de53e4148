"""Other processes for a stage's tasks: some on this machine, or a running Dask cluster.

A task is a function of a module, called with one value; it may run twice, and then does no harm.
Dask starts only when the first task is given.
"""

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from stages.errors import ClusterError
from stages.gpu_share import GPU_SHARERS

__all__ = ["Cluster", "ClusterSettings", "shard_runs", "worker_name"]

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

GPU_RESOURCE = "GPU"
"""Name of the resource that GPU workers are started with: ``dask worker --resources GPU=1``."""

_KILLS_ALLOWED = 10
"""Workers of this machine that may die on one task before Dask gives it up; elsewhere it is what
the scheduler was started with, by default 3."""

_SUBMISSIONS = 3
"""How often a task that Dask gave up is given before it is taken for the task's fault."""

_CONNECT_S = "30s"

_LONGEST_RUN = 16
"""Shards of a task: about an eighth of its tracks are followed twice, by the next task too."""

_TASKS_A_WORKER = 4
"""At least so many tasks for each worker, so that none of them is left over for long."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where tasks run; one of ``workers`` and ``scheduler`` is given.

    Attributes:
        workers: processes on this machine.
        scheduler: address of a running Dask scheduler, such as ``tcp://10.0.0.5:8786``.
        threads: CPU threads of each process on this machine.
        gpus: names of this machine's GPUs for ``CUDA_VISIBLE_DEVICES``, dealt out to the processes.
    """

    workers: int | None = None
    scheduler: str | None = None
    threads: int = 1
    gpus: tuple[str, ...] = ()


class Cluster:
    """Runs tasks on workers; a context manager that ends what it started.

    Args:
        settings: where.
        note: told the dashboard's address and what the user should know.
    """

    def __init__(self, settings: ClusterSettings, *, note: Callable[[str], None]) -> None:
        self._settings = settings
        self._note = note
        self._local: Any = None
        self._client: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and the processes that were started here."""
        client, local = self._client, self._local
        self._client = self._local = None
        if client is not None:
            client.close()
        if local is not None:
            local.close()

    def worker_count(self) -> int:
        """Workers at this moment, at least 1: a cluster may start them when there are tasks."""
        return max(len(self._workers()), 1)

    def run(
        self,
        function: Callable[[TaskT], ResultT],
        tasks: Sequence[TaskT],
        *,
        name: str,
        gpu: bool = False,
    ) -> Iterator[tuple[int, ResultT]]:
        """Run tasks; gives (number of the task, result) as they end.

        A task whose worker died is given to another one. Leaving the iterator early cancels what
        is left.

        Args:
            function: of a module that the workers have too.
            tasks: its arguments.
            name: of the tasks, for the dashboard.
            gpu: prefer workers that were started with a GPU resource, where any was.

        Raises:
            ClusterError: no scheduler answers, it is lost, or a task kills its workers.
            Exception: whatever a task raises.
        """
        from distributed import CancelledError, KilledWorker, as_completed

        client = self._connected()
        run = uuid.uuid4().hex[:8]
        resources = {GPU_RESOURCE: 1} if gpu and self._have_gpus() else None

        def submit(number: int, kills: int) -> Any:  # noqa: ANN401 - a Dask future
            return client.submit(
                function,
                tasks[number],
                key=f"{name}-{run}-{number}-{kills}",
                pure=False,
                resources=resources,
            )

        waiting = {}
        for number in range(len(tasks)):
            future = submit(number, 0)
            waiting[future.key] = (number, 0, future)
        completed = as_completed([future for _, _, future in waiting.values()], loop=client.loop)
        try:
            for future in completed:
                number, kills, _ = waiting.pop(future.key)
                try:
                    result: ResultT = future.result()
                except CancelledError as error:
                    raise ClusterError(
                        f"the Dask scheduler {self._address()} has gone or dropped the tasks. What "
                        "is finished is kept: type the same command again"
                    ) from error
                except KilledWorker as error:
                    if kills + 1 >= _SUBMISSIONS:
                        raise ClusterError(
                            f"{name} task {number} ended every worker that took it, the last one "
                            f"{error.last_worker}. Most often their memory is too small: give "
                            "workers more, or use smaller batches: --set precompute.batch_size=1"
                        ) from error
                    self._note(f"{name} task {number}: its workers died; it is tried again")
                    again = submit(number, kills + 1)
                    waiting[again.key] = (number, kills + 1, again)
                    completed.add(again)
                else:
                    yield number, result
        finally:
            if waiting:
                client.cancel([future for _, _, future in waiting.values()])

    def _address(self) -> str:
        return self._settings.scheduler or "of this process"

    def _workers(self) -> dict[str, Any]:
        info = self._connected().scheduler_info(n_workers=-1)
        workers: dict[str, Any] = info["workers"]
        return workers

    def _have_gpus(self) -> bool:
        return any(worker["resources"].get(GPU_RESOURCE) for worker in self._workers().values())

    def _connected(self) -> Any:  # noqa: ANN401 - a Dask client
        if self._client is None:
            from distributed import Client

            target = self._settings.scheduler
            if target is None:
                target = self._local = _local_cluster(self._settings)
            try:
                self._client = Client(target, timeout=_CONNECT_S, set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                raise ClusterError(
                    f"no Dask scheduler answers at {self._settings.scheduler}: {error}. Start one "
                    "(dask scheduler) and give the address that it prints: --scheduler "
                    "tcp://HOST:8786"
                ) from error
            link = self._client.dashboard_link
            count = len(self._workers())
            self._note(f"dask: {count} workers; dashboard: {link or 'none'}")
        return self._client


def shard_runs(
    shards: Sequence[int], *, workers: int, longest: int = _LONGEST_RUN
) -> list[tuple[int, ...]]:
    """Cut ascending shards into runs of neighbours, a few for each worker."""
    length = max(1, min(longest, len(shards) // (_TASKS_A_WORKER * workers)))
    runs: list[list[int]] = []
    for shard in shards:
        if runs and len(runs[-1]) < length and runs[-1][-1] == shard - 1:
            runs[-1].append(shard)
        else:
            runs.append([shard])
    return [tuple(run) for run in runs]


def worker_name() -> str:
    """Name and machine of the worker that runs the calling task; this machine outside of tasks."""
    import socket

    from distributed import get_worker

    try:
        return f"{get_worker().name} on {socket.gethostname()}"
    except ValueError:
        return socket.gethostname()


def _local_cluster(settings: ClusterSettings) -> Any:  # noqa: ANN401 - a Dask cluster
    """Processes of this machine that end with this one, reachable from this machine alone."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    assert settings.workers is not None
    threads = str(settings.threads)
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    workers = {}
    for number in range(settings.workers):
        gpus = settings.gpus
        own = {}
        if gpus:
            sharers = -(-settings.workers // len(gpus))
            own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)], GPU_SHARERS: str(sharers)}
        workers[number] = {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                # Dask would stop a worker whose network takes most of the machine's memory.
                "memory_limit": 0,
                "host": "127.0.0.1",
                "env": environment | own,
                "silence_logs": logging.ERROR,
            },
        }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"},
    }
    with dask.config.set({"distributed.scheduler.allowed-failures": _KILLS_ALLOWED}):
        return SpecCluster(
            scheduler=scheduler, workers=workers, silence_logs=logging.ERROR, asynchronous=False
        )
