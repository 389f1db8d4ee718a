"""A real web service in processes of its own: gunicorn on a free port, as in production."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic, sleep

CODE = Path(__file__).resolve().parent.parent
LISTENING = re.compile(r"Listening at: (http://\S+:\d+)")


@contextmanager
def served(settings, *, workers: int = 2, redis_url: str | None = None) -> Iterator[str]:
    """Serves `settings` (another Redis, if given) while inside; gives the base URL."""
    environ = {
        **os.environ,
        "NURTURE_HOME": str(settings.home),
        "DATABASE_URL": settings.database_url.replace("postgresql+psycopg://", "postgresql://"),
        "REDIS_URL": redis_url or settings.redis_url,
        "NURTURE_BASE_URL": settings.base_url,
        "NURTURE_CAMPAIGNS": str(settings.campaigns),
    }
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", "127.0.0.1:0", "--worker-class", "gthread"]
    command += ["--workers", str(workers), "--threads", "4", "--graceful-timeout", "2"]
    with TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=CODE, env=environ, stdout=log, stderr=log)
        try:
            yield _url(process, log, workers)
        finally:
            process.terminate()
            process.wait(15)


def _url(process: subprocess.Popen, log, workers: int) -> str:
    deadline = monotonic() + 30
    while monotonic() < deadline:
        log.seek(0)
        said = log.read().decode()
        found = LISTENING.search(said)
        if found and said.count("Booting worker") >= workers:
            return found.group(1)
        if process.poll() is not None:
            raise AssertionError(f"the web service ended at start:\n{said}")
        sleep(0.05)
    raise AssertionError(f"the web service did not start:\n{said}")
