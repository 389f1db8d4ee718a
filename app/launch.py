"""Becomes another program that dies with the process that asked for it.

Run as a script (`python -I -S launch.py OPTIONS -- PROGRAM ARGS…`), so it imports nothing of Nurture and starts in milliseconds:

    --parent PID     the process to die with
    --death NAME     the signal to die by, such as SIGTERM
    --user UID       give up root for this user first, while keeping the right to walk through folders closed to it
    --reach PATH     (may repeat) a path that the program must reach as that user
    --watch FD       watch this pipe instead of asking the kernel; it closes when the parent dies (every system but Linux)

On Linux it replaces itself by the program (same pid). PostgreSQL refuses to run as root, yet homes and virtual environments live
under folders that only root may enter, and those must not be opened to everybody: the program gets the capability to search
folders, and nothing else that root may do.

Exit codes of its own: 96 a path cannot be reached as that user, 97 the parent is gone already, 98 root may not give up being root.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys

UNREACHABLE = 96
ORPHANED = 97
BOUND = 98

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
# access(2) drops the capabilities of whoever is not root unless this bit is set, and PostgreSQL finds its own files with it.
SECBIT_NO_SETUID_FIXUP = 1 << 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--death", default="SIGTERM")
    parser.add_argument("--user", type=int)
    parser.add_argument("--reach", action="append", default=[])
    parser.add_argument("--watch", type=int)
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    death = signal.Signals[options.death]
    if options.user is not None:
        try:
            give_up_root(options.user, options.reach)
        except PermissionError:
            sys.exit(BOUND)
        for path in options.reach:
            if not os.access(path, os.X_OK):
                sys.stderr.write(path)
                sys.exit(UNREACHABLE)
    if options.watch is not None:
        sys.exit(_babysit(options.program, options.watch, death))
    _die_with(options.parent, death)
    os.execv(options.program[0], options.program)


def give_up_root(user: int, reach: list[str]) -> None:
    """Becomes `user` (and its group, no others) for good, keeping through exec the one capability it takes to use the paths of
    `reach`: CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE where a program is closed to others (umask 077) or the first is not to be had.

    Where neither can be kept, the process has no capability at all afterwards.
    """
    wanted = [CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE]
    if any(not os.stat(path).st_mode & 0o001 and os.stat(path).st_uid != user for path in reach):
        wanted.reverse()
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True)
    if linux:
        libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    if linux and not any(_keep_only(libc, capability) for capability in wanted):
        _keep_only(libc, None)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def _keep_only(libc: ctypes.CDLL, capability: int | None) -> bool:
    bits = 0 if capability is None else 1 << capability
    header = _Header(LINUX_CAPABILITY_VERSION_3, 0)
    sets = (_Sets * 2)()
    # The sets held now are asked for first: to want more than is permitted would fail after half of it was given up.
    if libc.capget(ctypes.byref(header), sets) or sets[0].permitted & bits != bits:
        return False
    wanted = (_Sets * 2)(_Sets(bits, bits, bits), _Sets(0, 0, 0))
    if libc.capset(ctypes.byref(header), wanted):
        return False
    return capability is None or libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0


def _die_with(parent: int, death: int) -> None:
    # After the change of user, which clears it; and the parent may have died before.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(ORPHANED)


def _babysit(program: list[str], pipe: int, death: int) -> int:
    child = subprocess.Popen(program)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, lambda caught, _frame: child.send_signal(caught))
    while child.poll() is None:
        ready, _, _ = select.select([pipe], [], [], 0.2)
        if ready and not os.read(pipe, 1):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(death)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    main()
