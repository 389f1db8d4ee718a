"""The home folder: one engine at a time runs on it, and the commands beside it find that engine's servers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from app.errors import HomeInUse, StartError


@dataclass(frozen=True, slots=True)
class Running:
    """A running `nurture up`: its process and where its servers listen (URLs with whatever secret they need: keep them private)."""

    pid: int
    database_url: str
    redis_url: str | None
    base_url: str


class Lock:
    """The lock on a home: held by one process at a time, and let go by the kernel when that process dies.

    `role` is `up` for the engine and the command's name for one that runs the database only while it works; those are waited for.
    """

    def __init__(self, home: Path, role: str):
        self.home = home
        self.role = role
        self._descriptor: int | None = None

    def take(self, *, wait: float = 15.0) -> None:
        """Takes the lock. Waits up to `wait` seconds for a command to finish, never for an engine. Raises HomeInUse."""
        deadline = time.monotonic() + wait
        while not self.try_take():
            holder = self.holder()
            if holder.get("role") == "up" or time.monotonic() > deadline:
                raise HomeInUse(_in_use(self.home, holder))
            time.sleep(0.05)

    def try_take(self) -> bool:
        descriptor = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        with out_of_space_is_said(self.home):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "role": self.role}).encode(), 0)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> dict:
        """Who holds or last held the lock: `pid` and `role`; empty while it is being written."""
        try:
            return json.loads((self.home / "lock").read_text())
        except (OSError, ValueError):
            return {}


def _in_use(home: Path, holder: dict) -> str:
    who = f"process {holder['pid']}" if "pid" in holder else "another process"
    return f"Nurture already runs on {home} ({who}). Stop that one first, or give this one its own: nurture up --home DIR --port 8001"


def announce(home: Path, running: Running) -> None:
    """Lets commands beside this engine find its servers."""
    draft = home / ".urls.json"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with out_of_space_is_said(home), os.fdopen(descriptor, "w") as file:
        json.dump(asdict(running), file)
    draft.rename(home / "urls.json")


def withdraw(home: Path) -> None:
    (home / "urls.json").unlink(missing_ok=True)


def running(home: Path) -> Running | None:
    """The engine that runs on `home`, as it announced itself. Does not look whether it lives: the lock says that."""
    try:
        return Running(**json.loads((home / "urls.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def out_of_space_is_said(home: Path):
    """Turns a full disk under `home` into a StartError that says so."""
    try:
        yield
    except OSError as error:
        raise StartError(f"cannot write to {home}: {error.strerror}. {free_words(home)}") from error


def free_words(home: Path) -> str:
    free = shutil.disk_usage(home).free // 2**20
    return f"{free} MB are free there. Free some space or choose another folder: --home DIR or NURTURE_HOME."
