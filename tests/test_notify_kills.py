"""Workers that send alerts and webhooks are killed and stopped with something on the wire: nothing is lost, no alert is sent twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from app.config import CODE, load
from app.flow import notify
from app.flow.channels import set_channel
from app.queue import Bells
from tests.cast import Cast
from tests.hooks import Hooks
from tests.processes import eventually

pytestmark = pytest.mark.processes

DEAD_AFTER = 1.0
SECRET_KEY = "k" * 40
PROGRAM = """
import json, sys, time
from datetime import UTC, datetime
from uuid import uuid4
from app import db
from app.config import load
from app.flow.notify import run
from app.queue import Bells
from app.rules.delivery import Limits

told = json.loads(sys.argv[1])
settings = load(told["environment"])
engine = db.connect(settings.database_url)
print("here", flush=True)
while True:
    try:
        run(engine, settings, uuid4(), lambda: datetime.now(UTC), Bells(None), limits=Limits(heartbeat=0.1))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    time.sleep(0.02)
"""


@pytest.fixture
def workers(database, tmp_path):
    started = []

    def start(server):
        told = {"environment": environment(database, tmp_path, server)}
        errors = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the worker
        command = [sys.executable, "-c", PROGRAM, json.dumps(told)]
        process = subprocess.Popen(command, cwd=CODE, stdout=subprocess.PIPE, stderr=errors, text=True)
        started.append((process, errors))
        if process.stdout.readline() != "here\n":
            errors.seek(0)
            pytest.fail(errors.read().decode())
        return process

    yield start
    for process, errors in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait(10)
        process.stdout.close()
        errors.close()


def environment(database, folder, server):
    allowed = f"{server.place[0]}://{server.place[1]}:{server.place[2]}"
    told = {"NURTURE_HOME": str(folder / "home"), "DATABASE_URL": database}
    return {**told, "NURTURE_SECRET_KEY": SECRET_KEY, "NURTURE_ALLOW_HOSTS": allowed}


def make(engine, database, folder, server, *kinds):
    """Effects of these kinds to a channel at the server: alerts to a chat, webhooks to a signed one."""
    now = datetime.now(UTC)
    settings = load(environment(database, folder, server))
    with engine.begin() as conn:
        set_channel(conn, settings, "team", "slack", f"{server.url}/team", now)
        set_channel(conn, settings, "crm", "webhook", f"{server.url}/crm", now)
        cast = Cast(conn, now)
        person = cast.contact("ada")
        for number, kind in enumerate(kinds, 1):
            cast.effect(person, kind, "team" if kind == "alert" else "crm", occurrence=number)
        conn.execute(text("update effect set payload = jsonb_set(payload, '{text}', to_jsonb(id::text)) where kind = 'alert'"))


def states(engine):
    with engine.connect() as conn:
        return dict(conn.execute(text("select kind, state from effect order by kind")).all())


def recover(engine):
    return notify.recover(engine, lambda: datetime.now(UTC), Bells(None), dead_after=DEAD_AFTER)


def test_killed_on_the_wire(engine, database, tmp_path, workers):
    """Both were taken by the other side when the worker died without having heard so: the webhook goes again, the alert does not."""
    with Hooks(["hold", "hold"]) as server:
        make(engine, database, tmp_path, server, "alert", "webhook")
        worker = workers(server)
        eventually(lambda: len(server.requests) == 2)
        assert states(engine) == {"alert": "on_wire", "webhook": "on_wire"}
        worker.kill()
        worker.wait(10)
        server.release.set()
        assert recover(engine).unknown == 0, "its heart has only just stopped"
        eventually(lambda: recover(engine) and states(engine) == {"alert": "unknown", "webhook": "due"})
        workers(server)
        eventually(lambda: states(engine)["webhook"] == "done")
        assert [path for path, _, _ in server.requests].count("/team") == 1
        hooks = [headers["webhook-id"] for path, headers, _ in server.requests if path == "/crm"]
        assert len(hooks) == 2 and len(set(hooks)) == 1, "the receiver knows it again"


def test_stopped_on_the_wire_and_revived(engine, database, tmp_path, workers):
    """The worker is stopped with a webhook on the wire, another one sends it, and the first one wakes up: it changes nothing any more."""
    with Hooks(["hold"]) as server:
        make(engine, database, tmp_path, server, "webhook")
        worker = workers(server)
        eventually(lambda: server.requests)
        worker.send_signal(signal.SIGSTOP)
        eventually(lambda: recover(engine).due)
        workers(server)
        eventually(lambda: states(engine)["webhook"] == "done")
        before = row(engine)
        server.release.set()
        worker.send_signal(signal.SIGCONT)
        eventually(lambda: all_ended(engine))
        assert row(engine) == before
        assert len({headers["webhook-id"] for _, headers, _ in server.requests}) == 1


def test_killed_again_and_again(engine, database, tmp_path, workers):
    """Workers die one after the other while 60 effects go out: every webhook is done, no alert arrives twice."""
    with Hooks() as server:
        make(engine, database, tmp_path, server, *(["alert", "webhook"] * 30))
        for wanted in (3, 10, 20, 35):
            worker = workers(server)
            eventually(lambda wanted=wanted: len(server.requests) >= wanted)
            worker.kill()
            worker.wait(10)
        workers(server)
        eventually(lambda: recover(engine) and left(engine) == 0, 30)
        with engine.connect() as conn:
            found = dict(conn.execute(text("select kind || ' ' || state, count(*) from effect group by 1")).all())
            attempts = conn.execute(text("select count(*) from effect where state = 'done' and attempts = 0")).scalar()
        assert found.pop("webhook done") == 30
        assert found.pop("alert done") + found.pop("alert unknown", 0) == 30 and not found
        assert attempts == 0
        alerts = [json.loads(body)["blocks"][0]["text"]["text"] for path, _, body in server.requests if path == "/team"]
        assert len(set(alerts)) == len(alerts) <= 30


def row(engine):
    with engine.connect() as conn:
        return tuple(conn.execute(text("select state, claim, worker_id, attempts, settled_at, reply from effect")).one())


def left(engine):
    with engine.connect() as conn:
        return conn.execute(text("select count(*) from effect where state in ('due', 'claimed')")).scalar()


def all_ended(engine):
    """Whether every run that claimed has ended in good order, the revived one too."""
    with engine.connect() as conn:
        return conn.execute(text("select bool_and(stopped_at is not null) from worker")).scalar()
