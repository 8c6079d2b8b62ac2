"""A host of archives on loopback: counts what it serves, resumes, and breaks off where it is told to."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class DownloadHost:
    """Serves `files` (name -> content) until the block ends.

    `stop_after` cuts every answer for a name after so many bytes; with `hold`, the answer stays open then, until the
    host goes or `hold` is set.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.stop_after: dict[str, int] = {}
        self.hold: threading.Event | None = None
        self.reached = threading.Event()  # an answer was cut
        self.requests: list[tuple[str, str | None]] = []  # name, Range header
        self.sent: dict[str, int] = {}
        self._lock = threading.Lock()
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """The address to give the program under test."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/releases"

    def __enter__(self) -> DownloadHost:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.hold:
            self.hold.set()
        self._server.shutdown()
        self._thread.join(timeout=10)
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        name = request.path.rsplit("/", 1)[-1]
        wanted = request.headers.get("Range")
        with self._lock:
            self.requests.append((name, wanted))
        content = self.files.get(name)
        if content is None:
            request.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted and start >= len(content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        body = content[start:]
        cut = body[: self.stop_after.get(name, len(body))]
        with self._lock:
            self.sent[name] = self.sent.get(name, 0) + len(cut)
        request.wfile.write(cut)
        request.wfile.flush()
        if len(cut) < len(body):
            self.reached.set()
            if self.hold:
                self.hold.wait(timeout=60)
        request.close_connection = True
