"""`nurture up`: the whole engine on one machine, from an empty folder to a page that answers, and its orderly end."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from app import embedded, home
from app.children import tail
from app.config import CODE, PRODUCT, VERSION, Settings, environment
from app.db import connect
from app.errors import StartError
from app.migrate import migrate
from app.models import installation
from app.supervise import Child, Supervisor
from app.work import GRACE, ROLES

WEB_WORKERS, WEB_THREADS = 2, 4
READY_SECONDS = 60


def up(settings: Settings, *, port: int, sample: bool, say: Callable[[str], None] | None = None) -> None:
    """Runs the engine until SIGINT, SIGTERM or SIGHUP, then ends everything it started.

    Raises StartError (HomeInUse, DatabaseNewer) when it cannot start; nothing is left running then.
    """
    say = say or _print
    lock = home.Lock(settings.home, "up")
    lock.take()
    supervisor = Supervisor(on_event=lambda line: say(f"{datetime.now(UTC):%H:%M:%S}  {line}"))
    try:
        with _listen(port) as listening:
            supervisor.catch_signals()
            say(f"{PRODUCT} {VERSION}   home: {settings.home}")
            with contextlib.suppress(KeyboardInterrupt), supervisor.interrupting():
                _run(_Start(settings, port, listening, supervisor, say), sample)
            supervisor.watch()
            say("\nStopping …")
    finally:
        supervisor.stop()
        home.withdraw(settings.home)
        lock.release()
    say("Stopped.")


def _print(line: str) -> None:
    # Whoever read what we say may be gone (`nurture up | head`); the engine runs for others.
    with contextlib.suppress(OSError):
        print(line, flush=True)


@dataclass(slots=True)
class _Start:
    settings: Settings
    port: int
    listening: socket.socket
    supervisor: Supervisor
    say: Callable[[str], None]


def _run(start: _Start, sample: bool) -> None:
    start.settings = _servers(start)
    engine = connect(start.settings.database_url, pool_size=1)
    try:
        _tables(start, engine)
        _campaigns(start, engine)
        if sample:
            _sample(start, engine)
        home.announce(start.settings.home, _running(start.settings))
        _processes(start)
        _greet(start, engine)
    finally:
        engine.dispose()


@contextlib.contextmanager
def _phase(start: _Start, name: str) -> Iterator[list[str]]:
    """Says what a phase came to, and how long it took."""
    began, words = time.monotonic(), []
    yield words
    start.say(f"  {name:<11}{' '.join(words):<56} {time.monotonic() - began:5.1f} s")


def _servers(start: _Start) -> Settings:
    settings = start.settings
    with _phase(start, "database") as words:
        if settings.database_url:
            words.append(f"PostgreSQL {_database_version(settings.database_url)}, at DATABASE_URL")
        else:
            postgres = embedded.Postgres(settings.home)
            postgres.start()
            start.supervisor.add(postgres, running=True)
            settings = replace(settings, database_url=postgres.ensure_database("nurture"))
            words.append(f"PostgreSQL {postgres.version()}, embedded")
    with _phase(start, "doorbells") as words:
        if settings.redis_url:
            words.append(_redis_words(settings.redis_url))
        else:
            server = embedded.Redis(settings.home)
            settings = replace(settings, redis_url=server.start())
            start.supervisor.add(server, running=True)
            words.append(f"Redis {server.version()}, embedded")
    return settings


def _tables(start: _Start, engine: Engine) -> None:
    with _phase(start, "tables") as words:
        migrate(engine, datetime.now(UTC))
        with engine.connect() as conn:
            revision = conn.execute(text("select version_num from alembic_version")).scalar_one()
            words.append(f"revision {revision}")


def _campaigns(start: _Start, engine: Engine) -> None:
    from app.flow.publish import publish

    with _phase(start, "campaigns") as words:
        with engine.begin() as conn:
            published = publish(conn, start.settings.campaigns, datetime.now(UTC))
        words.append(f"{len(published)} published, from {start.settings.campaigns}")


def _sample(start: _Start, engine: Engine) -> None:
    from app import sample

    with _phase(start, "sample") as words, engine.begin() as conn:
        partitions = conn.execute(installation.select()).one().partitions
        added = sample.load(conn, datetime.now(UTC), partitions)
        words.append(f"{added} sample customers" if added else "sample customers are there already")


def _processes(start: _Start) -> None:
    env, logs = environment(start.settings), start.settings.home / "logs"
    web = Child("web", _gunicorn(start.listening), env, log=logs / "web.log", grace=6, pass_fds=(start.listening.fileno(),))
    start.supervisor.add(web)
    for role in ROLES:
        command = [sys.executable, str(CODE / "worker.py"), role]
        start.supervisor.add(Child(f"worker {role}", command, env, log=logs / f"{role}.log", grace=GRACE[role] + 1))
    with _phase(start, "processes") as words:
        start.supervisor.start()
        _wait_for_web(start, logs / "web.log")
        words.append(f"web on port {start.port}, workers {', '.join(ROLES)}")


def _gunicorn(listening: socket.socket) -> list[str]:
    # The listening socket is ours: while the web service is started again, callers wait instead of being refused.
    bind = f"fd://{listening.fileno()}"
    sizes = ["--workers", str(WEB_WORKERS), "--threads", str(WEB_THREADS), "--worker-class", "gthread"]
    times = ["--timeout", "60", "--graceful-timeout", "4", "--keep-alive", "5"]
    return [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", bind, *sizes, *times, "--no-control-socket", "--log-level", "warning"]


def _wait_for_web(start: _Start, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(start.port):
        start.supervisor.look()
        if len(start.supervisor.exits("web")) >= 3:
            raise StartError(f"the web service does not start:\n{tail(log)}\nIts log: {log}")
        if time.monotonic() > deadline:
            raise StartError(f"the web service does not answer after {READY_SECONDS} seconds. Its log: {log}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    """Whether the web service answers HTTP, with anything."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as conn:
            conn.settimeout(1.0)
            conn.sendall(b"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            return conn.recv(5) == b"HTTP/"
    except OSError:
        return False


@contextlib.contextmanager
def _listen(port: int) -> Iterator[socket.socket]:
    """Holds the web service's port: before anything is started it is known to be free, and it stays ours."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
            listening.listen(1024)
        except OSError as error:
            raise StartError(
                f"port {port} cannot be used: {error.strerror}. Stop the program that uses it, or choose another: "
                f"nurture up --port {port + 1 if port < 65535 else 8000}"
            ) from error
        yield listening
    finally:
        listening.close()


def _running(settings: Settings) -> home.Running:
    return home.Running(os.getpid(), settings.database_url, settings.redis_url, settings.base_url)


def _database_version(url: str) -> str:
    engine = connect(url, pool_size=1)
    try:
        with engine.connect() as conn:
            number = int(conn.execute(text("show server_version_num")).scalar_one())
    except DBAPIError as error:
        raise StartError(f"the database of DATABASE_URL does not answer: {str(error.orig).strip().splitlines()[-1]}") from error
    finally:
        engine.dispose()
    if number < 150000:
        raise StartError(f"the database of DATABASE_URL is PostgreSQL {number // 10000}; Nurture needs 15 or newer")
    return f"{number // 10000}.{number % 10000}"


def _redis_words(url: str) -> str:
    # Without Redis the work goes on, only slower; so this one is no reason not to start.
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as client:
            version = client.info("server")["redis_version"]
    except redis.RedisError as error:
        return f"REDIS_URL does not answer ({str(error).splitlines()[0][:60]}): working without"
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        raise StartError(f"the server of REDIS_URL is Redis {version}; Nurture needs 6.2 or newer")
    return f"Redis {version}, at REDIS_URL"


def _greet(start: _Start, engine: Engine) -> None:
    from app.flow.access import create_sign_in

    settings = start.settings
    with engine.begin() as conn:
        token = create_sign_in(conn, datetime.now(UTC))
    own_home = "" if settings.home == CODE / "home" else f" --home '{settings.home}'"
    command = "nurture" if not sys.argv[0].startswith(".venv") else ".venv/bin/nurture"
    start.say("")
    start.say(f"Console   {settings.console_base}/console/sign-in/{token}")
    start.say("          (signs you in once)")
    if not settings.smtp_url:
        start.say(f"Outbox    {settings.base_url}/dev/outbox")
        start.say("          (no SMTP_URL is set: mail is kept here instead of being sent)")
    start.say(f"API key   {command} keys create my-product --scope write{own_home}")
    start.say(f"Logs      {settings.home / 'logs'}")
    start.say("")
    start.say("Ctrl-C stops everything.")
