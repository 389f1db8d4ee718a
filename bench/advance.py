"""Row B: advancing events, one worker.

B: 20 campaigns, 10,000 accounts with a contact each, two active enrollments with `exit_when` per account; 90 % usage, 8 % milestone
events, 2 % that enroll and mail; ledger on. The events wait in the database; measured is `run_partition` over all partitions by one
process on one connection, until nothing is pending.
"""

from __future__ import annotations

import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

from sqlalchemy import Engine, text

from app import db
from app.db import insert_rows
from app.flow.advance import run_partition
from app.flow.ingest import accept
from app.flow.items import Item
from app.flow.publish import publish
from app.models import account, contact, enrollment, membership, source
from app.queue import Bells
from app.rules.facts import hash_id, partition_of
from bench.ground import databases
from bench.table import Line

PARTITIONS = 64
LIFECYCLE = """
brand: {name: Sample, postal_address: "1 Sample Street"}
senders: {default: {name: Sample, email: hello@example.com}}
topics: {product: {name: Product}}
roles: {admin: Admin}
stages: [{name: onboarding}, {name: adoption}]
milestones: {%s}
usage: {logins: {event: logged_in}, reports: {event: report_viewed}, features: {event: feature_used}}
"""
CAMPAIGN = """
name: Campaign {number}
stage: onboarding
topic: product
trigger: {{event: start_{number}}}
audience: account.touch == "smb"
recipients: {{roles: [admin]}}
exit_when: account.traits is missing or stage.name == "renewal"
steps:
  - {{id: mail, email: mail.mjml, subject: Hello}}
  - {{id: pause, wait: 400d}}
"""
MAIL = "<mj-section><mj-column><mj-text>Hello {{ contact.first_name | default('there') }}</mj-text></mj-column></mj-section>"


def rate() -> list[Line]:
    """Events per second, the median of three rounds."""
    now = datetime.now(UTC)
    with databases() as settings:
        engine = db.connect(settings.database_url, pool_size=1)
        prepare(engine, now, campaigns=20, accounts=10_000)
        bells = Bells(None)
        post(engine, now, 20_000, accounts=10_000, seed=1)
        drain(engine, bells, now)
        rates = []
        for seed in (2, 3, 4):
            post(engine, now, 30_000, accounts=10_000, seed=seed)
            engine.dispose()
            started = perf_counter()
            moved = drain(engine, bells, now)
            rates.append(moved / (perf_counter() - started))
        engine.dispose()
    note = f"rounds {', '.join(f'{value:,.0f}' for value in rates)}"
    return [Line("B", "advance, 20 campaigns, 10,000 accounts, one worker", sorted(rates)[1], "events/s", 8_000, note=note)]


def prepare(engine: Engine, now: datetime, *, campaigns: int, accounts: int) -> None:
    """Campaigns published, accounts with a contact each, and two active enrollments for every account."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        milestones = ", ".join(f"m{number}: {{event: reached_{number}}}" for number in range(10))
        (root / "lifecycle.yaml").write_text(LIFECYCLE % milestones)
        (root / "brand").mkdir()
        for block in (Path(__file__).parent.parent / "campaigns" / "brand").glob("*.mjml"):
            (root / "brand" / block.name).write_text(block.read_text())
        for number in range(campaigns):
            place = root / "bench" / f"c{number}"
            place.mkdir(parents=True)
            condition = 'stage.name == "adoption" or account.revenue > 1000000'
            written = CAMPAIGN.format(number=number).replace('account.traits is missing or stage.name == "renewal"', condition)
            (place / "campaign.yaml").write_text(written)
            (place / "mail.mjml").write_text(MAIL)
        with engine.begin() as conn:
            publish(conn, root, now)
    with engine.begin() as conn:
        rows = [
            {"external_id": f"a{n}", "partition": partition_of(f"a{n}", PARTITIONS), "touch": "smb", "stage": "onboarding",
             "stage_entered_at": now, "created_at": now, "assess_at": now}
            for n in range(accounts)
        ]  # fmt: skip
        accounts_made = dict((key, ident) for ident, key in insert_rows(conn, account, rows, returning=("id", "external_id")))
        people = [
            {
                "external_id": f"u{n}",
                "address": f"u{n}@example.com",
                "person": f"u{n}@example.com",
                "first_name": "Sample",
                "created_at": now,
            }
            for n in range(accounts)
        ]
        contacts = dict((key, ident) for ident, key in insert_rows(conn, contact, people, returning=("id", "external_id")))
        members = [
            {"account_id": accounts_made[f"a{n}"], "contact_id": contacts[f"u{n}"], "roles": ["admin"], "joined_at": now}
            for n in range(accounts)
        ]
        insert_rows(conn, membership, members)
        places = dict(conn.execute(text("select key, id from campaign")).all())
        versions = dict(conn.execute(text("select c.key, c.version_id from campaign c")).all())
        entry = {
            "name": "seed",
            "properties": {},
            "occurred_at": now.isoformat(),
            "received_at": now.isoformat(),
            "message_id": "seed",
            "contact": None,
        }
        enrolled = [
            {"id": hash_id("bench", n, key), "campaign_id": places[key], "version_id": versions[key], "account_id": accounts_made[f"a{n}"],
             "partition": partition_of(f"a{n}", PARTITIONS), "state": "active", "step_id": "pause", "entry": entry, "entered_at": now,
             "due_at": now + timedelta(days=400)}
            for n in range(accounts)
            for key in ("bench/c0", "bench/c1")
        ]  # fmt: skip
        insert_rows(conn, enrollment, enrolled)
        conn.execute(source.insert().values(name="bench"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("vacuum analyze"))


def post(engine: Engine, now: datetime, number: int, *, accounts: int, seed: int, campaigns: int = 20, mailing: float = 0.02) -> None:
    """Puts `number` events of the mix before `advance`; `mailing` is the share that enrolls and mails."""
    dice = random.Random(seed)
    items = []
    for index in range(number):
        who, draw = dice.randrange(accounts), dice.random()
        if draw < 0.92 - mailing:
            name = dice.choice(("logged_in", "report_viewed", "feature_used", "page_opened"))
        elif draw < 1 - mailing:
            name = f"reached_{dice.randrange(10)}"
        else:
            name = f"start_{dice.randrange(2, campaigns)}"
        items.append(Item(f"{seed}-{index}", "track", name, f"a{who}", f"u{who}", {"plan": "pro", "seats": index % 50}, now))
    with engine.begin() as conn:
        ident = conn.execute(text("select id from source where name = 'bench'")).scalar_one()
        for start in range(0, number, 1000):
            accept(conn, ident, items[start : start + 1000], now, PARTITIONS)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("analyze event, event_pending"))


def drain(engine: Engine, bells: Bells, now: datetime) -> int:
    return sum(run_partition(engine, bells, partition, lambda: now) for partition in range(PARTITIONS))


ROWS = {"B": rate}
