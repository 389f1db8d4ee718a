"""Row A: events accepted over HTTP, against a bare multi-row insert of the same rows.

Ours: client processes post batches of 100 events of the mix of DESIGN.md section 13 over keep-alive connections to gunicorn with two
workers, as `nurture up` starts it, Redis running; every batch is parsed, checked, deduplicated, stored with its keys and its place in
the queue of `advance`, committed to disk and answered. The clients share the two cores with the service and PostgreSQL.

Reference: one psycopg connection inserts rows of the same content, prepared beforehand down to the JSON text of the properties, by
one `insert … values` of 100 rows and a commit each, into a table like `event` (its columns and indexes) with a unique key of source
and message id. Neither HTTP nor JSON to parse, no checks, no keys that outlive the events, no queue.

Both on the same durable server, in turn, each round on new events after a checkpoint; the medians of the rounds are compared.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from statistics import median
from threading import Thread
from time import perf_counter
from uuid import UUID

import psycopg

from app import db
from app.flow.access import create_key
from bench.ground import databases, web
from bench.table import Line

BATCH = 100
BATCHES = 160  # a round and side
ROUNDS = 7
CLIENTS, CONNECTIONS = 2, 4  # processes, connections of each
ACCOUNTS, CONTACTS = 10_000, 5  # contacts of each account


def accepted() -> list[Line]:
    """Events accepted over HTTP in batches of 100, committed, two web workers."""
    dice = random.Random(7)
    context = multiprocessing.get_context("fork")
    ours, reference = [], []
    with databases() as settings:
        engine = db.connect(settings.database_url)
        with engine.begin() as conn:
            key = create_key(conn, "bench", "write", datetime.now(UTC))
        engine.dispose()
        dsn = settings.database_url.replace("+psycopg", "")
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as conn, web(settings) as port:
            conn.execute("create table reference_event (like event including all)")
            conn.execute("create unique index on reference_event (source_id, message_id)")
            for number in range(ROUNDS + 1):
                batches = [_events(dice) for _ in range(BATCHES if number else CLIENTS * CONNECTIONS * 4)]
                conn.execute("checkpoint")
                posted = _post(context, port, key, batches)
                conn.execute("checkpoint")
                inserted = _insert(conn, batches)
                if number:  # the first round warms up
                    ours.append(posted)
                    reference.append(inserted)
            stored, compared = (conn.execute(f"select count(*) from {table}").fetchone()[0] for table in ("event", "reference_event"))
            if stored != compared:
                raise RuntimeError(f"{stored} events were stored over HTTP, {compared} by the reference")
    note = f"{ROUNDS} rounds of {BATCH * BATCHES:,} events in turn; ours {_spread(ours)}, reference {_spread(reference)} events/s"
    return [Line("A", "events accepted over HTTP", median(ours), "events/s", 0.7, median(reference), note=note)]


ROWS = {"A": accepted}


def _events(dice: random.Random) -> list[dict]:
    """A batch as Segment's Python client posts it: 90 % usage, 8 % milestones, 2 % that enroll."""
    now = datetime.now(UTC)
    return [_event(dice, now - timedelta(seconds=dice.random())) for _ in range(BATCH)]


def _event(dice: random.Random, at: datetime) -> dict:
    account, lot = dice.randrange(ACCOUNTS), dice.random()
    name = "report_viewed" if lot < 0.9 else "setup_completed" if lot < 0.98 else "workspace_created"
    return {
        "messageId": str(UUID(int=dice.getrandbits(128))),
        "type": "track",
        "event": name,
        "userId": f"user-{account}-{dice.randrange(CONTACTS)}",
        "timestamp": at.isoformat(timespec="milliseconds"),
        "context": {"groupId": f"account-{account}", "library": {"name": "analytics-python", "version": "2.4.0"}},
        "integrations": {},
        "properties": {"plan": "pro", "feature": f"feature-{dice.randrange(20)}", "seconds": dice.randrange(900), "shared": lot < 0.5},
    }


def _post(context: multiprocessing.context.BaseContext, port: int, key: str, batches: Sequence[Sequence[dict]]) -> float:
    """Posts the batches from CLIENTS processes; events per second from the common start to the last answer."""
    headers = {"Authorization": "Basic " + b64encode(f"{key}:".encode()).decode(), "Content-Type": "application/json"}
    bodies = [json.dumps({"batch": batch, "sentAt": datetime.now(UTC).isoformat()}).encode() for batch in batches]
    start, ended = context.Barrier(CLIENTS + 1), context.Queue()
    clients = [context.Process(target=_client, args=(port, headers, bodies[n::CLIENTS], start, ended)) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    start.wait(30)
    began = perf_counter()
    problems = [problem for _ in clients for problem in ended.get(timeout=60)]
    took = perf_counter() - began
    for client in clients:
        client.join()
    if problems:
        raise RuntimeError(f"the web service answered {problems[0]}")
    return len(batches) * BATCH / took


def _client(port: int, headers: dict[str, str], bodies: Sequence[bytes], start, ended) -> None:
    connections = [HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(CONNECTIONS)]
    problems: list[str] = []

    def run(connection: HTTPConnection, mine: Sequence[bytes]) -> None:
        for body in mine:
            connection.request("POST", "/v1/batch", body, headers)
            answer = connection.getresponse()
            said = answer.read()
            if said != b'{"success":true}':
                problems.append(f"{answer.status} {said[:200]!r}")

    for connection in connections:
        connection.connect()
    threads = [Thread(target=run, args=(connection, bodies[n::CONNECTIONS])) for n, connection in enumerate(connections)]
    start.wait(30)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended.put(problems)
    for connection in connections:
        connection.close()


def _insert(conn: psycopg.Connection, batches: Sequence[Sequence[dict]]) -> float:
    """The reference program; events per second."""
    now = datetime.now(UTC)
    prepared = [[value for event in batch for value in _row(event, now)] for batch in batches]
    columns = "source_id, message_id, kind, name, account_key, contact_key, properties, occurred_at, received_at, mark, depth"
    statement = f"insert into reference_event ({columns}) values " + ", ".join(["(" + ", ".join(["%s"] * 11) + ")"] * BATCH)
    began = perf_counter()
    for values in prepared:
        conn.execute(statement, values)  # in autocommit mode: one statement, one commit
    return len(batches) * BATCH / (perf_counter() - began)


def _row(event: dict, now: datetime) -> tuple:
    properties, occurred_at = json.dumps(event["properties"]), datetime.fromisoformat(event["timestamp"])
    account, contact = event["context"]["groupId"], event["userId"]
    return 1, event["messageId"], "track", event["event"], account, contact, properties, occurred_at, now, None, 0


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"
