"""The RQ functions. Each looks for its work in the database and does it; none of them needs to be told anything twice, or at all.

The flow functions commit for themselves (a batch, a claim), so a job that dies in the middle has done what it has done.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from threading import Event, Lock, Thread
from uuid import UUID, uuid4

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.config import Settings, load
from app.db import connect
from app.errors import SettingError
from app.queue import Bells

TIDY_FOR = timedelta(seconds=60)

log = logging.getLogger("nurture.jobs")


def advance(partition: int) -> None:
    """Looks at one partition."""
    from app.flow.advance import run_partition

    here = workplace()
    run_partition(here.engine, here.bells, partition, clock)


def deliver() -> None:
    """Has this process's sender look for what is due."""
    workplace().sender.ring()


def notify() -> None:
    """Has this process look for alerts and webhooks that are due."""
    workplace().notifier.ring()


def assess() -> None:
    """Assesses the health of the accounts whose turn it is."""
    from app.flow.assess import assess_due

    here = workplace()
    assess_due(here.engine, clock, here.bells)


def settle() -> None:
    """Judges for good the clicks that are old enough, and settles messages of whose unknown outcome more is known."""
    from app.flow.track import settle_due
    from app.flow.unknown import resolve_due

    here = workplace()
    settle_due(here.engine, clock, here.bells)
    resolve_due(here.engine, clock, here.bells)


def inbound() -> None:
    """Reads the mail that came in."""
    from app.flow.inbound import work

    here = workplace()
    work(here.engine, clock, here.bells, stopping=here.stopping.is_set)


def fetch() -> None:
    """Has this process look into the mailbox."""
    workplace().fetcher.ring()


def hooks() -> None:
    """Hears what mail providers have told."""
    from app.flow.hooks import process_due

    here = workplace()
    process_due(here.engine, here.settings, clock, here.bells)


def brakes() -> None:
    """Counts complaints and bounces, and stops mail where there are too many."""
    from app.flow.brakes import run

    here = workplace()
    run(here.engine, here.settings, clock, here.bells)


def recover() -> None:
    """Takes back what dead workers had claimed."""
    from app.flow import deliver, notify

    here = workplace()
    deliver.recover(here.engine, clock, here.bells)
    notify.recover(here.engine, clock, here.bells)


def tidy() -> None:
    """Goes on erasing, and takes away what is too old; what is left after a minute is the next tick's."""
    from app.flow import erase, retain

    here, until = workplace(), clock() + TIDY_FOR
    erase.work(here.engine, clock, here.settings.exports, until=until)
    with here.engine.connect() as conn:
        due = retain.due(conn, clock())
    if due:
        retain.work(here.engine, clock, until=until)


class Notifier:
    """Runs `flow.notify` in a thread of its own, as a customer's server may take ten seconds to answer. Each run claims under an id of its
    own, so that the end of one is never taken for the death of another."""

    what = "alerts and webhooks"

    def __init__(self, settings: Settings, engine: Engine, bells: Bells, stopping: Event):
        self._settings, self._engine, self._bells, self._stopping = settings, engine, bells, stopping
        self._starting = Lock()
        self._thread: Thread | None = None

    def ring(self) -> None:
        """Look for what is due. Returns at once. A ring that comes just as a run ends is the next tick's to repeat."""
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._run, name=self.what)
                self._thread.start()

    def finish(self) -> None:
        """Waits for the run to end, which `stopping` has been asked to."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except DBAPIError as error:
            log.warning("%s: the database does not answer: %s", self.what, str(error.orig).strip().partition("\n")[0])
        except Exception:
            log.exception("%s failed; the next tick has them start again", self.what)

    def _work(self) -> None:
        from app.flow import notify as flow

        flow.run(self._engine, self._settings, uuid4(), clock, self._bells, stopping=self._stopping.is_set)


class Fetcher(Notifier):
    """Looks into the mailbox, likewise aside, as its server may take half a minute to answer."""

    what = "inbound mail"

    def _work(self) -> None:
        from app.flow.inbound.poll import poll

        poll(self._engine, self._settings, clock, self._bells, stopping=self._stopping.is_set)


class Sender:
    """Runs `flow.deliver` in a thread of its own: while there is mail, and a little longer with its connections open, so that a ring costs
    no more than a look. It dies with a claim in hand like any worker, and what it had is recovered."""

    def __init__(self, settings: Settings, engine: Engine, bells: Bells, worker_id: UUID, stopping: Event):
        self._settings, self._engine, self._bells = settings, engine, bells
        self._worker_id, self._stopping = worker_id, stopping
        self._rung = Event()
        self._starting = Lock()
        self._thread: Thread | None = None

    def ring(self) -> None:
        """Look for mail. Returns at once. A ring that comes just as a run ends is the next tick's to repeat."""
        self._rung.set()
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._run, name="deliver")
                self._thread.start()

    def finish(self) -> None:
        """Waits for the run to end, which `stopping` has been asked to."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        from app.flow import deliver as flow

        options = {"stopping": self._stopping.is_set, "rung": self._rung}
        try:
            flow.run(self._engine, self._settings, self._worker_id, clock, self._bells, **options)
        except DBAPIError as error:
            log.warning("sending: the database does not answer: %s", str(error.orig).strip().partition("\n")[0])
        except Exception:
            log.exception("sending failed; the next tick has it start again")


@dataclass(frozen=True, slots=True)
class Workplace:
    """What the jobs of one process share. `worker_id` is this process's; `stopping` is set when it is to end soon."""

    settings: Settings
    engine: Engine
    bells: Bells
    worker_id: UUID
    stopping: Event
    sender: Sender
    notifier: Notifier
    fetcher: Fetcher


@cache
def workplace() -> Workplace:
    """This process's, made at the first call from the settings of the environment. Raises SettingError."""
    settings = load()
    if not settings.database_url:
        raise SettingError("DATABASE_URL", "is needed to work; `nurture up` sets it for the workers it starts")
    engine, bells, worker_id, stopping = connect(settings.database_url), Bells(settings.redis_url), uuid4(), Event()
    sender = Sender(settings, engine, bells, worker_id, stopping)
    notifier, fetcher = Notifier(settings, engine, bells, stopping), Fetcher(settings, engine, bells, stopping)
    return Workplace(settings, engine, bells, worker_id, stopping, sender, notifier, fetcher)


def clock() -> datetime:
    return datetime.now(UTC)
