"""Workers are killed and stopped at the worst moments, and so is the database: nothing is lost, nothing is accepted twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer
from sqlalchemy import func, select, text

from app import db, embedded, models
from app.config import CODE, environment, load
from app.flow.deliver import Limits, recover, run
from app.migrate import migrate
from app.queue import ADVANCE, Bells
from tests.cast import Cast
from tests.conftest import dsn
from tests.faulty_smtp import FaultySmtp

pytestmark = pytest.mark.processes

DEAD_AFTER = 1.0
PROGRAM = """
import json, sys, time
from datetime import UTC, datetime
from uuid import UUID
from app import db
from app.config import load
from app.flow.deliver import Limits, run
from app.queue import ADVANCE, Bells

told = json.loads(sys.argv[1])
settings = load({}, home=told["home"], database_url=told["database"], smtp_url=told["smtp"])
engine = db.connect(settings.database_url)
limits = Limits(heartbeat=0.1, connections=told["connections"], poll=0.05, gather=0.01, back_off=0.2, patience=(0.1,))
print("here", flush=True)
while True:
    try:
        run(engine, settings, UUID(told["worker"]), lambda: datetime.now(UTC), Bells(None), limits=limits)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    time.sleep(0.02)
"""


class Worker:
    """A worker process that delivers whenever something is due, until it is killed."""

    def __init__(self, database: str, smtp: str, home: Path, connections: int = 2):
        self.id = uuid4()
        told = {"database": database, "smtp": smtp, "home": str(home), "worker": str(self.id), "connections": connections}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(told)], cwd=CODE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        assert self.process.stdout.readline() == "here\n", self.said()

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()
        self.errors.close()


@pytest.fixture
def workers(tmp_path):
    """Starts workers; ends those that are left."""
    started = []

    def start(database, smtp, **options):
        started.append(Worker(database, smtp, tmp_path / "home", **options))
        return started[-1]

    yield start
    for worker in started:
        worker.end()


@pytest.fixture
def hold(tmp_path):
    path = tmp_path / "hold"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def test_killed_between_the_claim_and_the_wire(engine, database, workers):
    """The worker has claimed and reads facts when it dies: the message is due again, and sent once."""
    due(engine, 1)
    with FaultySmtp() as server:
        with engine.connect() as blocker, blocker.begin():
            blocker.execute(text("lock table consent in access exclusive mode"))
            worker = workers(database, server.url)
            eventually(lambda: states(engine) == {"claimed": 1})
            worker.end()
        assert "mail" not in server.reached
        come_to_an_end(engine, database, server, workers)
        assert list(server.accepted.values()) == [1]
    assert states(engine) == {"sent": 1}


def test_killed_in_the_body(engine, database, workers, hold):
    """The relay has read the body and the worker dies before `in_dot` is committed: no dot, due again, sent once."""
    due(engine, 1)
    with FaultySmtp({"data": [["hold", str(hold)]]}) as server:
        worker = workers(database, server.url)
        eventually(lambda: "data" in server.reached)
        with engine.connect() as blocker, blocker.begin():
            blocker.execute(text("lock table suppression in access exclusive mode"))
            hold.unlink()
            eventually(lambda: "body" in server.reached and waiting_backends(engine))
            worker.end()
            # Its statement would go on without it, and the message be unknown; this test wants the other case.
            with engine.begin() as conn:
                conn.execute(
                    text("select pg_terminate_backend(pid) from unnest(cast(:pids as int[])) as pid"), {"pids": waiting_backends(engine)}
                )
            eventually(lambda: not waiting_backends(engine))
        assert states(engine) == {"claimed": 1} and server.dots == 0
        come_to_an_end(engine, database, server, workers)
        assert list(server.accepted.values()) == [1]
    assert states(engine) == {"sent": 1}


def test_killed_before_the_body(engine, database, workers, hold):
    """The worker dies while it waits for 354."""
    due(engine, 3)
    with FaultySmtp({"data": [["hold", str(hold)]] * 2}) as server:
        worker = workers(database, server.url)
        eventually(lambda: server.reached.count("data") == 2)
        worker.end()
        assert states(engine) == {"claimed": 3}
        hold.unlink()
        come_to_an_end(engine, database, server, workers)
        assert sorted(server.accepted.values()) == [1, 1, 1]
    assert states(engine) == {"sent": 3}


def test_killed_after_the_dot(engine, database, workers, hold):
    """The relay has the message, the worker dies before its answer: unknown, and never sent again."""
    due(engine, 1)
    with FaultySmtp({"dot": [["hold", str(hold)]]}) as server:
        worker = workers(database, server.url)
        eventually(lambda: "dot" in server.reached)
        worker.end()
        assert states(engine) == {"in_dot": 1}
        hold.unlink()
        come_to_an_end(engine, database, server, workers)
        assert list(server.accepted.values()) == [1]
    assert states(engine) == {"unknown": 1}
    with engine.connect() as conn:
        assert conn.execute(select(models.decision.c.reason)).scalars().all() == ["worker_died"]
        assert conn.execute(select(models.delivery_event.c.kind)).scalars().all() == ["unknown"]
    assert settled(engine) == ["unknown"]


def test_stopped_before_the_dot_and_woken_after_another_took_over(engine, database, workers, hold):
    """Fenced off: the sleeper's `in_dot` finds its token gone, and its dot is never written."""
    due(engine, 1)
    with FaultySmtp({"data": [["hold", str(hold)]]}) as server:
        sleeper = workers(database, server.url, connections=1)
        eventually(lambda: "data" in server.reached)
        sleeper.signal(signal.SIGSTOP)
        eventually(lambda: dead(engine, sleeper))
        found = recover(engine, clock, Bells(None), dead_after=DEAD_AFTER)
        assert (found.due, found.unknown) == (1, 0)
        workers(database, server.url)
        eventually(lambda: states(engine) == {"sent": 1})
        hold.unlink()
        sleeper.signal(signal.SIGCONT)
        # The sleeper hands over its body, asks for its dot, is refused and hangs up.
        eventually(lambda: server.reached.count("body") == 2)
        eventually(lambda: alive(engine, sleeper))
        time.sleep(0.3)  # a dot would come at once
        assert list(server.accepted.values()) == [1] and server.dots == 1
    assert states(engine) == {"sent": 1}
    assert settled(engine) == ["sent"]


def test_stopped_after_the_dot_and_woken_after_recovery_it_tells_the_truth(engine, database, workers, hold):
    due(engine, 1)
    with FaultySmtp({"dot": [["hold", str(hold)]]}) as server:
        sleeper = workers(database, server.url, connections=1)
        eventually(lambda: "dot" in server.reached)
        sleeper.signal(signal.SIGSTOP)
        eventually(lambda: dead(engine, sleeper))
        found = recover(engine, clock, Bells(None), dead_after=DEAD_AFTER)
        assert (found.due, found.unknown) == (0, 1)
        assert states(engine) == {"unknown": 1}
        hold.unlink()
        sleeper.signal(signal.SIGCONT)
        eventually(lambda: states(engine) == {"sent": 1})
        assert list(server.accepted.values()) == [1]
    assert settled(engine) == ["unknown"]
    with engine.connect() as conn:
        assert conn.execute(select(models.delivery_event.c.kind).order_by("id")).scalars().all() == ["unknown", "sent"]


def test_a_living_worker_keeps_its_claims_however_long_its_dot_takes(engine, database, workers, hold):
    due(engine, 1)
    with FaultySmtp({"dot": [["hold", str(hold)]]}) as server:
        workers(database, server.url)
        eventually(lambda: "dot" in server.reached)
        until = time.monotonic() + 3 * DEAD_AFTER
        while time.monotonic() < until:
            found = recover(engine, clock, Bells(None), dead_after=DEAD_AFTER)
            assert (found.due, found.unknown) == (0, 0)
            time.sleep(0.1)
        hold.unlink()
        eventually(lambda: states(engine) == {"sent": 1})


def test_workers_killed_at_random_again_and_again(engine, database, workers):
    """Whenever they die: every message is settled in the end, each accepted once at most, and what is `sent` was accepted."""
    dice = random.Random(20260302)
    due(engine, 150)
    with FaultySmtp({"data": [["hang", 0.02]] * 100, "dot": [["hang", 0.05]] * 60}) as server:
        for _ in range(6):
            pair = [workers(database, server.url, connections=4) for _ in range(2)]
            time.sleep(dice.uniform(0.05, 0.6))
            for worker in pair:
                worker.end()
            recover(engine, clock, Bells(None), dead_after=0.0)
        come_to_an_end(engine, database, server, workers)
        check(engine, server, 150)


def test_postgres_restarted_and_a_backend_killed_in_the_middle(tmp_path_factory, workers):
    """The worker goes on when its database is back: nothing stuck, nothing accepted twice."""
    home = Path(tempfile.mkdtemp(prefix="nurture-test-", dir="/tmp"))
    os.chmod(home, 0o755)
    postgres = embedded.Postgres(home)
    try:
        postgres.start()
        database = postgres.ensure_database("nurture")
        engine = db.connect(database)
        migrate(engine, datetime.now(UTC))
        due(engine, 200)
        with FaultySmtp({"data": [["hang", 0.02]] * 200}) as server:
            worker = workers(database, server.url, connections=4)
            eventually(lambda: server.dots > 20)
            with engine.begin() as conn:
                conn.execute(
                    text("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname = 'nurture'")
                )
            before = server.dots
            eventually(lambda: server.dots > before + 20)
            postgres.process.send_signal(signal.SIGQUIT)  # as a crash: no checkpoint, no farewell
            postgres.process.wait(10)
            postgres.launch()
            eventually(lambda: answers(database))
            engine.dispose()
            eventually(lambda: not {"due", "claimed", "in_dot"} & states(engine).keys(), 60)
            assert worker.process.poll() is None, worker.said()
            worker.end()
            check(engine, server, 200)
        engine.dispose()
    finally:
        postgres.stop()


def test_the_dead_are_recovered_from_however_much_there_is_to_advance(engine, settings):
    """Recovery is a chore of the advancing worker: it may not wait until nothing else is to be done."""
    due(engine, 3)
    with engine.begin() as conn:
        conn.execute(text("update message set state = 'claimed', claim = gen_random_uuid(), worker_id = gen_random_uuid()"))
    with redis.Redis.from_url(settings.redis_url) as client:
        client.flushdb()
        queue = Queue(ADVANCE, connection=client, serializer=JSONSerializer)
        many = [Queue.prepare_data("app.jobs.advance", (number % 64,), result_ttl=0) for number in range(20_000)]
        queue.enqueue_many(many)
        Bells(settings.redis_url).recover()
        process = subprocess.Popen([sys.executable, "worker.py", "advance"], cwd=CODE, env=environment(settings), stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: states(engine) == {"due": 3})
            assert len(queue) > 1000, "there was nothing to wait for"
        finally:
            process.kill()
            process.wait()
            client.flushdb()


def test_a_result_that_a_crash_takes_with_it_is_written_again(tmp_path, caplog):
    """The result was committed and not on disk yet: the worker lives, knows it, and says it once more."""
    home = Path(tempfile.mkdtemp(prefix="nurture-test-", dir="/tmp"))
    os.chmod(home, 0o755)
    # Nothing reaches the disk by itself while this test looks at it.
    postgres = embedded.Postgres(home, {"wal_writer_delay": "10s", "autovacuum": "off"})
    stopping = threading.Event()
    try:
        postgres.start()
        database = postgres.ensure_database("nurture")
        engine = db.connect(database)
        migrate(engine, datetime.now(UTC))
        due(engine, 5)
        with FaultySmtp() as server:
            settings = load({}, home=tmp_path / "home", database_url=database, smtp_url=server.url)
            limits = Limits(heartbeat=600, idle=600, gather=0.0)
            options = {"limits": limits, "stopping": stopping.is_set, "rung": threading.Event()}
            theirs = db.connect(database)
            worker = threading.Thread(target=run, args=(theirs, settings, uuid4(), clock, Bells(None)), kwargs=options)
            worker.start()
            try:
                eventually(lambda: states(engine) == {"sent": 5})
                postgres.process.kill()
                postgres.process.wait(10)
                postgres.launch()
                eventually(lambda: answers(database))
                engine.dispose()
                eventually(lambda: states(engine) == {"sent": 5}, 3 * limits.flushed)
                assert "has lost" in caplog.text, "the crash came too late to take anything"
                assert worker.is_alive()
            finally:
                stopping.set()
                worker.join(20)
                theirs.dispose()
            assert sorted(server.accepted.values()) == [1] * 5
        assert settled(engine) == ["sent"] * 5
        engine.dispose()
    finally:
        postgres.stop()


# How it is done -------------------------------------------------------------------------------------------------------


def clock() -> datetime:
    return datetime.now(UTC)


def due(engine, count: int) -> None:
    now = datetime.now(UTC) - timedelta(seconds=1)
    with engine.begin() as conn:
        Cast(conn, now).messages(count)


def come_to_an_end(engine, database, server, workers) -> None:
    """Recovers from the dead and lets one more worker do what is left."""
    recover(engine, clock, Bells(None), dead_after=0.0)
    worker = workers(database, server.url)
    eventually(lambda: not {"due", "claimed", "in_dot"} & states(engine).keys(), 60)
    worker.end()


def check(engine, server, count: int) -> None:
    with engine.connect() as conn:
        rows = conn.execute(select(models.message.c.state, models.message.c.message_header)).all()
    assert len(rows) == count and {row.state for row in rows} <= {"sent", "unknown"}
    assert max(server.accepted.values()) == 1
    for row in rows:
        assert row.state == "unknown" or server.accepted[row.message_header] == 1
    assert len(settled(engine)) == count


def states(engine) -> dict[str, int]:
    with engine.connect() as conn:
        return dict(conn.execute(select(models.message.c.state, func.count()).group_by(models.message.c.state)).all())


def settled(engine) -> list[str]:
    with engine.connect() as conn:
        found = conn.execute(select(models.event.c.properties).where(models.event.c.name == "nurture.message_settled"))
        return [properties["outcome"] for (properties,) in found]


def waiting_backends(engine) -> list[int]:
    with engine.connect() as conn:
        return list(
            conn.execute(text("select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")).scalars()
        )


def dead(engine, worker: Worker) -> bool:
    return _age(engine, worker) > DEAD_AFTER + 0.1


def alive(engine, worker: Worker) -> bool:
    return _age(engine, worker) < 0.5


def _age(engine, worker: Worker) -> float:
    with engine.connect() as conn:
        return conn.execute(
            text("select extract(epoch from clock_timestamp() - heartbeat_at)::float from worker where id = :id"), {"id": worker.id}
        ).scalar_one()


def answers(database: str) -> bool:
    try:
        psycopg.connect(dsn(database)).close()
    except psycopg.OperationalError:
        return False
    return True


def eventually(found, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
