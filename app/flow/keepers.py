"""The two who keep a run honest: the gatekeeper commits `in_dot` before any final dot, the bookkeeper writes what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from app.flow import claims, outcome
from app.flow.outcome import Outcome
from app.flow.prepare import Prepared
from app.queue import Bells
from app.rules.consent import LOOK_AGAIN
from app.rules.delivery import Ending, Limits

AWAY = (OperationalError, InterfaceError)  # what SQLAlchemy raises when the database went away, or had to refuse for now

T = TypeVar("T")
log = logging.getLogger("nurture.deliver")


class Bookkeeper:
    """Writes outcomes in bulk, in the background, as often as they come.

    A database that is away is waited for, and the same outcomes are written again: nothing is sent again for it. So is what a crash of
    the database took with it although it was committed: nobody waits for the disk at a result, so each is looked at once more when it
    must have got there. `note` learns of the outcomes in their transaction; `written` is called after each commit. Never loses an outcome,
    unless the worker dies, or is told to stop while the database is away; then `in_dot` stays, which recovery calls unknown.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], datetime],
        bells: Bells,
        partitions: int,
        threads: Executor,
        limits: Limits,
        written: Callable[[], None],
        note: Callable[[Connection, Sequence[Outcome]], None] = lambda conn, outcomes: None,
    ):
        self.note = note
        self.engine, self.clock, self.bells, self.partitions = engine, clock, bells, partitions
        self.threads, self.limits, self.written = threads, limits, written
        self.waiting: list[Outcome] = []
        self.writing = False
        self._unproved: deque[tuple[float, Sequence[Outcome]]] = deque()  # since when each batch is committed
        self._news = asyncio.Event()
        self._over = False
        self._patience: float | None = None

    @property
    def busy(self) -> bool:
        return self.writing or bool(self.waiting)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            self.waiting.extend(outcomes)
            self._news.set()

    def finish(self, patience: float | None = None) -> None:
        """Write what is left, then `run` returns. `patience` limits how long a database that is away is waited for."""
        self._over = True
        self._patience = patience
        self._news.set()

    async def run(self, more: Callable[[], bool]) -> None:
        """Until told to finish. `more` says whether further outcomes are on their way: then these wait a little for their company."""
        loop = asyncio.get_running_loop()
        since: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.limits.flushed if self._unproved else None):
                    await self._news.wait()
            if not self._over and self.waiting and more():
                await asyncio.sleep(self.limits.gather)
            self._news.clear()
            batch, self.waiting = self.waiting, []
            old = self._unproved_before(loop.time() - (0 if self._over else self.limits.flushed))
            if not batch and not old:
                if self._over:
                    return
                continue
            self.writing = bool(batch)
            try:
                if batch:
                    await loop.run_in_executor(self.threads, self._write, batch)
                    self._unproved.append((loop.time(), batch))
                    batch = []
                    self.written()
                self.settle(await loop.run_in_executor(self.threads, self._lost, old))
                since = None
            except AWAY as error:
                log.warning("%d results wait for the database: %s", len(batch), error.orig)
                since = since or loop.time()
                if self._over and self._patience is not None and loop.time() - since > self._patience:
                    log.error("gave up on %d results: recovery will call those messages unknown that were at their dot", len(batch))
                    return
                await asyncio.sleep(0.2)
                self.settle(batch)
                self._unproved.appendleft((0.0, old))
            finally:
                self.writing = False
                if self._over:
                    self._news.set()

    def _unproved_before(self, moment: float) -> list[Outcome]:
        found: list[Outcome] = []
        while self._unproved and self._unproved[0][0] <= moment:
            found += self._unproved.popleft()[1]
        return found

    def _lost(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Those of them that are not written, although they were."""
        if not outcomes:
            return []
        with self.engine.connect() as conn:
            open_again = outcome.still_open(conn, outcomes)
        if open_again:
            log.warning("the database has lost %d results in a crash: they are written again", len(open_again))
        return [one for one in outcomes if one.claimed.id in open_again]

    def _write(self, batch: Sequence[Outcome]) -> None:
        try:
            self._write_together(batch)
        except AWAY:
            raise
        except Exception:
            # One of them cannot be written. The others can; that one stays as it is until recovery finds it.
            log.exception("%d results could not be written together", len(batch))
            for one in batch:
                try:
                    self._write_together([one])
                except AWAY:
                    raise
                except Exception:
                    log.exception("the result of message %s could not be written: %s", one.claimed.id, one.ending)

    def _write_together(self, batch: Sequence[Outcome]) -> None:
        with self.engine.begin() as conn:
            # Nobody waits for the disk. What a crash takes is written again; if the worker dies too, `in_dot` stays, which is honest.
            conn.exec_driver_sql("set local synchronous_commit = off")
            partitions = outcome.settle(conn, batch, self.clock(), self.partitions)
            self.note(conn, batch)
        self.bells.advance(partitions)


class Gatekeeper:
    """Answers whether a final dot may be written, for all who ask at the same time by one statement.

    `enough` is how many make a statement worth while: fewer wait a moment for company, if there is any on its way.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime], threads: Executor, limits: Limits, settle: Callable, enough: int):
        self.clock, self.threads, self.limits, self.settle, self.enough = clock, threads, limits, settle, enough
        self._database = Held(engine, autocommit=True)
        self._asking: list[tuple[Prepared, asyncio.Future]] = []
        self._bell = asyncio.Event()

    async def permitted(self, prepared: Prepared) -> bool:
        """Whether `in_dot` is committed for this letter. After a no its outcome is settled, and its dot must not be written."""
        future = asyncio.get_running_loop().create_future()
        self._asking.append((prepared, future))
        self._bell.set()
        return await future

    async def run(self, coming: Callable[[], int]) -> None:
        """Until cancelled. `coming` says how many letters are on their way to their dot, those who ask already among them."""
        try:
            while True:
                await self._bell.wait()
                self._bell.clear()
                if len(self._asking) < min(coming(), self.enough):
                    await asyncio.sleep(self.limits.company)
                asking, self._asking = self._asking, []
                if not asking:
                    continue
                allowed = await self._decide([prepared for prepared, _ in asking])
                for prepared, future in asking:
                    if not future.done():
                        future.set_result(prepared.letter.message_id in allowed)
        finally:
            self._database.close()

    async def _decide(self, asking: Sequence[Prepared]) -> set[UUID]:
        loop = asyncio.get_running_loop()
        try:
            allowed, refused = await loop.run_in_executor(self.threads, self._commit, [prepared.ready for prepared in asking])
        except Exception as error:
            # Perhaps it was committed and only the answer was lost. No dot follows either way, so the messages are truly unsent.
            log.warning("in_dot was not committed: %s", error, exc_info=not isinstance(error, AWAY))
            now = self.clock()
            later = now + timedelta(seconds=self.limits.back_off)
            self.settle([Outcome(one.ready.claimed, Ending("due", None, due_at=later), now) for one in asking])
            return set()
        if refused:
            now = self.clock()
            rows = {one.letter.message_id: one.ready.claimed for one in asking}
            # A pause is no refusal: its message waits for whoever ends it.
            waits = Ending("due", "campaign_paused", due_at=now + LOOK_AGAIN)
            self.settle(
                [
                    Outcome(rows[ident], waits if reason == waits.reason else Ending("skipped", reason), now, gate=gate, evidence=evidence)
                    for ident, (gate, reason, evidence) in refused.items()
                ]
            )
        return allowed

    def _commit(self, batch: Sequence[claims.Ready]) -> tuple[set[UUID], dict]:
        return self._database.do(lambda conn: claims.commit_dots(conn, batch, self.clock()))


class Held:
    """One connection kept for one small transaction after another, which saves the pool's round trips. After any error the next use opens
    a new one. With `autocommit` each statement is a transaction of its own. One thread at a time."""

    def __init__(self, engine: Engine, *, autocommit: bool = False):
        self._engine, self._autocommit = engine, autocommit
        self._conn: Connection | None = None

    def do(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, committed."""
        try:
            if self._conn is None:
                self._conn = self._engine.connect()
                if self._autocommit:
                    self._conn = self._conn.execution_options(isolation_level="AUTOCOMMIT")
            if self._autocommit:
                return work(self._conn)
            with self._conn.begin():
                return work(self._conn)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._conn is not None:
            conn, self._conn = self._conn, None
            conn.close()
