"""A Dask cluster of processes of their own on this machine: one scheduler, workers to be killed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["DaskProcesses"]

_ROOT = Path(__file__).parents[1]
_START_S = 120.0


class DaskProcesses:
    """``dask scheduler`` and ``dask worker`` on loopback; a context manager that ends them.

    Args:
        workers: processes at the beginning.

    Attributes:
        address: of the scheduler.
    """

    def __init__(self, workers: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dask-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        file = Path(self._folder.name) / "scheduler.json"
        try:
            self._start(
                *("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"),
                *("--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)),
            )
            self.address = str(_wait_for(file)["address"])
            for _ in range(workers):
                self.add_worker()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_worker(self) -> None:
        """Start another worker, as a machine that joins."""
        worker = self._start(
            *("distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-nanny"),
            *("--host", "127.0.0.1", "--memory-limit", "0", "--no-dashboard"),
            *("--local-directory", self._folder.name),
        )
        self.workers.append(worker)

    def kill_worker(self, number: int) -> None:
        """End a worker with SIGKILL, as a machine that loses power."""
        worker = self.workers.pop(number)
        worker.send_signal(signal.SIGKILL)
        worker.wait()

    def close(self) -> None:
        """End every process."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._folder.cleanup()

    def running(self) -> list[int]:
        """Ids of the processes that are still there."""
        return [process.pid for process in self._processes if process.poll() is None]

    def _start(self, module: str, *words: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
            cwd=self._folder.name,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._processes.append(process)
        return process


def _wait_for(file: Path) -> dict[str, object]:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if file.is_file():
            try:
                found: dict[str, object] = json.loads(file.read_text())
            except ValueError:
                pass  # half written
            else:
                return found
        time.sleep(0.05)
    raise TimeoutError(f"no Dask scheduler after {_START_S:.0f} s")
