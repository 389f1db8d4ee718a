"""Child processes that die with us: started by `app/launch.py`, ended politely, then firmly."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

LAUNCH = Path(__file__).with_name("launch.py")
# What a program that is not ours gets to see of our environment.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def launch(
    program: Iterable[str | os.PathLike],
    log: Path | None,
    *,
    death: str,
    user: int | None = None,
    reach: Iterable[os.PathLike] = (),
    env: Mapping[str, str] = ENVIRONMENT,
    cwd: str | os.PathLike = "/",
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen:
    """Starts `program` in a session of its own (Ctrl-C reaches us alone) so that it dies by signal `death` when we die.

    Its output is appended to `log` (None: it goes where ours goes); the process's `log_start` is where in it. Call it from the main
    thread only: on Linux the kernel counts the death of the calling thread.
    """
    command = [sys.executable, "-I", "-S", str(LAUNCH), "--parent", str(os.getpid()), "--death", death]
    if user is not None:
        command += ["--user", str(user)]
        for path in reach:
            command += ["--reach", str(path)]
    watched: int | None = None
    if sys.platform != "linux":
        watched, ours = os.pipe()
        command += ["--watch", str(watched)]
        pass_fds = (*pass_fds, watched)
    if log is None:
        descriptor, start = None, 0
    else:
        log.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        start = os.fstat(descriptor).st_size
    try:
        process = subprocess.Popen(
            [*command, "--", *map(str, program)],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            env=dict(env),
            cwd=cwd,
            pass_fds=pass_fds,
        )
    finally:
        for inherited in (descriptor, watched):
            if inherited is not None:
                os.close(inherited)
    process.log_start = start
    if watched is not None:
        process.lifeline = ours  # closed by the kernel when we die
    return process


def end(process: subprocess.Popen | None, steps: Iterable[tuple[int, float]]) -> None:
    """Ends `process`: each step is a signal and the seconds it is given; then SIGKILL. Does nothing to one that has ended."""
    if process is None:
        return
    for number, seconds in steps:
        if process.poll() is not None:
            break
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    if process.poll() is None:
        process.kill()
        process.wait()
    lifeline = process.__dict__.pop("lifeline", None)
    if lifeline is not None:
        os.close(lifeline)


def tail(log: Path, start: int = 0, lines: int = 8) -> str:
    """The last lines of a log, of what was written from byte `start` on."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
