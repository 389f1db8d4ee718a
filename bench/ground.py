"""What benchmarks stand on: a durable PostgreSQL and a Redis of their own, and the web service as in production."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

from sqlalchemy import Engine, make_url, text

from app import db, embedded
from app.config import CODE, Settings, load
from app.migrate import migrate

LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")


@contextmanager
def databases(**more: str) -> Iterator[Settings]:
    """Settings of an empty, migrated installation on servers with the settings of `nurture up` (fsync and synchronous commit on).

    `more` are further environment variables, such as SMTP_URL. Everything is removed at the end.
    """
    home = Path(tempfile.mkdtemp(prefix="nurture-bench-"))
    os.chmod(home, 0o755)
    postgres, redis = embedded.Postgres(home), embedded.Redis(home)
    try:
        postgres.start()
        url = postgres.ensure_database("nurture")
        engine = db.connect(url)
        migrate(engine, datetime.now(UTC))
        engine.dispose()
        yield load({"NURTURE_HOME": str(home / "home"), "DATABASE_URL": url, "REDIS_URL": redis.start(), **more})
    finally:
        redis.stop()
        postgres.stop()
        shutil.rmtree(home, ignore_errors=True)


def installation(settings: Settings, name: str) -> Engine:
    """A further empty, migrated installation, in a database of its own on the same server. Its engine has one connection."""
    engine = db.connect(settings.database_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text(f'create database "{name}"'))
    engine.dispose()
    engine = db.connect(make_url(settings.database_url).set(database=name).render_as_string(hide_password=False), pool_size=1)
    migrate(engine, datetime.now(UTC))
    return engine


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process of this installation."""
    named = {
        "NURTURE_HOME": str(settings.home),
        "DATABASE_URL": settings.database_url.replace("postgresql+psycopg://", "postgresql://"),
        "REDIS_URL": settings.redis_url,
        "NURTURE_BASE_URL": settings.base_url,
        "NURTURE_CAMPAIGNS": str(settings.campaigns),
    }
    return {**os.environ, **named} | ({"SMTP_URL": settings.smtp_url} if settings.smtp_url else {})


@contextmanager
def web(settings: Settings, *, workers: int = 2, threads: int = 4) -> Iterator[int]:
    """The web service under gunicorn, as `nurture up` runs it. Gives its port on 127.0.0.1."""
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", "127.0.0.1:0", "--worker-class", "gthread"]
    command += ["--workers", str(workers), "--threads", str(threads)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=CODE, env=environment(settings), stdout=log, stderr=log)
        try:
            yield _port(process, log, workers)
        finally:
            process.terminate()
            process.wait(15)


def _port(process: subprocess.Popen, log, workers: int) -> int:
    said, deadline = "", monotonic() + 30
    while monotonic() < deadline and process.poll() is None:
        log.seek(0)
        said = log.read().decode()
        if (found := LISTENING.search(said)) and said.count("Booting worker") >= workers:
            return int(found.group(1))
        sleep(0.05)
    raise RuntimeError(f"the web service did not start:\n{said}")
