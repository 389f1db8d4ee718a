"""Bells are coalesced, never raise and never stall; the tick finds whatever is pending or due, and rings for nothing else."""

from __future__ import annotations

import signal
import threading
import time
from datetime import timedelta
from uuid import uuid4

import pytest
import redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from sqlalchemy import select, text

from app import embedded, jobs, work
from app.config import CODE
from app.db import insert_rows
from app.flow.publish import publish
from app.models import account, campaign, campaign_version, contact, enrollment, event_pending, hit, message, parked, worker
from app.queue import Bells, Due, find_due, tick
from app.rules.facts import partition_of
from tests.conftest import NOW

LATER, EARLIER = NOW + timedelta(seconds=1), NOW - timedelta(seconds=1)
NOTHING = Due((), False, False, False, False)


@pytest.fixture
def client(redis_server):
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
        yield client


@pytest.fixture
def bells(redis_server, client):
    return Bells(redis_server)


def waiting(client, name: str) -> list[tuple]:
    jobs = [Job.fetch(job_id, connection=client, serializer=JSONSerializer) for job_id in Queue(name, connection=client).job_ids]
    return [(job.func_name, *job.args) for job in jobs]


def test_each_bell_is_a_job_that_rq_can_read(bells, client):
    bells.advance({7, 3})
    bells.deliver()
    bells.assess()
    bells.settle()
    bells.hooks()
    bells.recover()
    bells.tidy()
    assert waiting(client, "advance") == [("app.jobs.advance", 3), ("app.jobs.advance", 7)]
    assert waiting(client, "deliver") == [("app.jobs.deliver",)]
    assert waiting(client, "chores") == [
        ("app.jobs.assess",),
        ("app.jobs.settle",),
        ("app.jobs.hooks",),
        ("app.jobs.recover",),
        ("app.jobs.tidy",),
    ]
    assert {queue.name for queue in Queue.all(connection=client)} == {"advance", "deliver", "chores"}
    job = Job.fetch(Queue("deliver", connection=client).job_ids[0], connection=client, serializer=JSONSerializer)
    assert (job.timeout, job.result_ttl, job.failure_ttl, job.retries_left) == (120, 0, 60, None)


def test_a_bell_is_rung_again_only_when_its_job_was_taken(bells, client):
    for _ in range(3):
        bells.advance([1, 2])
    assert waiting(client, "advance") == [("app.jobs.advance", 1), ("app.jobs.advance", 2)]
    client.lpop("rq:queue:advance")  # taken, and perhaps lost with the worker that took it
    bells.advance([1, 2])
    assert waiting(client, "advance") == [("app.jobs.advance", 2), ("app.jobs.advance", 1)]


def test_a_flushed_redis_is_rung_again(bells, client):
    bells.advance([1])
    client.flushall()
    client.script_flush()
    bells.advance([1])
    assert waiting(client, "advance") == [("app.jobs.advance", 1)]


def test_bells_may_be_shared_by_threads(bells, client):
    threads = [threading.Thread(target=lambda: [bells.advance(range(16)) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {partition for _, partition in waiting(client, "advance")} == set(range(16))


def test_bells_without_redis_ring_nothing():
    Bells(None).advance([1])
    Bells(None).deliver()


def took(ring) -> float:
    began = time.perf_counter()
    ring()
    return time.perf_counter() - began


@pytest.mark.processes
def test_a_redis_that_is_frozen_or_down_neither_raises_nor_stalls(tmp_path):
    server = embedded.Redis(tmp_path)
    url = server.start()
    try:
        known, strange = Bells(url), Bells(url)
        known.advance([1])
        server.process.send_signal(signal.SIGSTOP)
        assert took(lambda: known.advance([2])) < 0.35
        assert took(lambda: strange.advance([2])) < 0.35
        assert took(lambda: [known.deliver() for _ in range(100)]) < 0.05, "one who got no answer is silent for a second"
        server.process.send_signal(signal.SIGCONT)
        time.sleep(1.05)
        known.advance([3])
        with redis.Redis.from_url(url) as client:
            assert ("app.jobs.advance", 3) in waiting(client, "advance")
        server.process.kill()
        server.process.wait()
        assert took(lambda: known.advance([4])) < 0.35
        assert took(lambda: Bells(url).advance([4])) < 0.35
    finally:
        server.stop()


# What the tick finds ---------------------------------------------------------------------------------------------------


@pytest.fixture
def conn(engine):
    with engine.begin() as conn:
        conn.execute(
            text("insert into retention_run (day, started_at, finished_at) values (:day, :at, :at)"), {"day": NOW.date(), "at": NOW}
        )
        yield conn


def place(key: str) -> int:
    return partition_of(key, 64)


def an_event(conn, number: int, account_key: str | None, contact_key: str | None = None) -> None:
    row = {"event_id": number, "partition": place(account_key or contact_key), "account_key": account_key, "contact_key": contact_key}
    insert_rows(conn, event_pending, [row | {"received_at": NOW}])


def an_account(conn, key: str, **columns) -> int:
    row = {"external_id": key, "partition": place(key), "created_at": NOW, **columns}
    return insert_rows(conn, account, [row], returning=["id"])[0].id


def an_enrollment(conn, account_id: int, key: str, mode: str = "live", **columns):
    ident = conn.execute(select(campaign.c.id).where(campaign.c.key == mode)).scalar()
    if ident is None:
        ident = insert_rows(conn, campaign, [{"key": mode, "name": mode, "mode": mode}], returning=["id"])[0].id
        version = {"campaign_id": ident, "number": 1, "hash": "1", "definition": {}, "published_at": NOW}
        insert_rows(conn, campaign_version, [version])
    version_id = conn.execute(select(campaign_version.c.id).where(campaign_version.c.campaign_id == ident)).scalar_one()
    row = {"id": uuid4(), "campaign_id": ident, "version_id": version_id, "account_id": account_id, "partition": place(key)}
    row |= {"state": "active", "entry": {}, "entered_at": NOW, **columns}
    insert_rows(conn, enrollment, [row])
    return row


def a_message(conn, **columns):
    account_id = an_account(conn, "m")
    one = an_enrollment(conn, account_id, "m")
    contact_id = insert_rows(conn, contact, [{"external_id": "c", "created_at": NOW}], returning=["id"])[0].id
    row = {"id": uuid4(), "enrollment_id": one["id"], "campaign_id": one["campaign_id"], "version_id": one["version_id"], "step_id": "s"}
    row |= {"occurrence": 1, "account_id": account_id, "contact_id": contact_id, "partition": 1, "kind": "email", "topic": "product"}
    row |= {"priority": 1, "created_at": NOW, "due_at": NOW, "expires_at": LATER, "state": "due", **columns}
    insert_rows(conn, message, [row])
    return row["id"]


def park(conn, account_key: str | None, contact_key: str | None = None, **columns) -> None:
    row = {"partition": place(account_key or contact_key), "account_key": account_key, "contact_key": contact_key, "occurrence": "event:1"}
    insert_rows(conn, parked, [row | {"error": "e", "traceback": "t", "parked_at": NOW, **columns}])


def test_nothing_is_due_in_an_empty_database(conn):
    assert find_due(conn, NOW) == NOTHING


def test_pending_events_are_found(conn):
    an_event(conn, 1, "a")
    an_event(conn, 2, None, "c")
    assert find_due(conn, NOW).partitions == tuple(sorted({place("a"), place("c")}))


def test_whoever_waits_behind_a_parked_occurrence_rings_for_nothing(conn):
    an_event(conn, 1, "a")
    an_event(conn, 2, None, "c")
    an_enrollment(conn, an_account(conn, "a", due_at=EARLIER), "a", due_at=EARLIER)
    park(conn, "a")
    park(conn, None, "c")
    assert find_due(conn, NOW) == NOTHING
    neighbour = next(key for key in (f"n{i}" for i in range(10_000)) if place(key) == place("a"))
    an_event(conn, 3, neighbour, "c")
    assert find_due(conn, NOW).partitions == (place("a"),)
    conn.execute(text("delete from event_pending where event_id = 3"))
    conn.execute(text("update parked set released_at = now()"))
    assert find_due(conn, NOW).partitions == tuple(sorted({place("a"), place("c")}))


@pytest.mark.parametrize("what", ["account", "enrollment"])
def test_timers_are_found_when_they_are_due(conn, what):
    for key, due in (("a", EARLIER), ("b", LATER)):
        ident = an_account(conn, key, due_at=due if what == "account" else None)
        an_enrollment(conn, ident, key, due_at=due if what == "enrollment" else None)
    assert find_due(conn, NOW).partitions == (place("a"),)


def test_timers_of_a_paused_campaign_and_of_ended_enrollments_are_frozen(conn):
    ident = an_account(conn, "a")
    an_enrollment(conn, ident, "a", mode="paused", due_at=EARLIER)
    an_enrollment(conn, ident, "a", state="finished", due_at=EARLIER)
    assert find_due(conn, NOW) == NOTHING


def test_due_messages_are_found(conn):
    ident = a_message(conn, due_at=LATER)
    assert not find_due(conn, NOW).messages
    assert find_due(conn, LATER).messages
    conn.execute(text("update message set state = 'sent' where id = :id"), {"id": ident})
    assert not find_due(conn, LATER).messages


def test_accounts_to_assess_and_hits_to_settle_are_found(conn):
    an_account(conn, "a", assess_at=NOW)
    row = {"message_id": a_message(conn, due_at=LATER), "kind": "click", "at": NOW, "signals": {}, "score": 0, "verdict": "human"}
    insert_rows(conn, hit, [row | {"settle_at": NOW}])
    assert find_due(conn, NOW) == Due((), False, True, True, False)
    assert find_due(conn, EARLIER) == NOTHING
    conn.execute(text("update hit set settled_at = settle_at"))
    assert find_due(conn, NOW) == Due((), False, True, False, False)


def test_claims_of_the_dead_are_found(conn):
    one = uuid4()
    insert_rows(conn, worker, [{"id": one, "host": "h", "pid": 1, "started_at": NOW, "heartbeat_at": NOW}])
    conn.execute(text("update worker set heartbeat_at = now()"))
    a_message(conn, state="claimed", worker_id=one)
    assert not find_due(conn, NOW).claims
    conn.execute(text("update worker set heartbeat_at = now() - interval '1 minute'"))
    assert find_due(conn, NOW).claims
    conn.execute(text("update worker set heartbeat_at = now(), stopped_at = now()"))
    assert find_due(conn, NOW).claims
    conn.execute(text("update message set state = 'sent'"))
    assert not find_due(conn, NOW).claims


def test_the_tick_rings_what_it_finds(conn, bells, client):
    an_event(conn, 1, "a")
    an_account(conn, "a", assess_at=NOW)
    assert tick(conn, bells, NOW) == Due((place("a"),), False, True, False, False)
    assert waiting(client, "advance") == [("app.jobs.advance", place("a"))]
    assert waiting(client, "chores") == [("app.jobs.assess",)]


def test_the_tick_stays_cheap_with_big_tables(conn):
    """A million rows would say the same: every part of it is answered by an index, none by reading a table."""
    conn.execute(
        text("""
        insert into event_pending (event_id, partition, account_key, received_at)
        select n, n % 64, 'k' || n % 1000, now() from generate_series(1, 20000) n""")
    )
    conn.execute(
        text("""
        insert into account (external_id, partition, created_at, due_at, assess_at)
        select 'k' || n, n % 64, now(), now() + interval '1 day', now() + interval '1 day' from generate_series(1, 20000) n""")
    )
    for table in ("event_pending", "account", "enrollment", "message", "hit", "parked"):
        conn.execute(text(f"analyze {table}"))
    find_due(conn, NOW)
    assert min(took(lambda: find_due(conn, NOW)) for _ in range(5)) < 0.02


# The workers -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(settings, monkeypatch, client):
    for name, value in (("DATABASE_URL", settings.database_url), ("REDIS_URL", settings.redis_url), ("NURTURE_HOME", str(settings.home))):
        monkeypatch.setenv(name, value)
    jobs.workplace.cache_clear()
    here = jobs.workplace()
    with here.engine.begin() as conn:
        publish(conn, CODE / "campaigns", NOW)
    yield here
    here.engine.dispose()
    jobs.workplace.cache_clear()


def test_a_job_runs_and_leaves_nothing_behind(workplace, bells, client):
    bells.assess()
    bells.advance([5])
    stop = threading.Event()
    # RQ limits a job's time by a signal, so the listener has the main thread and somebody else says stop.
    threading.Thread(target=lambda: (_until_empty(client), stop.set())).start()
    work._listen(workplace.settings.redis_url, ["advance", "chores"], _Asked(stop), lambda: None)
    assert [key for key in client.keys("rq:job:*")] == []
    assert client.zcard("rq:wip:chores") == client.zcard("rq:failed:chores") == client.zcard("rq:failed:advance") == 0


def test_a_redis_that_is_flushed_all_the_time_stops_no_worker(workplace, bells, client):
    stop, calm = threading.Event(), threading.Event()

    def flush() -> None:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            bells.assess()
            bells.advance(range(8))
            client.flushall()
        calm.set()
        bells.advance([5])
        _until_taken(client)
        stop.set()

    flusher = threading.Thread(target=flush)
    flusher.start()
    work._listen(workplace.settings.redis_url, ["advance", "chores"], _Asked(stop), lambda: None)
    flusher.join()
    assert calm.is_set() and not client.exists("rq:queue:advance")


class _Asked:
    def __init__(self, event: threading.Event):
        self.event = event

    def __bool__(self) -> bool:
        return self.event.is_set()


def _until_taken(client) -> None:
    _wait(lambda: not client.exists("rq:queue:advance", "rq:queue:chores"))


def _until_empty(client) -> None:
    _wait(lambda: not client.exists("rq:queue:advance", "rq:queue:chores") and not client.keys("rq:job:*"))


def _wait(reached, seconds: float = 20) -> None:
    # In a thread, where a failure would be lost: the test's own assertions see what was not reached.
    deadline = time.monotonic() + seconds
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_without_redis_the_role_looks_for_its_work_itself(workplace):
    def due() -> Due:
        with workplace.engine.connect() as conn:
            return find_due(conn, jobs.clock())

    with workplace.engine.begin() as conn:
        an_account(conn, "x", assess_at=NOW)
    assert due().assessments
    never = _Asked(threading.Event())
    work.look("deliver", never)
    assert due().assessments, "that is not its work"
    work.look("advance", never)
    assert not due().assessments
