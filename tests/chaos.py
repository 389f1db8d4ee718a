"""The whole engine under fire: real processes on a durable database send real mail while they are killed and frozen at random.

    python -m tests.chaos --messages 20000 --kills 200        (`make chaos`)

Everything `nurture up` runs, with several delivering workers: PostgreSQL (fsync on), Redis, web, advance, deliver, clock. Whoever dies is
started again at once. They send to `tests/moody_smtp.py`, which counts what it takes by message and sometimes defers, closes or hangs.
Most messages are made due in the database, wave by wave; every tenth comes of events that a client posts until it hears 200.

Each wave ends in a kill: SIGKILL to a worker, the clock, a web process, Redis, PostgreSQL or one of its backends, or
pg_terminate_backend. In between, delivering workers are frozen with SIGSTOP for longer than it takes to be given up for dead, and woken.
Only processes that this program started are touched.

Afterwards everything is left to finish, and the relay's count is held against the database. Demanded of every message:

- it came to an end: `sent`, `unknown`, or skipped with a reason; none is lost, none is stuck;
- it was accepted at most once, once if it is `sent`, and never if it was skipped;
- `unknown` is explained: it was at its dot when its worker was killed or frozen, or the relay gave no answer to the dot;
- what the dead had claimed was taken over in time, however much there was to do;
- of every posted event came one message, and every campaign was told once how its message ended.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import UUID

import psutil
import psycopg
from sqlalchemy.exc import DBAPIError

from app import db, embedded
from app.config import CODE, environment, load
from app.flow.access import create_key
from app.flow.deliver import recover
from app.migrate import migrate
from app.queue import Bells
from app.rules.delivery import Limits
from app.supervise import Child
from app.work import GRACE
from bench import customers, folder

BY_EVENT = 10  # every so many messages comes of posted events
START = "began"
CAMPAIGN = """
name: Under fire
stage: onboarding
topic: product
trigger: {event: began}
recipients: {roles: [admin]}
steps:
  - {id: mail, email: mail.mjml, subject: Hello}
"""
# What is killed, each at least once, and how often in a hundred kills.
TARGETS = {"deliver": 42, "backend": 14, "terminate": 12, "postgres": 8, "redis": 7, "web": 7, "advance": 6, "clock": 4}
SLACK = 60.0  # seconds a claim of the dead may be found later than it could be
PATIENCE = 600.0  # seconds for everything to come to an end afterwards
MESSAGE_ID = re.compile(r"<([0-9a-f]{32})@[^>]+>")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen. `dead_after` other than the engine's own has this program recover from the dead too, that much sooner."""

    messages: int = 20_000
    kills: int = 200
    stops: int = 8
    workers: int = 4
    seed: int = 1
    pause: float = 5.0  # seconds between two kills, at most
    dead_after: float = Limits.dead_after


@dataclass(slots=True)
class Report:
    """What came of it. `violations` are sentences; `histories` say of each message in them all that is known."""

    plan: Plan
    accepted: Counter = field(default_factory=Counter)  # messages by how often the relay took them
    states: Counter = field(default_factory=Counter)
    kills: Counter = field(default_factory=Counter)
    at_dots: int = 0  # messages at their dot in the hands of workers that were killed or frozen
    no_answer: int = 0  # dots that the relay left without an answer
    deferred: int = 0
    taken_over: int = 0  # what frozen workers had claimed and found taken when they woke up
    oldest: float = 0.0  # seconds for which the dead kept a claim, at most
    posts: int = 0
    posted_again: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    histories: dict[str, dict] = field(default_factory=dict)

    def as_json(self) -> dict:
        return {
            "messages": self.plan.messages,
            "seed": self.plan.seed,
            "kills": dict(self.kills),
            "accepted": {str(times): count for times, count in sorted(self.accepted.items())},
            "states": dict(self.states),
            "at_dots": self.at_dots,
            "no_answer": self.no_answer,
            "deferred": self.deferred,
            "taken_over": self.taken_over,
            "oldest": round(self.oldest, 1),
            "posts": self.posts,
            "posted_again": self.posted_again,
            "seconds": round(self.seconds, 1),
            "violations": self.violations,
            "histories": self.histories,
        }

    def __str__(self) -> str:
        kills = sum(count for what, count in self.kills.items() if what != "stop")
        rows = [
            ("messages", sum(self.states.values()), ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))),
            ("accepted once", self.accepted[1], ""),
            ("accepted never", self.accepted[0], ""),
            ("accepted twice or more", sum(count for times, count in self.accepted.items() if times > 1), "demanded: 0"),
            ("unknown", self.states["unknown"], f"at their dot at the kills: {self.at_dots}; no answer from the relay: {self.no_answer}"),
            ("kills", kills, ", ".join(f"{count} {what}" for what, count in sorted(self.kills.items()) if what != "stop")),
            ("workers frozen", self.kills["stop"], f"{self.taken_over} of their claims were taken over meanwhile"),
            (
                "oldest claim, seconds",
                round(self.oldest),
                f"of the dead, while all that went on; demanded: {self.plan.dead_after + SLACK:.0f}",
            ),
            ("deferred by the relay", self.deferred, ""),
            ("events posted", self.posts, f"{self.posted_again} calls went unanswered and were posted again"),
            ("seconds", round(self.seconds), f"seed {self.plan.seed}, {self.plan.workers} delivering workers"),
            ("violations", len(self.violations), "demanded: 0"),
        ]
        lines = [f"{name:<24}{count:>8,}   {note}".rstrip() for name, count, note in rows]
        return "\n".join([*lines, *(f"  {one}" for one in self.violations[:50])])


def run(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Report:
    """Does it all, in the main thread. Leaves nothing running and nothing on disk. Raises StartError where the engine cannot start."""
    home = Path(tempfile.mkdtemp(prefix="nurture-chaos-", dir="/tmp"))
    os.chmod(home, 0o755)
    began = time.monotonic()
    engine = _Engine(home, plan, say)
    try:
        engine.start()
        _rage(engine, plan, say)
        _finish(engine)
        report = _judge(engine)
    finally:
        engine.end()
        shutil.rmtree(home, ignore_errors=True)
    report.seconds = time.monotonic() - began
    return report


# The engine, and who keeps it going ------------------------------------------------------------------------------------


class _Engine:
    """All processes of one installation, and what is known of how they died."""

    def __init__(self, home: Path, plan: Plan, say: Callable[[str], None]):
        self.home, self.plan, self.say = home, plan, say
        self.dice = random.Random(plan.seed)
        self.sink_log = home / "relay.log"
        self.postgres, self.redis = embedded.Postgres(home), embedded.Redis(home)
        self.children: dict[str, embedded.Postgres | embedded.Redis | Child] = {}
        self.frozen: dict[str, tuple[float, set[UUID]]] = {}  # until when, and the tokens it had
        self.at_dots: set[UUID] = set()
        self.kills: Counter = Counter()
        self.log: list[str] = []
        self.taken_over = 0
        self.oldest = 0.0  # seconds, the age of the oldest heartbeat of anybody who had claims
        self.sink: subprocess.Popen | None = None
        self.listening: socket.socket | None = None
        self.poster: _Poster | None = None
        self.recovered_at = 0.0

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.moody_smtp", str(self.plan.seed), str(self.sink_log)]
        self.sink = subprocess.Popen(command, cwd=CODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        port = int(self.sink.stdout.readline())
        self.postgres.start()
        database = self.postgres.ensure_database("nurture")
        self.dsn = database.replace("+psycopg", "")
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listening.set_inheritable(True)
        web = self.listening.getsockname()[1]
        told = {"NURTURE_HOME": str(self.home / "home"), "DATABASE_URL": database, "REDIS_URL": self.redis.start()}
        settings = load({**told, "SMTP_URL": f"smtp://127.0.0.1:{port}", "NURTURE_BASE_URL": f"http://127.0.0.1:{web}"})
        self.engine, self.bells = db.connect(database, pool_size=2), Bells(settings.redis_url)
        now = datetime.now(UTC)
        migrate(self.engine, now)
        folder.put_in_force(self.engine, now, {"fire": CAMPAIGN})
        customers.load(self.engine, now, self.plan.messages)
        with self.engine.begin() as conn:
            key = create_key(conn, "product", "write", now)
            conn.exec_driver_sql(_ENROLL, {"now": now})
        env = environment(settings)
        gunicorn = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"fd://{self.listening.fileno()}", "--worker-class", "gthread"]
        gunicorn += ["--workers", "2", "--threads", "4", "--no-control-socket", "--log-level", "warning"]
        fds = (self.listening.fileno(),)
        self.children = {"postgres": self.postgres, "redis": self.redis}
        self.children["web"] = Child("web", gunicorn, env, log=self.home / "logs" / "web.log", pass_fds=fds)
        roles = ["advance", "clock", *(f"deliver {number}" for number in range(self.plan.workers))]
        for name in roles:
            role = name.split()[0]
            command = [sys.executable, str(CODE / "worker.py"), role]
            self.children[name] = Child(name, command, env, log=self.home / "logs" / f"{role}.log", grace=GRACE[role] + 1)
        self.tend()
        self.poster = _Poster(web, key)

    def end(self) -> None:
        if self.poster:
            self.poster.end()
        if hasattr(self, "engine"):
            self.engine.dispose()
        for name in self.frozen:
            self.children[name].process.send_signal(signal.SIGCONT)
        programs = [child for child in self.children.values() if isinstance(child, Child) and child.process]
        for child in programs:
            child.ask_to_end()
        for child in programs:
            child.stop()
        self.redis.stop()
        self.postgres.stop()
        if self.listening:
            self.listening.close()
        if self.sink:
            self.sink.kill()
            self.sink.wait()
            self.sink.stdin.close()
            self.sink.stdout.close()

    def delivering(self) -> list[str]:
        """The names of the delivering workers that are neither dead nor frozen."""
        return [name for name in self.children if name.startswith("deliver") and name not in self.frozen and self.alive(name)]

    def alive(self, name: str) -> bool:
        process = self.children[name].process
        return process is not None and process.poll() is None

    def tend(self) -> None:
        """Starts whoever is dead, wakes whoever has been frozen for long enough, recovers from the dead where that is up to us."""
        for name, child in self.children.items():
            if not self.alive(name):
                self.frozen.pop(name, None)
                child.launch()
        for name, (until, _) in list(self.frozen.items()):
            if time.monotonic() > until:
                self.wake(name)
        if self.plan.dead_after != Limits.dead_after and time.monotonic() > self.recovered_at + 1:
            self.recovered_at = time.monotonic()
            try:
                recover(self.engine, lambda: datetime.now(UTC), self.bells, dead_after=self.plan.dead_after)
            except DBAPIError as error:
                self.note(f"not recovered: {error.orig}".splitlines()[0])

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.tend()
            time.sleep(0.03)

    def wait_for_mail(self, number: float, seconds: float) -> None:
        """Until the relay has heard so many more dots, so that whoever dies next is busy."""
        until, wanted = time.monotonic() + seconds, self.dots() + number
        while self.dots() < wanted and time.monotonic() < until:
            self.wait(0.02)

    def dots(self) -> int:
        return self.sink_log.read_bytes().count(b"\n")

    def ask(self, statement: str, values: dict | None = None, *, seconds: float = 90.0) -> list[tuple]:
        """Rows from the database, which is waited for when it is away."""
        until = time.monotonic() + seconds
        while True:
            try:
                with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as conn:
                    found = conn.execute(statement, values)
                    return found.fetchall() if found.description else []
            except psycopg.OperationalError as error:
                if time.monotonic() > until:
                    raise
                self.note(f"waiting for the database: {error}".splitlines()[0])
                self.wait(0.05)

    def note(self, what: str) -> None:
        self.log.append(f"{datetime.now(UTC):%H:%M:%S.%f} {what}")

    def kill(self, what: str) -> None:
        """One such process dies, if there is one. What was at its dot in the hands of a worker is on record afterwards."""
        if what == "deliver":
            names = self.delivering()
            if not names:
                return
            pid = self.shoot(self.dice.choice(names))
            self.at_dots |= {ident for (ident,) in self.ask(_AT_DOT_OF, {"pid": pid})}
        elif what in ("backend", "terminate"):
            found = self.ask("select pid from pg_stat_activity where backend_type = 'client backend' and application_name = 'nurture'")
            mine = {process.pid for process in psutil.Process(self.postgres.process.pid).children()} if self.alive("postgres") else set()
            pids = sorted({pid for (pid,) in found} & mine)
            if not pids:
                return
            pid = self.dice.choice(pids)
            if what == "terminate":
                self.ask("select pg_terminate_backend(%(pid)s)", {"pid": pid})
            else:
                os.kill(pid, signal.SIGKILL)
            self.note(f"{what}: backend {pid}")
        elif what == "web":
            master = self.children["web"].process.pid
            family = [master, *(process.pid for process in psutil.Process(master).children())] if self.alive("web") else []
            if not family:
                return
            pid = self.dice.choice(family)
            os.kill(pid, signal.SIGKILL)
            self.note(f"web: process {pid} of {family}")
        elif self.alive(what):
            self.shoot(what)
        else:
            return
        self.kills[what] += 1

    def shoot(self, name: str) -> int:
        process = self.children[name].process
        process.kill()
        process.wait()
        self.note(f"killed {name}, process {process.pid}")
        return process.pid

    def freeze(self) -> bool:
        """Stops a delivering worker that has claims in hand, for longer than it takes to be given up for dead."""
        for name in self.dice.sample(names := self.delivering(), len(names)):
            process = self.children[name].process
            if len(names) < 2 or not self.ask(_CLAIMS_OF, {"pid": process.pid}):
                continue
            process.send_signal(signal.SIGSTOP)
            held = self.ask(_CLAIMS_OF, {"pid": process.pid})
            if not held:
                # It has just written the last results.
                process.send_signal(signal.SIGCONT)
                continue
            self.at_dots |= {ident for ident, _, state in held if state == "in_dot"}
            self.frozen[name] = (time.monotonic() + self.plan.dead_after + 4, {token for _, token, _ in held})
            self.note(f"stopped {name}, process {process.pid}, with {len(held)} claims")
            self.kills["stop"] += 1
            return True
        return False

    def wake(self, name: str) -> None:
        _, tokens = self.frozen.pop(name)
        kept = {token for _, token, _ in self.ask(_CLAIMS_OF, {"pid": self.children[name].process.pid})}
        self.taken_over += len(tokens - kept)
        self.children[name].process.send_signal(signal.SIGCONT)
        self.note(f"woke {name}: {len(tokens - kept)} of {len(tokens)} claims were taken over")


class _Poster:
    """A client that posts what happened in accounts of its own until it hears 200, each call under its own message ids."""

    def __init__(self, port: int, key: str):
        self.port, self.auth = port, "Basic " + b64encode(f"{key}:".encode()).decode()
        self.waiting: queue.Queue[int | None] = queue.Queue()
        self.posted = self.again = 0
        self.over = False
        self.thread = threading.Thread(target=self._work, name="poster")
        self.thread.start()

    def happen(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.waiting.put(number)

    def done(self) -> bool:
        return self.waiting.unfinished_tasks == 0

    def end(self) -> None:
        self.over = True
        self.waiting.put(None)
        self.thread.join()

    def _work(self) -> None:
        while (number := self.waiting.get()) is not None and not self.over:
            body = json.dumps({"batch": _story(number)}).encode()
            while not self._post(body) and not self.over:
                self.again += 1
                time.sleep(0.1)
            self.posted += 1
            self.waiting.task_done()

    def _post(self, body: bytes) -> bool:
        headers = {"Authorization": self.auth, "Content-Type": "application/json"}
        try:
            with urlopen(Request(f"http://127.0.0.1:{self.port}/v1/batch", body, headers), timeout=5) as answer:
                return answer.status == 200
        except OSError:  # refused, cut off, 503: HTTPError and timeouts are OSErrors
            return False
        except Exception as error:
            # http.client's own errors, for an answer that was cut off in the middle.
            return self._cut_off(error)

    @staticmethod
    def _cut_off(error: Exception) -> bool:
        from http.client import HTTPException

        if isinstance(error, HTTPException):
            return False
        raise error


def _story(number: int) -> list[dict]:
    who, where = f"fresh-user-{number}", f"fresh-{number}"
    traits = {"email": f"{who}@example.com", "first_name": "Ada", "roles": ["admin"]}
    context = {"groupId": where}
    return [
        {"type": "group", "messageId": f"g{number}", "userId": who, "groupId": where, "traits": {"name": where, "touch": "smb"}},
        {"type": "identify", "messageId": f"i{number}", "userId": who, "traits": traits, "context": context},
        {"type": "track", "messageId": f"t{number}", "userId": who, "event": START, "context": context},
    ]


# What happens ----------------------------------------------------------------------------------------------------------


def _rage(engine: _Engine, plan: Plan, say: Callable[[str], None]) -> None:
    waves, made, posted = max(plan.kills, 1), 0, 0
    events = plan.messages // BY_EVENT
    bulk, stops = plan.messages - events, [round((number + 0.5) * waves / plan.stops) for number in range(plan.stops)]
    targets = [*TARGETS, *engine.dice.choices(list(TARGETS), list(TARGETS.values()), k=waves)][:waves]
    engine.dice.shuffle(targets)
    wanted = 0
    for wave in range(waves):
        upto, heard = bulk * (wave + 1) // waves, events * (wave + 1) // waves
        engine.ask(_MAKE_DUE, {"from": made, "to": upto})
        engine.bells.deliver()
        engine.poster.happen(range(posted, heard))
        made, posted = upto, heard
        wanted += stops.count(wave)
        engine.wait_for_mail(engine.dice.uniform(0.1, 0.9) * plan.messages / waves, plan.pause)
        if wanted and engine.freeze():
            wanted -= 1
        before = sum(engine.kills.values())
        while sum(engine.kills.values()) == before:
            engine.kill(targets[wave])
            engine.wait(0.02)
        [(age,)] = engine.ask(_OLDEST)
        engine.oldest = max(engine.oldest, float(age))
        if wave % 10 == 9:
            say(f"{sum(engine.kills.values())} kills, {_progress(engine)}")
    while wanted:
        # Everybody was idle when it was time to freeze somebody.
        engine.ask("update message set due_at = now() where id = any(array(select id from message where state = 'due' limit 50))")
        wanted -= engine.freeze()
        engine.wait(0.1)
        if not engine.ask("select 1 from message where state in ('due', 'claimed') limit 1"):
            break


def _finish(engine: _Engine) -> None:
    """The relay is calm, nobody dies any more, whatever waits for a second attempt has it now: until nothing is left to do."""
    engine.sink.send_signal(signal.SIGUSR1)
    engine.note("the relay is calm, nobody is killed any more")
    deadline, quiet, restarted = time.monotonic() + PATIENCE, 0, False
    while quiet < 3 and time.monotonic() < deadline:
        engine.wait(0.5)
        engine.ask("update message set due_at = now() where state = 'due' and due_at > now()")
        [(messages, dots, pending)] = engine.ask(_LEFT)
        idle = engine.poster.done() and not pending and not engine.frozen and not messages
        quiet = quiet + 1 if idle and not dots else 0
        if idle and dots and not restarted:
            # Whose result was lost in a crash is at its dot while its worker lives: it ends when the worker does, in good order.
            engine.wait(2)
            for name in engine.delivering():
                engine.children[name].stop()
            restarted = True
            engine.note("the delivering workers were ended in good order")


def _progress(engine: _Engine) -> str:
    return ", ".join(f"{count} {state}" for state, count in engine.ask("select state, count(*) from message group by 1 order by 1"))


# The verdict -----------------------------------------------------------------------------------------------------------


def _judge(engine: _Engine) -> Report:
    plan = engine.plan
    relay = [json.loads(line) for line in engine.sink_log.read_text().splitlines()]
    accepted: Counter[UUID] = Counter()
    silent: set[UUID] = set()
    for one in relay:
        if one["what"] == "accepted":
            accepted[_message(one["id"])] += 1
        if one["what"] == "no_answer":
            silent.add(_message(one["id"]))
    rows = engine.ask(
        "select m.id, m.state, m.reason, m.message_header, a.external_id from message m join account a on a.id = m.account_id"
    )
    report = Report(
        plan, kills=engine.kills, at_dots=len(engine.at_dots), no_answer=len(silent), taken_over=engine.taken_over, oldest=engine.oldest
    )
    report.deferred = sum(one["what"] == "deferred" for one in relay)
    report.posts, report.posted_again = engine.poster.posted, engine.poster.again
    bad: set[UUID] = set()

    def violated(what: str, *messages: UUID) -> None:
        bad.update(messages)
        report.violations.append(what + "".join(f" {message}" for message in messages))

    known = set()
    for ident, state, reason, header, _ in rows:
        times = accepted[ident]
        known.add(ident)
        report.accepted[times] += 1
        report.states[state] += 1
        if times > 1:
            violated(f"accepted {times} times ({state}):", ident)
        elif state == "sent" and times != 1:
            violated("sent, yet the relay never took it:", ident)
        elif state == "skipped" and (times or not reason):
            violated(f"skipped ({reason}), and accepted {times} times:", ident)
        elif state == "unknown" and ident not in engine.at_dots | silent:
            violated("unknown, and nothing explains it:", ident)
        elif state not in ("sent", "unknown", "skipped"):
            violated(f"came to no end, accepted {times} times ({state}):", ident)
        if header and _message(header) != ident:
            violated(f"has the header {header}:", ident)
    for ident in accepted.keys() - known:
        violated("the relay took what nobody knows:", ident)
    if not engine.poster.done():
        violated("not every event was posted to its end")
    of_account = Counter(key for _, _, _, _, key in rows)
    events = plan.messages // BY_EVENT
    for number in range(events):
        if of_account[f"fresh-{number}"] != 1:
            violated(f"{of_account[f'fresh-{number}']} messages of the event of account fresh-{number}")
    if len(rows) != plan.messages:
        violated(f"{len(rows)} messages instead of {plan.messages}")
    told = Counter(UUID(message) for (message,) in engine.ask(_TOLD))
    for ident in known:
        if told[ident] != 1:
            violated(f"its campaign was told {told[ident]} times how it ended:", ident)
    if engine.oldest > plan.dead_after + SLACK:
        violated(f"the dead kept a claim for {engine.oldest:.0f} seconds")
    [(parked,)] = engine.ask("select count(*) from parked where released_at is null")
    if parked:
        violated(f"{parked} occurrences are parked")
    if bad:
        report.histories = {str(ident): _history(engine, ident, relay) for ident in sorted(bad)[:20]}
        report.histories["what was done"] = {"log": engine.log[-400:], "logs": _tails(engine)}
    return report


def _history(engine: _Engine, ident: UUID, relay: Sequence[dict]) -> dict:
    about = {"id": ident}
    return {
        "message": [row for (row,) in engine.ask("select to_jsonb(m) - 'values' - 'links' from message m where id = %(id)s", about)],
        "delivery events": [
            row for (row,) in engine.ask("select to_jsonb(d) from delivery_event d where message_id = %(id)s order by id", about)
        ],
        "decisions": [row for (row,) in engine.ask("select to_jsonb(d) from decision d where message_id = %(id)s order by id", about)],
        "relay": [one for one in relay if _message(one["id"]) == ident],
    }


def _tails(engine: _Engine) -> dict[str, list[str]]:
    return {path.name: path.read_text("utf-8", "replace").splitlines()[-200:] for path in (engine.home / "logs").glob("*.log")}


def _message(header: str) -> UUID | None:
    found = MESSAGE_ID.fullmatch(header)
    return UUID(found[1]) if found else None


_ENROLL = """
insert into enrollment (id, campaign_id, version_id, account_id, partition, state, step_id, entry, entered_at)
select md5('enrollment:' || a.id)::uuid, c.id, c.version_id, a.id, a.partition, 'active', 'mail', jsonb_build_object('name', 'began',
    'properties', '{}'::jsonb, 'occurred_at', %(now)s::timestamptz, 'received_at', %(now)s::timestamptz, 'message_id', 'seed',
    'contact', null), %(now)s
from account a, campaign c"""
_MAKE_DUE = """
insert into message (id, enrollment_id, campaign_id, version_id, step_id, occurrence, account_id, contact_id, partition, kind, topic,
                     priority, created_at, due_at, expires_at, state)
select md5('message:' || a.id)::uuid, md5('enrollment:' || a.id)::uuid, c.id, c.version_id, 'mail', 1, a.id, a.id, a.partition, 'email',
    'product', 50, now(), now(), now() + interval '3 days', 'due'
from account a, campaign c where a.id > %(from)s and a.id <= %(to)s
on conflict do nothing"""
# Whom recovery believed dead while he lived may yet tell the truth, unless he is killed first.
_AT_DOT_OF = """
select m.id from message m join worker w on w.id = m.worker_id
where w.pid = %(pid)s and (m.state = 'in_dot' or (m.state = 'unknown' and m.reason = 'worker_died'))"""
_OLDEST = """
select coalesce(extract(epoch from max(clock_timestamp() - w.heartbeat_at)), 0) from message m join worker w on w.id = m.worker_id
where m.state in ('claimed', 'in_dot')"""
_CLAIMS_OF = """
select m.id, m.claim, m.state from message m join worker w on w.id = m.worker_id
where w.pid = %(pid)s and m.state in ('claimed', 'in_dot')"""
_LEFT = """
select (select count(*) from message where state in ('due', 'claimed')), (select count(*) from message where state = 'in_dot'),
    (select count(*) from event_pending)"""
_TOLD = "select properties ->> 'message' from event where name = 'nurture.message_settled'"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=8, help="how often a delivering worker is frozen for longer than its heartbeat lasts")
    parser.add_argument("--workers", type=int, default=4, help="delivering workers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two kills, at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    plan = Plan(options.messages, options.kills, options.stops, options.workers, options.seed, options.pause)
    report = run(plan, lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True))
    print(json.dumps(report.as_json(), indent=2, default=str) if options.json else report, flush=True)
    if report.violations and not options.json:
        print(json.dumps(report.histories, indent=2, default=str), flush=True)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
