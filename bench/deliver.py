"""Rows E and E2: sending personalised, tracked mail against a bare threaded smtplib loop that sends the same bytes to the same relay; in
E2 every mail of ours is signed on the way with DKIM (RSA, 2,048 bits), and the loop sends the signed bytes as they are.

Ours: one `flow.deliver.run` over messages that are due in the database: claims, facts, limits shared over Redis, all gates, rendering with
tracked links, 32 connections, `in_dot` before every final dot, results with their delivery events and the events that campaigns wait for.
One contact per account, one active enrollment each, a shipped campaign's own template.

Reference: 16 threads with a persistent `smtplib.SMTP` each call `sendmail` with the finished bytes. No database, no rendering, no state.

The relay is a process of its own that accepts everything. Both in turn, each round on new messages; the medians are compared.
"""

from __future__ import annotations

import smtplib
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median
from threading import Thread
from time import perf_counter
from uuid import uuid4

import psutil
from sqlalchemy import Engine, text

from app import db
from app.config import CODE, Settings
from app.db import insert_rows
from app.flow import publish
from app.flow.deliver import run
from app.flow.dkim import activate_key, make_key
from app.models import account, contact, enrollment, membership, message
from app.providers import Letter
from app.providers.smtp import Smtp, SmtpConnection
from app.queue import Bells
from app.rules.facts import hash_id, partition_of
from bench.ground import databases
from bench.table import Line

MESSAGES = 2000  # a round and side
ROUNDS = 3
CONNECTIONS = 32
PARTITIONS = 64
RATE = 100_000.0  # messages per second: beyond reach, so that limits are asked for and slow nobody


def sent(messages: int = MESSAGES, rounds: int = ROUNDS, *, sign: bool = False) -> list[Line]:
    """Messages per second from due to accepted and settled."""
    with databases() as settings, sink() as port:
        engine = db.connect(settings.database_url)
        people = _people(engine, messages)
        if sign:
            _sign(engine, settings)
        ours, reference, grown = [], [], 0.0
        for number in range(rounds + 1):
            _make_due(engine, people, number)
            relay = Recording(f"smtp://127.0.0.1:{port}", connections=CONNECTIONS, rate=RATE)
            before, began = _memory(), perf_counter()
            taken = run(engine, settings, uuid4(), lambda: datetime.now(UTC), Bells(None), transport=relay)
            took = perf_counter() - began
            if taken != messages:
                raise RuntimeError(f"{taken} of {messages} messages were sent")
            if any(letter.data.startswith(b"DKIM-Signature:") is not sign for letter in relay.remembered):
                raise RuntimeError("not every letter was signed" if sign else "letters were signed")
            kept = sum(len(letter.data) for letter in relay.remembered) / 1e6
            grown = max(grown, _memory() - before - kept) if number else 0.0
            bare = _bare(port, relay.remembered)
            if number:  # the first round warms up
                ours.append(taken / took)
                reference.append(bare)
        size = len(relay.remembered[0].data) / 1000
        engine.dispose()
        accepted = _accepted(port)
        if accepted != 2 * messages * (rounds + 1):
            raise RuntimeError(f"the relay accepted {accepted} messages")
    note = (
        f"{rounds} rounds of {messages:,} messages of {size:.0f} kB in turn; ours {_spread(ours)}, reference {_spread(reference)} "
        f"messages/s; memory grew by {grown:.0f} MB in a round"
    )
    row, what, target = ("E2", "the same, each signed with DKIM", 0.25) if sign else ("E", "personalised, tracked mail sent", 0.7)
    return [Line(row, what, median(ours), "messages/s", target, median(reference), note=note)]


def signed(messages: int = MESSAGES, rounds: int = ROUNDS) -> list[Line]:
    """The same with a signature for each."""
    return sent(messages, rounds, sign=True)


ROWS = {"E": sent, "E2": signed}


@contextmanager
def sink() -> Iterator[int]:
    """The relay; gives its port."""
    process = subprocess.Popen([sys.executable, "-m", "bench.sink"], cwd=CODE, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


class Recording(Smtp):
    """Our client, which remembers the letters it has sent so that the reference sends the same bytes."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.remembered: list[Letter] = []

    async def open(self) -> SmtpConnection:
        connection = await super().open()
        begin, remembered = connection.begin, self.remembered

        def begin_and_remember(letter: Letter):
            remembered.append(letter)
            return begin(letter)

        connection.begin = begin_and_remember
        return connection


def _bare(port: int, letters: Sequence[Letter]) -> float:
    """The reference program; messages per second."""
    left = deque(letters)
    problems: list[Exception] = []

    def loop(connection: smtplib.SMTP) -> None:
        try:
            while True:
                letter = left.popleft()
                connection.sendmail(letter.sender, letter.recipient, letter.data)
        except IndexError:
            connection.quit()
        except Exception as error:
            problems.append(error)

    began = perf_counter()
    threads = [Thread(target=loop, args=(smtplib.SMTP("127.0.0.1", port),)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return len(letters) / (perf_counter() - began)


def _sign(engine: Engine, settings: Settings) -> None:
    now = datetime.now(UTC)
    with engine.begin() as conn:
        domain = publish.book(conn).lifecycle.senders["default"].email.rpartition("@")[2]
        made = make_key(conn, settings, domain, now)
        activate_key(conn, settings, domain, made["selector"])


def _people(engine: Engine, messages: int) -> list[dict]:
    """Accounts with a contact each inside the campaign; rows that messages can be made of."""
    now = datetime.now(UTC)
    with engine.begin() as conn:
        publish.publish(conn, CODE / "campaigns", now)
        book = publish.book(conn)
        version, node = next(
            (version, node) for version in book.versions.values() for node in version.nodes.values() if node.kind == "email"
        )
        names = [f"account-{number}" for number in range(messages)]
        accounts = insert_rows(
            conn,
            account,
            [
                {
                    "external_id": name,
                    "partition": partition_of(name, PARTITIONS),
                    "name": f"Acorn {number} & Sons",
                    "touch": "smb",
                    "stage": version.campaign.stage,
                    "stage_entered_at": now,
                    "created_at": now,
                    "traits": {"plan": "pro", "industry": "bakery"},
                }
                for number, name in enumerate(names)
            ],
            returning=["id", "external_id", "partition"],
        )
        contacts = insert_rows(
            conn,
            contact,
            [
                {
                    "external_id": f"contact-{row.external_id}",
                    "address": f"ada@{row.external_id}.test",
                    "person": f"ada@{row.external_id}.test",
                    "first_name": "Ada",
                    "last_name": f"Łukasiewicz {row.id}",
                    "created_at": now,
                }
                for row in accounts
            ],
            returning=["id", "external_id"],
        )
        ids = {row.external_id: row.id for row in contacts}
        insert_rows(
            conn,
            membership,
            [{"account_id": a.id, "contact_id": ids[f"contact-{a.external_id}"], "roles": ["admin"], "joined_at": now} for a in accounts],
        )
        standing = book.standings[version.key]
        common = {"campaign_id": standing.id, "version_id": version.id}
        enrollments = [
            {
                **common,
                "id": hash_id("enrollment", row.id),
                "account_id": row.id,
                "partition": row.partition,
                "state": "active",
                "step_id": node.id,
                "entry": {"name": version.trigger_event, "properties": {"plan": "pro"}, "occurred_at": now.isoformat()},
                "entered_at": now,
            }
            for row in accounts
        ]
        insert_rows(conn, enrollment, enrollments)
        return [
            {
                **common,
                "enrollment_id": hash_id("enrollment", row.id),
                "step_id": node.id,
                "account_id": row.id,
                "contact_id": ids[f"contact-{row.external_id}"],
                "partition": row.partition,
                "kind": "email",
                "topic": version.topic_of(node),
                "priority": 50,
                "state": "due",
            }
            for row in accounts
        ]


def _make_due(engine: Engine, people: Sequence[dict], number: int) -> None:
    now = datetime.now(UTC)
    times = {"occurrence": number + 1, "created_at": now, "due_at": now, "expires_at": now + timedelta(days=3)}
    with engine.begin() as conn:
        insert_rows(conn, message, [{**row, **times, "id": uuid4()} for row in people])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("vacuum analyze message"))
        conn.execute(text("checkpoint"))


def _accepted(port: int) -> int:
    with smtplib.SMTP("127.0.0.1", port) as connection:
        return int(connection.docmd("XCOUNT")[1].split()[0])


def _memory() -> float:
    return psutil.Process().memory_info().rss / 1e6


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"
