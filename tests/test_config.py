"""Settings: what several processes of one home may do at the same time."""

from __future__ import annotations

import os
import subprocess
import sys

from app.config import CODE

LOADS = (
    "import sys; from app.config import load; found = {load({'NURTURE_HOME': sys.argv[1]}).secret_key for _ in range(300)}; print(*found)"
)


def test_processes_that_start_together_agree_on_a_home_and_its_secret(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(CODE)}
    command = [sys.executable, "-c", LOADS, str(tmp_path / "home")]
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["secret"]
