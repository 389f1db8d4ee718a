"""Row G: enrollments whose time has come, all at once, as after an outage or at nine in the morning; one worker.

50,000 accounts with a contact each, in two of three campaigns each: a wait is over and a mail follows; a `wait_for` has waited in vain,
and a mail follows; a wait is over, and a branch by usage chooses between a mail and another wait. Goals and exits are looked at first, as
always. Measured is `run_partition` over all partitions by one process on one connection, until nothing is due. Each round starts anew.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from statistics import median
from time import perf_counter

from sqlalchemy import text

from app import db
from app.queue import Bells
from bench import customers, folder
from bench.advance import drain
from bench.ground import databases
from bench.table import Line


def due(*, timers: int = 100_000, rounds: int = 3) -> list[Line]:
    """Timers per second, the median of the rounds."""
    now = datetime.now(UTC)
    rates = []
    with databases() as settings:
        engine = db.connect(settings.database_url, pool_size=1)
        keys = folder.put_in_force(engine, now, folder.waiting())
        customers.load(engine, now, timers // 2)
        for number in range(rounds + 1):
            with engine.begin() as conn:
                conn.execute(text("truncate enrollment, message, decision cascade"))
            customers.enroll(engine, now, keys, due=now - timedelta(minutes=1))
            customers.tidy(engine)
            engine.dispose()
            began = perf_counter()
            moved = drain(engine, Bells(None), now)
            took = perf_counter() - began
            if moved != timers:
                raise RuntimeError(f"{moved} of {timers} timers were taken")
            if number:  # the first round warms up
                rates.append(moved / took)
        with engine.connect() as conn:
            mails, still = conn.execute(text("select (select count(*) from message), (select count(*) from enrollment)")).one()
        if still != timers or not timers / 2 < mails < timers:
            raise RuntimeError(f"{mails} mails came of {still} enrollments")
        engine.dispose()
    note = f"rounds {', '.join(f'{value:,.0f}' for value in rates)}; {mails:,} mails in each"
    return [Line("G", f"{timers:,} timers due at once, one worker", median(rates), "timers/s", 5_000, note=note)]


ROWS = {"G": due}
