"""Keeps child processes running: starts them, starts again the ones that die, ends them all when told to.

Children die with the supervisor however it ends (see `app/launch.py`), have a session of their own, so that Ctrl-C reaches the
supervisor alone, and write to a log of limited size. One that keeps dying is started ever more slowly, never given up.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from app.children import end, launch, tail
from app.config import CODE

LOG_LIMIT = 10 * 2**20
PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_SECONDS = 30.0


class Launched(Protocol):
    """Something that runs as one process and can be started again at the same address, such as `embedded.Postgres`."""

    name: str
    log: Path | None
    process: subprocess.Popen | None

    def launch(self) -> None: ...

    def stop(self) -> None: ...


class Child:
    """A program of ours. It is told to end by SIGTERM and has `grace` seconds for it. `log` None: it writes where we write."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        log: Path | None = None,
        grace: float = 5.0,
        pass_fds: tuple[int, ...] = (),
    ):
        self.name = name
        self.log = log
        self.grace = grace
        self.process: subprocess.Popen | None = None
        self._command = command
        self._env = env
        self._pass_fds = pass_fds

    def launch(self) -> None:
        # What is left of a predecessor that was killed (a web server's workers) must not work beside the successor.
        self._sweep()
        self.process = launch(self._command, self.log, death="SIGTERM", env=self._env, cwd=CODE, pass_fds=self._pass_fds)

    def ask_to_end(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        end(self.process, [(signal.SIGTERM, self.grace)])
        self._sweep()

    def _sweep(self) -> None:
        if self.process and self.process.poll() is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


@dataclass(slots=True)
class _State:
    child: Launched
    started: float = 0.0
    deaths: int = 0
    again_at: float | None = None
    exits: list[int] = field(default_factory=list)


class Supervisor:
    """Runs `children` in the order given and ends them in the opposite one. Everything happens in the thread that calls it."""

    def __init__(self, children: Iterable[Launched] = (), *, on_event: Callable[[str], None]):
        self._states: list[_State] = []
        self._say = on_event
        self._stopping = False
        self._interrupting = False
        self._wake: tuple[int, int] | None = None
        self._looked_at_logs = 0.0
        for child in children:
            self.add(child)

    def add(self, child: Launched, *, running: bool = False) -> None:
        """Takes charge of a child, one that is `running` already or one for `start`."""
        self._states.append(_State(child, started=time.monotonic() if running else 0.0))

    def start(self) -> None:
        for state in self._states:
            if state.child.process is None:
                self._launch(state)

    def catch_signals(self) -> None:
        """From now on SIGINT, SIGTERM and SIGHUP end `watch`. Main thread only."""
        self._wake = os.pipe()
        for end_of_pipe in self._wake:
            os.set_blocking(end_of_pipe, False)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a caught signal raises KeyboardInterrupt, for work that takes long and may be left at any point."""
        self._interrupting = True
        try:
            if self._stopping:
                raise KeyboardInterrupt
            yield
        finally:
            self._interrupting = False

    def watch(self) -> None:
        """Starts again whatever dies, until a signal says to stop."""
        while not self._stopping:
            self.look()
            self._sleep(0.5 if self._calm() else 0.05)

    def look(self) -> None:
        """Notices who has died and starts whoever's pause is over."""
        now = time.monotonic()
        for state in self._states:
            process = state.child.process
            if state.again_at is None and process is not None and process.poll() is not None:
                self._on_death(state, process.returncode, now)
            if state.again_at is not None and now >= state.again_at:
                self._launch(state)
        if now > self._looked_at_logs + 10:
            self._looked_at_logs = now
            for log in {state.child.log for state in self._states if state.child.log}:
                limit_log(log)

    def exits(self, name: str) -> list[int]:
        """The exit codes of a child so far."""
        return next((state.exits for state in self._states if state.child.name == name), [])

    def stop(self) -> None:
        """Ends everything, the last started first; programs of ours all at once, servers after them. A few seconds at most."""
        self._stopping = True
        for state in self._states:
            if isinstance(state.child, Child):
                state.child.ask_to_end()
        for state in reversed(self._states):
            state.child.stop()
        if self._wake:
            signal.set_wakeup_fd(-1)
            for end_of_pipe in self._wake:
                os.close(end_of_pipe)
            self._wake = None

    def _launch(self, state: _State) -> None:
        state.started, state.again_at = time.monotonic(), None
        try:
            state.child.launch()
        except Exception as error:
            self._say(f"{state.child.name} cannot be started: {error}")
            state.deaths += 1
            state.again_at = state.started + PAUSES[min(state.deaths, len(PAUSES) - 1)]

    def _on_death(self, state: _State, code: int, now: float) -> None:
        if now - state.started > STEADY_SECONDS:
            state.deaths = 0
        state.exits.append(code)
        del state.exits[:-10]
        pause = PAUSES[min(state.deaths, len(PAUSES) - 1)]
        state.deaths += 1
        state.again_at = now + pause
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        said = tail(state.child.log, state.child.process.log_start, 1) if state.child.log and code > 0 else ""
        why = f" ({said[:200]})" if said else ""
        self._say(f"{state.child.name} {how}{why}; starting it again" + (f" in {pause:g} s" if pause else ""))

    def _calm(self) -> bool:
        return all(state.again_at is None for state in self._states)

    def _on_stop(self, _number: int, _frame: object) -> None:
        self._stopping = True
        if self._interrupting:
            raise KeyboardInterrupt

    def _sleep(self, seconds: float) -> None:
        if self._wake is None:
            time.sleep(min(seconds, 0.05))
            return
        select.select([self._wake[0]], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake[0], 4096)


def limit_log(log: Path, limit: int = LOG_LIMIT) -> None:
    """Keeps a log that another process appends to under `limit` bytes: what is in it moves to `<name>.1` and it starts empty."""
    try:
        if log.stat().st_size > limit:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)
    except OSError:
        # A full disk: then the old lines are what can be spared.
        with contextlib.suppress(OSError):
            log.with_name(log.name + ".1").unlink(missing_ok=True)
            os.truncate(log, 0)
