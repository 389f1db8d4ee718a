"""Sending what is due: one asyncio loop with many connections, one statement for all that are ready (DESIGN.md 8).

    claim, facts ─▶ gates, render, MAIL RCPT DATA body ─▶ in_dot ─▶ the final dot ─▶ settle
    in bulk         per courier                           in bulk   per courier      in bulk

The feeder claims ahead of the couriers and reads what the gates need to know, the gatekeeper commits `in_dot` for all who have handed over
a body, the bookkeeper settles what came of it. Whatever talks to the database runs in a thread, so that no connection waits for a
statement it did not ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Row, select

from app.config import Settings
from app.flow import claims, publish, reservations
from app.flow.claims import Heartbeat, recover
from app.flow.couriers import SIGNERS, Couriers
from app.flow.keepers import AWAY, Bookkeeper, Gatekeeper, Held
from app.flow.links import Keyring, Links, load_keyring
from app.flow.outcome import Outcome
from app.flow.prepare import Facts, Preparer
from app.models import installation
from app.providers import Transport
from app.providers.outbox import OutboxTransport
from app.providers.smtp import Smtp
from app.queue import Bells
from app.rules.delivery import Ending, Limits

__all__ = ["Limits", "recover", "run", "transport_for"]

log = logging.getLogger("nurture.deliver")


def run(
    engine: Engine,
    settings: Settings,
    worker_id: UUID,
    clock: Callable[[], datetime],
    bells: Bells,
    *,
    transport: Transport | None = None,
    limits: Limits | None = None,
    stopping: Callable[[], bool] = lambda: False,
    rung: threading.Event | None = None,
) -> int:
    """Sends all mail that is due, and what falls due meanwhile; returns how many messages the relay took.

    Claims commit before the wire, `in_dot` before the final dot, results after it (invariants 4 to 6). A relay that cannot be reached is
    tried again with growing pauses, without claiming anything; a database that goes away is waited for, and results are written when it
    is back. Ends when nothing is due, when `stopping()` says so, or after `limits.horizon` seconds with a ring for the next run. Never
    raises for what a relay, a recipient or a template does.

    With `rung` it lingers when nothing is due, its connections open, for `limits.idle` seconds: whoever sets the event has it look again,
    which spares the next mail the way to the relay.
    """
    limits = limits or Limits()
    return asyncio.run(_Run(engine, settings, worker_id, clock, bells, transport, limits, stopping, rung).run())


def transport_for(settings: Settings, engine: Engine, clock: Callable[[], datetime], limits: Limits) -> Transport:
    """The relay of the settings; without one, the local outbox."""
    if settings.smtp_url is None:
        return OutboxTransport(engine, clock, limits.connections)
    host = settings.base_host
    literal = f"[{host}]" if host.replace(".", "").isdigit() else "localhost"
    hello = host if host.isascii() and ":" not in host and not host.replace(".", "").isdigit() else literal
    return Smtp(settings.smtp_url, connections=limits.connections, hello=hello)


class _Run:
    """One run. Everything in it belongs to the loop's thread, except what says otherwise."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        worker_id: UUID,
        clock: Callable[[], datetime],
        bells: Bells,
        transport: Transport | None,
        limits: Limits,
        stopping: Callable[[], bool],
        rung: threading.Event | None,
    ):
        self.engine, self.settings, self.worker_id, self.clock, self.bells = engine, settings, worker_id, clock, bells
        self.transport = transport or transport_for(settings, engine, clock, limits)
        self.limits, self.stopping, self.rung = limits, stopping, rung
        self.threads = ThreadPoolExecutor(4, "deliver")
        self.pens = ThreadPoolExecutor(SIGNERS, "sign")
        self.database = Held(engine)

    async def run(self) -> int:
        self.loop = asyncio.get_running_loop()
        self.until = self.loop.time() + self.limits.horizon
        try:
            self.preparer = await self._in_thread(self._begin)
            if self.preparer is None:
                return 0
            with Heartbeat(self.engine, self.worker_id, self.limits.heartbeat):
                taken = await self._deliver()
            _preparers[self.engine] = self.preparer
            return taken
        finally:
            self.database.close()
            self.threads.shutdown()
            self.pens.shutdown()

    async def _deliver(self) -> int:
        self.hungry = asyncio.Event()
        self.books = Bookkeeper(self.engine, self.clock, self.bells, self.preparer.partitions, self.threads, self.limits, self.hungry.set)
        enough = max(1, self.transport.connections * 3 // 4)
        gate = Gatekeeper(self.engine, self.clock, self.threads, self.limits, self.books.settle, enough)
        self.couriers = Couriers(
            self.transport, self.limits, self.clock, self.preparer.make, gate.permitted, self.books.settle, self.hungry.set, self.pens
        )
        couriers = self.couriers
        keepers = [asyncio.create_task(self.books.run(lambda: couriers.busy)), asyncio.create_task(gate.run(lambda: couriers.handing))]
        try:
            await self._while_all_work(asyncio.create_task(self._feed()), keepers)
        finally:
            self.couriers.give_back()
            await self.couriers.finish(self.stopping)
            self.books.finish(self.limits.farewell if self.stopping() else None)
            await keepers[0]
            keepers[1].cancel()
            await asyncio.gather(keepers[1], return_exceptions=True)
            with contextlib.suppress(*AWAY):
                await self._in_thread(self._stop)
        if self.loop.time() >= self.until:
            self.bells.deliver()
        return self.couriers.taken

    async def _while_all_work(self, feeder: asyncio.Task, keepers: Sequence[asyncio.Task]) -> None:
        """Until the feeder is done. Whoever fails meanwhile ends the run with his error, instead of leaving the others waiting."""
        workers = {feeder, *keepers, *self.couriers.tasks}
        done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        if feeder not in done:
            feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeder
        for task in done:
            task.result()

    async def _feed(self) -> None:
        couriers, doubt = self.couriers, False
        while not self.stopping() and self.loop.time() < self.until:
            if (couriers.unreachable or not couriers.connected) and not await self._reach():
                if not await self._in_thread(self._any_due):
                    return
                continue
            size = couriers.rate.batch(2 * self.transport.connections, self.limits.batch)
            if len(couriers.ready) >= max(size // 2, self.transport.connections):
                await self._pause(self.limits.poll, self.hungry)
                continue
            try:
                if self.rung:
                    self.rung.clear()  # before the look: what falls due after it rings again
                if doubt:
                    await self._in_thread(self._forget, couriers.tokens())
                    doubt = False
                claimed, facts = await self._in_thread(self._fetch, couriers.take_stale(), size)
            except AWAY as error:
                log.warning("the database is away: %s", error.orig)
                doubt = True
                await self._pause(0.2)
                continue
            if claimed:
                couriers.serve(claimed, facts)
            if len(claimed) < size:
                if not self._is_busy():
                    if await self._linger():
                        continue
                    return
                # Nothing more is due. Whoever still carries a letter may do so for minutes; new mail falls due meanwhile.
                look = self.loop.time() + self.limits.poll
                while self._is_busy() and (left := look - self.loop.time()) > 0 and not self.stopping():
                    await self._pause(left, self.hungry)

    async def _linger(self) -> bool:
        """Nothing is due. Whether somebody rings before this is given up."""
        until = min(self.until, self.loop.time() + self.limits.idle) if self.rung else 0
        while (left := until - self.loop.time()) > 0 and not self.stopping():
            if await self._in_thread(self.rung.wait, min(left, 0.5)):
                return True
        return False

    def _is_busy(self) -> bool:
        return self.couriers.busy or self.books.busy

    async def _reach(self) -> bool:
        """A relay that cannot be reached costs one attempt now and then, and nothing is claimed for it."""
        if self.couriers.fruitless:
            patience = self.limits.patience
            await self._pause(patience[min(self.couriers.fruitless, len(patience)) - 1])
        return await self.couriers.reach()

    # In a thread, one at a time:

    def _begin(self) -> Preparer | None:
        """None when nothing is due; else what this process kept of its last run, compiled templates above all, with today's keys."""
        found = self.database.do(self._look)
        if found is None:
            return None
        ring, keyring, partitions = found
        self.bells.advance(ring)
        kept = _preparers.pop(self.engine, None) or Preparer(partitions)
        if kept.links is None or (kept.links.keyring, kept.links.base_url) != (keyring, self.settings.base_url):
            kept.links = Links(self.settings.base_url, keyring)
        kept.settings, kept.service = self.settings, self.transport.service
        return kept

    def _look(self, conn: Connection) -> tuple[set[int], Keyring, int] | None:
        if not claims.any_due(conn, self.clock()):
            return None
        ring = claims.begin(conn, self.worker_id, self.clock())
        return ring, load_keyring(conn), conn.execute(select(installation.c.partitions)).scalar_one()

    def _fetch(self, stale: list[Row], size: int) -> tuple[list[Row], Facts | None]:
        """Claims more messages and reads what is known of them, and of the claims that waited too long.

        Where one may take something from another that is one transaction, and one worker at a time, so that of all that is due the higher
        priority takes its place first.
        """
        claimed = stale
        try:
            taken, facts = self.database.do(lambda conn: self._claim(conn, stale, size))
            if taken and facts is None:
                claimed = taken
                facts = self.database.do(lambda conn: self.preparer.gather(conn, claimed, self.clock(), reserving=False))
            return taken, facts
        except BaseException:
            # Nothing of these has touched the wire.
            given_back = [Outcome(row, Ending("due", None), self.clock()) for row in claimed]
            self.loop.call_soon_threadsafe(self.books.settle, given_back)
            raise

    def _claim(self, conn: Connection, stale: list[Row], size: int) -> tuple[list[Row], Facts | None]:
        """The stale claims and as many new ones as make up `size`; none of those while another worker claims. With what is known of all
        where they may take something from each other, or from what others claim next: their places are given before anybody else claims."""
        if not reservations.lock(conn):
            return stale, None
        claimed = stale
        if len(stale) < size:
            claimed = stale + claims.claim(conn, self.worker_id, self.clock(), size - len(stale))
        if not claimed or not reservations.contested(conn, publish.book(conn), claimed):
            return claimed, None
        return claimed, self.preparer.gather(conn, claimed, self.clock(), reserving=True)

    def _any_due(self) -> bool:
        return self.database.do(lambda conn: claims.any_due(conn, self.clock()))

    def _forget(self, tokens: Sequence[UUID]) -> int:
        return self.database.do(lambda conn: claims.forget(conn, self.worker_id, tokens))

    def _stop(self) -> None:
        self.database.do(lambda conn: claims.stop(conn, self.worker_id))

    async def _in_thread(self, function: Callable, *args: Any) -> Any:
        return await self.loop.run_in_executor(self.threads, function, *args)

    async def _pause(self, seconds: float, event: asyncio.Event | None = None) -> None:
        """Until `event`, or for `seconds`; no longer than it takes to notice that the worker is to stop."""
        end = self.loop.time() + seconds
        while (left := end - self.loop.time()) > 0 and not self.stopping():
            if event is None:
                await asyncio.sleep(min(left, 0.2))
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, 0.2)):
                    await event.wait()
                event.clear()
                return


# What a process keeps between runs. Taken out while a run uses it, as it belongs to one thread at a time.
_preparers: WeakKeyDictionary[Engine, Preparer] = WeakKeyDictionary()
