"""A server on the loopback interface that speaks the hub's routes for one file."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "5" * 40


@contextmanager
def hub_serving(route, content, *, cut_first_at=None, etag=None):
    """Serve ``content`` at ``/<route>``'s resolve address of branch main and of its commit.

    Args:
        route: ``owner/repository`` and file name.
        content: bytes of the file.
        cut_first_at: bytes after which the first download breaks off.
        etag: what to promise instead of the content's SHA-256.

    Yields:
        The endpoint, and the requests for the file as (method, path, Range header).
    """
    repository, name = route
    requests = []
    paths = {f"/{repository}/resolve/{revision}/{name}" for revision in ("main", COMMIT)}
    cut = [cut_first_at]

    class Handler(BaseHTTPRequestHandler):
        def _head(self):
            if self.path in paths:
                requests.append((self.command, self.path, self.headers.get("Range")))
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            body = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag or hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            if start:
                whole = len(content)
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            self.end_headers()
            return body

        def do_HEAD(self):
            self._head()

        def do_GET(self):
            body = self._head()
            if body is not None:
                end, cut[0] = cut[0], None
                self.wfile.write(body[:end])
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
