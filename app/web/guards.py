"""What is refused before a view sees it: hosts that are not ours, forms too large, callers too fast (X-36, X-38, X-39).

Counts are kept in the process: with Redis away, or a process started anew, everybody starts afresh and nobody is locked out. One-click
unsubscribing is never counted (U-08).
"""

from __future__ import annotations

import threading
import time
from math import ceil
from urllib.parse import urlsplit

from flask import Flask, Response, request

from app.config import Settings, is_loopback
from app.web.context import asked_host
from app.web.problems import FOR_PROGRAMS, problem

FORM_BYTES = 64 * 1024
FORMS = ("/console", "/u/", "/p/", "/s/")
_REMEMBERED = 10_000


class Pace:
    """Lets each name through `burst` times at once and `per_second` times a second in the long run."""

    def __init__(self, burst: int, per_second: float):
        self.interval = 1 / per_second
        self.allowance = (burst - 1) * self.interval
        self._lock = threading.Lock()
        self._free_at: dict[str, float] = {}

    def wait(self, name: str, now: float | None = None) -> float:
        """0 when `name` may pass now, which counts; else the seconds after which it may."""
        now = time.monotonic() if now is None else now
        with self._lock:
            free_at = max(self._free_at.get(name, 0.0), now)
            if free_at - now > self.allowance:
                return free_at - now - self.allowance
            if len(self._free_at) >= _REMEMBERED:
                self._free_at = {one: at for one, at in self._free_at.items() if at > now}
                if len(self._free_at) >= _REMEMBERED:
                    self._free_at.clear()
            self._free_at[name] = free_at + self.interval
            return 0.0


class Paces:
    """How fast callers may be, for each of what they are counted by. An application has one."""

    def __init__(self) -> None:
        self.api = Pace(1_000, 100)  # a key
        self.sign_in = Pace(30, 0.1)  # a network
        self.preferences = Pace(20, 1 / 30)  # a message


def install(app: Flask, settings: Settings) -> None:
    """Gives `app` its guards. Pages for people are served under the names of the base URL and the console, those of NURTURE_HOSTS and this
    machine's own; what programs call, and health checks, under any name. A forwarded host counts for nothing."""
    app.extensions["paces"] = Paces()
    ours = settings.hosts | {settings.base_host, urlsplit(settings.console_base).hostname or ""}

    @app.before_request
    def refuse() -> Response | None:
        if not request.path.startswith(FOR_PROGRAMS):
            host = asked_host()
            if host not in ours and not is_loopback(host):
                return problem(421, "This host name is not served here. An operator can add it to NURTURE_HOSTS.")
        if request.path.startswith(FORMS):
            request.max_content_length = FORM_BYTES
        return None


def too_fast(wait: float) -> Response:
    """The answer to whoever has to wait so many seconds."""
    return problem(429, "Too many requests. Wait a little.", headers={"Retry-After": str(ceil(wait))})
