"""Builders of the tests that start and kill real processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.children import LAUNCH


def eventually(found: Callable[[], object], seconds: float = 15.0):
    """Waits until `found()` gives something true, and returns it; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s", pytrace=True)
        time.sleep(0.03)


def as_user(command: list, user: int | None, **options) -> subprocess.Popen:
    """Starts `command` as another user, who may still enter the folders of the Python that runs it."""
    if user is not None:
        command = [sys.executable, "-I", "-S", LAUNCH, "--parent", str(os.getpid()), "--user", str(user), "--", *command]
    return subprocess.Popen([str(part) for part in command], **options)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A file system of 1 MB at `folder`. Skips where mounting is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
