"""Row I: the memory of the workers over a million events and 100,000 mails.

The real processes of `worker.py`, durable PostgreSQL, Redis, and a relay that accepts everything. The events are put before them as fast
as they take them; about a seventh of them mail, so that 100,000 messages come together. Read every second: the resident memory of the
advance and of the deliver worker; the larger one counts. Flat means that it does not grow between the middle and the end.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic, sleep

import psutil
from sqlalchemy import Engine, text

from app import db
from app.config import CODE
from app.flow import transports
from bench.advance import post, prepare
from bench.deliver import sink
from bench.ground import databases, environment
from bench.table import Line

EVENTS = 1_000_000
CHUNK = 20_000
AHEAD = 40_000
ACCOUNTS = 10_000
MAILING = 0.15
PATIENCE = 900.0


def memory() -> list[Line]:
    """Megabytes at the worst moment, and the growth over the second half."""
    with sink() as port, databases(SMTP_URL=f"smtp://127.0.0.1:{port}") as settings:
        engine = db.connect(settings.database_url)
        starts = prepare(engine, datetime.now(UTC), accounts=ACCOUNTS)
        with engine.begin() as conn:
            transports.edit(conn, settings, "default", datetime.now(UTC), rate=10_000.0, connections=16)
        command = [sys.executable, "worker.py"]
        workers = subprocess.Popen(command, cwd=CODE, env=environment(settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            read = _drive(engine, starts, psutil.Process(workers.pid))
        finally:
            workers.terminate()
            workers.wait(30)
        with engine.connect() as conn:
            sent = conn.execute(text("select count(*) from message where state = 'sent'")).scalar_one()
        engine.dispose()
    worst = {role: max(values) for role, values in read.items()}
    role = max(worst, key=worst.get)
    values = read[role]
    growth = max(values) - max(values[: len(values) // 2])
    note = (
        f"{EVENTS:,} events, {sent:,} mails; advance {worst['advance']:.0f} MB, deliver {worst['deliver']:.0f} MB; grew by {growth:.0f} MB"
    )
    return [Line("I", "memory of the larger worker", worst[role], "MB", 200, at_most=True, note=note + " over the second half")]


def _drive(engine: Engine, starts: Sequence[str], supervisor: psutil.Process) -> dict[str, list[float]]:
    read: dict[str, list[float]] = {"advance": [], "deliver": []}
    posted, until = 0, monotonic() + PATIENCE
    while monotonic() < until:
        waiting = _waiting(engine)
        if posted < EVENTS and waiting < AHEAD:
            post(engine, datetime.now(UTC), CHUNK, starts, accounts=ACCOUNTS, seed=posted, mailing=MAILING)
            posted += CHUNK
        elif posted >= EVENTS and not waiting:
            return read
        else:
            sleep(1)
        for child in supervisor.children():
            for role in read:
                if role in " ".join(child.cmdline()):
                    read[role].append(child.memory_info().rss / 1e6)
    raise RuntimeError(f"not done after {PATIENCE:.0f} s: {posted:,} events posted, {_waiting(engine):,} wait")


def _waiting(engine: Engine) -> int:
    with engine.connect() as conn:
        sql = "select (select count(*) from event_pending) + (select count(*) from message where state in ('due', 'claimed', 'in_dot'))"
        return conn.execute(text(sql)).scalar_one()


ROWS = {"I": memory}
