"""A headless Chromium, where one is installed, driven by its own HTTP interface: a real browser with JavaScript."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

from tests.processes import eventually

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def installed() -> str | None:
    """The path of a Chromium on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """A browser without a window that reaches this machine only, and calls itself `agent`."""

    def __init__(self, agent: str):
        self.folder = Path(tempfile.mkdtemp(prefix="nurture-browser-"))
        path = installed()
        assert path, "no Chromium here; ask installed() first"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-popup-blocking"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-agent={agent}", "--accept-lang=en-GB,en"]
        self.process = subprocess.Popen(
            [path, *flags, f"--user-data-dir={self.folder}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        told = self.folder / "DevToolsActivePort"
        self.port = int(eventually(lambda: told.exists() and told.read_text().splitlines(), 60)[0])

    def open(self, url: str) -> str:
        """Opens `url` in a tab of its own and returns the tab's id. Does not wait for the page."""
        return self._ask("PUT", f"/json/new?{quote(url, safe='')}")["id"]

    def tabs(self) -> list[str]:
        return [one["id"] for one in self._ask("GET", "/json/list") if one["type"] == "page"]

    def shut(self, tabs: list[str]) -> None:
        """Shuts tabs; the last one stays open, since the browser goes with it."""
        for tab in tabs[1:] if set(tabs) >= set(self.tabs()) else tabs:
            self._ask("GET", f"/json/close/{tab}")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, method: str, path: str):
        with urlopen(Request(f"http://127.0.0.1:{self.port}{path}", method=method), timeout=30) as answer:
            body = answer.read()
        return json.loads(body) if body[:1] in (b"{", b"[") else None


class Mailbox:
    """Shows mails in a browser, as a webmail does: `pages` by path, each HTML."""

    def __init__(self, pages: Mapping[str, str]):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                page = pages.get(self.path)
                self.send_response(200 if page else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write((page or "").encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
