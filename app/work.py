"""The roles of the worker processes: advance (with the chores), deliver, clock; and all of them, supervised.

A role waits for bells of Redis. When Redis does not answer it looks for work itself, every second, and goes on trying; when
PostgreSQL does not answer it waits for it. Neither ever stops a role. SIGTERM and SIGINT stop it after the job in hand, or after
GRACE seconds in the middle of it, which harms nothing: the database knows what was done.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import UnixSignalDeathPenalty
from rq.worker import WorkerStatus
from sqlalchemy.exc import DBAPIError

from app import jobs, logs
from app.config import load
from app.errors import NurtureError
from app.flow.inbound.poll import remember
from app.queue import ADVANCE, CHORES, DELIVER, find_due, tick
from app.queue import ring as ring_for

log = logging.getLogger("nurture.work")

ROLES = {"advance": [ADVANCE, CHORES], "deliver": [DELIVER], "clock": []}
# What a role runs is imported before its first job, not during it.
FLOWS = {
    "advance": ["advance", "assess", "track", "hooks", "deliver", "notify", "inbound.poll", "brakes", "erase", "retain"],
    "deliver": ["deliver", "notify"],
    "clock": [],
}
TURN_SECONDS = 0.5
GRACE = {"advance": 5.0, "deliver": 8.0, "clock": 2.0}


def main(argv: Sequence[str]) -> int:
    """Runs one role, or all, until told to stop. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="worker.py", description="Nurture's workers.")
    parser.add_argument("role", nargs="?", default="all", choices=[*ROLES, "all"])
    role = parser.parse_args(argv).role
    try:
        logs.start(load().secret_key)
    except NurtureError as error:
        print(error, file=sys.stderr)
        return 2
    logging.getLogger("rq").setLevel(logging.WARNING)
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
    try:
        if role == "all":
            return _run_all()
        jobs.workplace()
        for name in FLOWS[role]:
            importlib.import_module(f"app.flow.{name}")
        spare_collector()
        stop = Stop(GRACE[role], jobs.workplace().stopping)
        if role == "clock":
            run_clock(stop)
        else:
            run_listener(role, stop)
        return 0
    except NurtureError as error:
        print(error, file=sys.stderr)
        return 2


def spare_collector() -> None:
    """Makes the search for cycles rare: nearly everything dies by its reference count, and looking through the facts of every batch
    again and again took a quarter of the time of `advance`. Modules are never looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


class Stop:
    """Sets `asked` when SIGTERM or SIGINT comes. After it the process has `grace` seconds to end by itself."""

    def __init__(self, grace: float, asked: threading.Event):
        self.grace = grace
        self.asked = asked
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: object) -> None:
        if not self.asked.is_set():
            self.asked.set()
            timer = threading.Timer(self.grace, os._exit, [0])
            timer.daemon = True
            timer.start()

    def __bool__(self) -> bool:
        return self.asked.is_set()


def run_clock(stop: Stop) -> None:
    """Rings every second for whatever is pending or due."""
    here = jobs.workplace()
    waits = Outage("the database")
    told = False
    while not stop:
        began = time.monotonic()
        try:
            if not told:
                with here.engine.begin() as conn:
                    remember(conn, here.settings, jobs.clock())
                told = True
            with here.engine.connect() as conn:
                tick(conn, here.bells, jobs.clock())
            waits.over()
        except DBAPIError as error:
            waits.says(error)
        stop.asked.wait(max(0.05, began + 1 - time.monotonic()))


def run_listener(role: str, stop: Stop) -> None:
    """Does what the bells of the role's queues ask for."""
    here = jobs.workplace()
    outage = Outage("Redis")
    while not stop:
        began = time.monotonic()
        if here.settings.redis_url:
            try:
                _listen(here.settings.redis_url, ROLES[role], stop, outage.over)
            except redis.RedisError as error:
                outage.says(error)
        if not stop:
            look(role, stop)
        stop.asked.wait(max(0.05, began + 1 - time.monotonic()))
    here.sender.finish()
    here.notifier.finish()
    here.fetcher.finish()


def look(role: str, stop: Stop) -> None:
    """Finds the role's work without Redis, and does it."""
    here = jobs.workplace()
    try:
        with here.engine.connect() as conn:
            due = find_due(conn, jobs.clock())
        ring_for(_ByHand(role, stop), due)
    except DBAPIError as error:
        log.warning("the database does not answer: %s", _short(error))


class _ByHand:
    """Bells for whoever rings and answers himself."""

    def __init__(self, role: str, stop: Stop):
        self._role = role
        self._stop = stop

    def advance(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._do(ADVANCE, jobs.advance, partition)

    def deliver(self) -> None:
        self._do(DELIVER, jobs.deliver)

    def notify(self) -> None:
        self._do(DELIVER, jobs.notify)

    def assess(self) -> None:
        self._do(CHORES, jobs.assess)

    def settle(self) -> None:
        self._do(CHORES, jobs.settle)

    def inbound(self) -> None:
        self._do(CHORES, jobs.inbound)

    def fetch(self) -> None:
        self._do(CHORES, jobs.fetch)

    def hooks(self) -> None:
        self._do(CHORES, jobs.hooks)

    def brakes(self) -> None:
        self._do(CHORES, jobs.brakes)

    def recover(self) -> None:
        self._do(CHORES, jobs.recover)

    def tidy(self) -> None:
        self._do(CHORES, jobs.tidy)

    def _do(self, queue: str, job: Callable, *args: int) -> None:
        if queue not in ROLES[self._role] or self._stop:
            return
        try:
            job(*args)
        except DBAPIError:
            raise
        except Exception:
            log.exception("%s%s failed", job.__name__, args)


class Overtime(BaseException):
    """A job took longer than RQ allows. No `Exception`: it is nobody's occurrence's fault, and nobody inside may catch it."""


class _Penalty(UnixSignalDeathPenalty):
    def handle_death_penalty(self, signum: int, frame: object) -> None:
        raise Overtime(f"took longer than {self._timeout} seconds")


class Listener(SimpleWorker):
    """RQ's worker without forks, without its own loop (which gives up when Redis does) and without its chatter."""

    log_result_lifespan = False
    death_penalty_class = _Penalty

    @property
    def dequeue_timeout(self) -> int:
        return 1

    @property
    def connection_timeout(self) -> int:
        return 4

    def handle_exception(self, job: Job, *exc_info) -> None:
        """Logs the failure; the work itself is found again by the next tick."""
        error = exc_info[1]
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            log.warning("%s: the database does not answer: %s", job.description, _short(error))
        elif isinstance(error, (InvalidJobOperation, NoSuchJobError)):
            log.info("%s: Redis forgot the job while it ran", job.description)
        elif isinstance(error, NurtureError):
            log.error("%s failed: %s", job.description, error)
        else:
            log.error("%s failed", job.description, exc_info=exc_info)


def _listen(url: str, names: Sequence[str], stop: Stop, on_answer: Callable[[], None]) -> None:
    """Takes jobs until told to stop. Raises redis.RedisError when Redis does not answer."""
    client = redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=4, retry=Retry(NoBackoff(), 0), retry_on_error=[])
    try:
        queues = [Queue(name, connection=client, serializer=JSONSerializer) for name in names]
        listener = Listener(queues, connection=client, serializer=JSONSerializer, log_job_description=False, worker_ttl=120)
        listener.register_birth()
        listener.set_state(WorkerStatus.IDLE)
        on_answer()
        by_key = {queue.key: queue for queue in queues}
        turns = Turns(list(by_key))
        beat = time.monotonic()
        while not stop:
            if listener.should_run_maintenance_tasks:
                listener.run_maintenance_tasks()
            if time.monotonic() > beat + 30:
                beat = time.monotonic()
                listener.heartbeat()
            try:
                key, job_id = (part.decode() for part in Queue.lpop(turns.order(time.monotonic()), 1, connection=client))
                job = Job.fetch(job_id, connection=client, serializer=JSONSerializer)
            except (DequeueTimeout, NoSuchJobError):
                continue
            began = time.monotonic()
            listener.execute_job(job, by_key[key])
            turns.took(key, began, time.monotonic())
        listener.register_death()
    finally:
        client.close()


class Turns:
    """Which queue is asked first: the first one, and every now and then the last. Chores (the recovery from the dead, the brakes) come to
    their turn however much there is to advance, and have half of the time at most, however long they take."""

    def __init__(self, keys: Sequence[str]):
        self._usual, self._other = list(keys), list(reversed(keys))
        self._until = 0.0

    def order(self, now: float) -> list[str]:
        return self._usual if now < self._until else self._other

    def took(self, key: str, began: float, ended: float) -> None:
        if key == self._other[0]:
            self._until = ended + max(TURN_SECONDS, ended - began)


class Outage:
    """Says once that something does not answer, and once that it does again."""

    def __init__(self, what: str):
        self._what = what
        self._since: float | None = None

    def says(self, error: Exception) -> None:
        if self._since is None:
            self._since = time.monotonic()
            log.warning("%s does not answer: %s", self._what, _short(error))

    def over(self) -> None:
        if self._since is not None:
            log.info("%s answers again after %.0f s", self._what, time.monotonic() - self._since)
            self._since = None


def _short(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _run_all() -> int:
    from app.config import CODE, environment
    from app.supervise import Child, Supervisor

    settings = jobs.workplace().settings
    children = [
        Child(f"worker {role}", [sys.executable, str(CODE / "worker.py"), role], environment(settings), grace=GRACE[role] + 2)
        for role in ROLES
    ]
    supervisor = Supervisor(children, on_event=log.warning)
    supervisor.catch_signals()
    try:
        supervisor.start()
        supervisor.watch()
    finally:
        supervisor.stop()
    return 0
