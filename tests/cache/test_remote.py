"""Conditional requests of stores that compare versions, not ETags."""

import json
import socket
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")

from obstore.store import GCSStore

from cache.errors import CacheUnreachableError
from cache.patience import Patience
from cache.remote import RemoteFolder
from cache.remote_lock import LOCK_OBJECT, RemoteLock
from cache.remote_object import ObjectState

ACCOUNT = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}


class Generations(BaseHTTPRequestHandler):
    """Objects with a generation, as Google's store has: its XML interface, as far as needed."""

    protocol_version = "HTTP/1.1"
    objects: dict

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["content-length"]))
        wanted = self.headers.get("x-goog-if-generation-match")
        known = self.objects.get(self.path, (0, b""))
        if wanted is not None and int(wanted) != known[0]:
            self.answer(412)
            return
        self.objects[self.path] = (known[0] + 1, content)
        self.answer(200)

    def do_GET(self):
        self.answer(200 if self.path in self.objects else 404, body=True)

    def do_DELETE(self):
        self.objects.pop(self.path, None)
        self.answer(204)

    def answer(self, status, *, body=False):
        generation, content = self.objects.get(self.path, (0, b""))
        sent = content if body else b""
        self.send_response(status)
        self.send_header("etag", '"always-the-same"')
        self.send_header("x-goog-generation", str(generation))
        self.send_header("last-modified", "Fri, 20 Nov 2026 10:00:00 GMT")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *words):
        pass


@pytest.fixture
def remote():
    handler = type("Handler", (Generations,), {"objects": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        account = ACCOUNT | {"gcs_base_url": f"http://127.0.0.1:{server.server_address[1]}"}
        store = GCSStore(
            "bucket",
            config={"service_account_key": json.dumps(account)},
            client_options={"allow_http": True},
        )
        yield RemoteFolder(store, "gs://bucket", patience=Patience(first_seconds=0.0, seconds=0.0))
        server.shutdown()
        thread.join()


def test_an_object_is_replaced_only_in_the_version_that_was_seen(remote):
    first = remote.put_if_absent("a", b"1")
    assert first is not None
    assert remote.put_if_absent("a", b"2") is None
    second = remote.put_if_same("a", b"3", first)
    assert second is not None
    assert second != first
    assert remote.put_if_same("a", b"4", first) is None
    assert remote.read("a")[0] == b"3"
    assert remote.read("a")[1].state == second
    assert remote.put_if_same("a", b"5", ObjectState(e_tag=second.e_tag, version="77")) is None


def test_what_takes_long_to_send_is_given_the_time_in_every_kind_of_request(remote):
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        account = json.dumps(
            ACCOUNT | {"gcs_base_url": f"http://127.0.0.1:{dead.getsockname()[1]}"}
        )
        other = GCSStore(
            "bucket",
            config={"service_account_key": account},
            client_options={"allow_http": True},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        )
        patience = Patience(first_seconds=0.0, seconds=0.0)
        folder = RemoteFolder(other, "gs://bucket", sender=remote._store, patience=patience)
        large = bytes(2 << 20)
        state = folder.put_if_absent("a", large)
        assert folder.put_if_same("a", large[1:], state) is not None
        assert remote.read("a")[0] == large[1:]
        with pytest.raises(CacheUnreachableError):
            folder.put_if_absent("b", b"small")


def test_a_lock_on_such_a_store_is_renewed(remote):
    lock = RemoteLock(remote, beat_seconds=3600.0)
    before = remote.read(LOCK_OBJECT)[1].state
    lock._renew()
    assert remote.read(LOCK_OBJECT)[1].state != before
    lock.check()
    lock.release()
    assert remote.read(LOCK_OBJECT) is None
