"""Row B: advancing events, one worker.

B: 20 campaigns, 10,000 accounts with a contact each, two active enrollments with `exit_when` per account; 90 % usage, 8 % milestone
events, 2 % that enroll and mail; ledger on. The events wait in the database; measured is `run_partition` over all partitions by one
process on one connection, until nothing is pending.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from time import perf_counter

from sqlalchemy import Engine, text

from app import db
from app.flow.advance import run_partition
from app.flow.ingest import accept
from app.flow.items import Item
from app.queue import Bells
from bench import customers, folder
from bench.ground import databases
from bench.table import Line


def rate() -> list[Line]:
    """Events per second, the median of three rounds."""
    now = datetime.now(UTC)
    with databases() as settings:
        engine = db.connect(settings.database_url, pool_size=1)
        starts = prepare(engine, now, accounts=10_000)
        bells = Bells(None)
        post(engine, now, 20_000, starts, accounts=10_000, seed=1)
        drain(engine, bells, now)
        rates = []
        for seed in (2, 3, 4):
            post(engine, now, 30_000, starts, accounts=10_000, seed=seed)
            engine.dispose()
            started = perf_counter()
            moved = drain(engine, bells, now)
            rates.append(moved / (perf_counter() - started))
        engine.dispose()
    note = f"rounds {', '.join(f'{value:,.0f}' for value in rates)}"
    return [Line("B", "advance, 20 campaigns, 10,000 accounts, one worker", sorted(rates)[1], "events/s", 8_000, note=note)]


def prepare(engine: Engine, now: datetime, *, accounts: int) -> list[str]:
    """Twenty campaigns, and accounts with a contact each, all of them in the first two. Returns the events that start the others."""
    written = folder.plain(20)
    keys = folder.put_in_force(engine, now, written)
    customers.load(engine, now, accounts)
    customers.enroll(engine, now, keys[:2])
    customers.tidy(engine)
    return folder.starts(written)


def post(
    engine: Engine, now: datetime, number: int, starts: Sequence[str], *, accounts: int, seed: int, mailing: float = 0.02, apart: int = 1
) -> None:
    """Puts `number` events of the mix before `advance`. `mailing` is the share that enrolls and mails, by one of the events `starts`.
    They speak of `accounts` accounts, of every one that `apart` comes to."""
    dice = random.Random(seed)
    items = []
    for index in range(number):
        who, draw = dice.randrange(accounts) * apart, dice.random()
        if draw < 0.92 - mailing:
            name = dice.choice(("logged_in", "report_viewed", "feature_used", "page_opened"))
        elif draw < 1 - mailing:
            name = f"reached_{dice.randrange(10)}"
        else:
            name = dice.choice(starts)
        items.append(Item(f"{seed}-{index}", "track", name, f"a{who}", f"u{who}", {"plan": "pro", "seats": index % 50}, now))
    with engine.begin() as conn:
        ident = conn.execute(text("select id from source where name = 'bench'")).scalar_one()
        for start in range(0, number, 1000):
            accept(conn, ident, items[start : start + 1000], now, customers.PARTITIONS)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("analyze event, event_pending"))


def drain(engine: Engine, bells: Bells, now: datetime) -> int:
    return sum(run_partition(engine, bells, partition, lambda: now) for partition in range(customers.PARTITIONS))


ROWS = {"B": rate}
