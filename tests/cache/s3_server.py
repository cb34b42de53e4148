"""A moto S3 server in a process of its own, whose objects outlive being killed.

moto keeps objects in memory. Here every change is written to a folder before it is answered, and
read from there at the start, so that a killed server comes back as a real one does.

    python tests/cache/s3_server.py FOLDER PORT
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote

BUCKET = "bucket"
ACCOUNT = "123456789012"


class S3Server:
    """A server process on loopback, always on the same port; a context manager that ends it."""

    def __init__(self, folder: Path) -> None:
        # Bound and never listened on: nobody else gets the port while the server is dead.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self._port = self._place.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._place.close()

    @property
    def options(self) -> dict[str, str]:
        """Options of obstore."""
        return {"endpoint": self.url, "region": "us-east-1"}

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(self._folder), str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 600
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                direct.open(f"{self.url}/moto-api/", timeout=60).close()
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def hold(self, *words: str) -> None:
        """Let uploads of keys that contain all of these words wait; of none, where none is given.

        What is waiting then goes on, that of clients which have died meanwhile included.
        """
        held = _held(self._folder)
        if words:
            held.write_text("\n".join(words))
        else:
            held.unlink()

    def file(self, key: str) -> Path:
        """Where an object's content lies."""
        return self._folder / quote(key, safe="")

    def keys(self) -> set[str]:
        """All objects."""
        return {unquote(file.name) for file in self._folder.iterdir() if file.suffix != ".part"}


def _held(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.held")


def _wait(folder: Path, key: str) -> None:
    while True:
        try:
            words = _held(folder).read_text().split("\n")
        except FileNotFoundError:
            return
        if not all(word in key for word in words):
            return
        time.sleep(0.01)


def _application(folder: Path) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    for file in folder.iterdir():
        if file.suffix != ".part":
            backend.put_object(BUCKET, unquote(file.name), file.read_bytes())
    application = DomainDispatcherApplication(create_backend_app)
    bucket = f"/{BUCKET}"
    # moto looks at a condition and then writes; a store does both at once.
    one_change = threading.Lock()

    def persist(key: str) -> None:
        place = folder / quote(key, safe="")
        found = backend.get_object(BUCKET, key)
        if found is None:
            place.unlink(missing_ok=True)
            return
        part = place.with_name(f"{place.name}.part")
        part.write_bytes(found.value)
        part.replace(place)

    def change(environment: dict[str, Any], start: Any, path: str) -> Iterable[bytes]:
        answer = list(application(environment, start))
        if path.rstrip("/") == bucket:  # a request that deletes several
            for file in list(folder.iterdir()):
                if backend.get_object(BUCKET, unquote(file.name)) is None:
                    file.unlink(missing_ok=True)
        elif path.startswith(bucket):
            persist(path.removeprefix(f"{bucket}/"))
        return answer

    def run(environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] not in ("PUT", "POST", "DELETE"):
            return list(application(environment, start))
        path = environment.get("PATH_INFO", "")
        _wait(folder, path)
        with one_change:
            return change(environment, start, path)

    return run


def main(folder: Path, port: int) -> None:
    """Serve until killed."""
    from werkzeug.serving import run_simple

    os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
    run_simple("127.0.0.1", port, _application(folder), threaded=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
