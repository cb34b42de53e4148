"""From ``--workers`` and ``--scheduler`` to workers."""

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from urllib.parse import urlsplit

from pipeline.options import ClusterChoice
from stages.cluster import Cluster, ClusterSettings
from stages.errors import ClusterError

__all__ = ["open_cluster"]

_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def open_cluster(
    choice: ClusterChoice, *, threads: int | None, note: Callable[[str], None]
) -> AbstractContextManager[Cluster | None]:
    """Give the workers that were asked for, or none. They start with their first task.

    Args:
        choice: what was typed.
        threads: ``run.threads``: CPU threads of each process; None: the cores, dealt out.
        note: told the dashboard's address.

    Raises:
        ClusterError: nobody knows the scheduler's machine.
    """
    if choice.workers is None and choice.scheduler is None:
        return nullcontext()
    if choice.scheduler is not None:
        _look_up(choice.scheduler)
    settings = ClusterSettings(
        workers=choice.workers,
        scheduler=choice.scheduler,
        threads=threads or max(_cores() // (choice.workers or 1), 1),
        gpus=() if choice.workers is None else _gpus(),
    )
    return Cluster(settings, note=note)


def _look_up(address: str) -> None:
    """Refuse a machine that has no address at once: Dask would try for half a minute."""
    host = urlsplit(address if "://" in address else f"tcp://{address}").hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise ClusterError(
            f"--scheduler {address}: no machine {host!r} is known here ({error}). Give the address "
            "that `dask scheduler` prints: --scheduler tcp://HOST:8786"
        ) from error


def _cores() -> int:
    # What a batch system grants; not every system tells.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get(_VISIBLE_GPUS)
    if visible is not None:
        return tuple(name for name in visible.split(",") if name)
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))
