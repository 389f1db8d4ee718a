"""An HTTP server that takes alerts and webhooks and misbehaves on order: http.server in a thread.

    with Hooks([(503, {"Retry-After": "60"}, b"later")]) as server: …

`answers` are used up one by one, one per request; afterwards everything is taken with 200. An answer is (status, headers, body), or one of
"close" (says nothing), "hold" (waits until `release` is set, then 200), "drip" (sends a byte of the head every 0.1 s for ever).
"""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any


class Hooks:
    def __init__(self, answers: Sequence[Any] = (), tls: ssl.SSLContext | None = None):
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.release = threading.Event()
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hooks": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a caller who hangs up is what some tests are about
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.place = ("https" if tls else "http", "127.0.0.1", self.port)

    def __enter__(self) -> Hooks:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Any:
        with self._lock:
            self.requests.append((path, headers, body))
            return self.answers.pop(0) if self.answers else (200, {}, b"ok")

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.requests]

    def sent(self, name: str) -> list[str | None]:
        """That header of every request."""
        return [headers.get(name.lower()) for _, headers, _ in self.requests]


class _Handler(http.server.BaseHTTPRequestHandler):
    hooks: Hooks

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.hooks.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        if answer == "hold":
            self.hooks.release.wait(30)
            answer = (200, {}, b"ok")
        if answer == "close":
            self.close_connection = True
            return
        if answer == "drip":
            with contextlib.suppress(OSError):
                while not self.hooks.over.is_set():
                    self.wfile.write(b"H")
                    time.sleep(0.1)
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Says nothing."""
