"""Sending what is due: one asyncio loop with many connections, one statement for all that are ready (DESIGN.md 8).

    claim, facts, turns ─▶ gates, render, MAIL RCPT DATA body ─▶ in_dot ─▶ the final dot ─▶ settle
    in bulk                per courier                           in bulk   per courier      in bulk

Each transport has a line of its own: a feeder that claims ahead and reads what the gates need to know, and couriers. A relay that is dead,
slow or paused holds up its own line only. All share the gatekeeper, who commits `in_dot` for whoever has handed over a body, and the
bookkeeper, who settles what came of it. Whatever talks to the database or to Redis runs in a thread, so that no connection waits for a
statement it did not ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Row, select

from app.config import Settings
from app.errors import NotFound, SettingError
from app.flow import claims, publish, reservations, transports
from app.flow.claims import Heartbeat, recover
from app.flow.couriers import SIGNERS, Couriers, Turn
from app.flow.keepers import AWAY, Bookkeeper, Gatekeeper, Held
from app.flow.links import Keyring, Links, load_keyring
from app.flow.outcome import Outcome
from app.flow.prepare import Facts, Preparer
from app.flow.transports import Lane, Seen, Way
from app.models import installation
from app.pacing import HORIZON, Asked, Granted, Pacer
from app.providers import Transport
from app.providers.outbox import OutboxTransport
from app.queue import Bells
from app.rules.delivery import Ending, Limits
from app.rules.lanes import Pace
from app.rules.lifecycle import DEFAULT

__all__ = ["Limits", "recover", "run", "transport_for"]

LOOK = 1.0  # seconds between two looks at how the transports and their lanes stand
AT_ONCE = 0.002  # seconds that are not worth a wait
QUEUED = 4  # letters that may wait here for each connection towards a provider

log = logging.getLogger("nurture.deliver")


def run(
    engine: Engine,
    settings: Settings,
    worker_id: UUID,
    clock: Callable[[], datetime],
    bells: Bells,
    *,
    transport: Transport | Mapping[str, Transport] | None = None,
    limits: Limits | None = None,
    stopping: Callable[[], bool] = lambda: False,
    rung: threading.Event | None = None,
) -> int:
    """Sends all mail that is due, and what falls due meanwhile; returns how many messages the relays took.

    Claims commit before the wire, `in_dot` before the final dot, results after it (invariants 4 to 6). A relay that cannot be reached is
    tried again with growing pauses, without claiming anything for it; one whose setting is wrong is paused (2.1). A database that goes
    away is waited for, and results are written when it is back. Ends when nothing is due, when `stopping()` says so, or after
    `limits.horizon` seconds with a ring for the next run. Never raises for what a relay, a recipient or a template does.

    With `rung` it lingers when nothing is due, its connections open, for `limits.idle` seconds: whoever sets the event has it look again,
    which spares the next mail the way to the relay. `transport` takes the place of the installation's: one that carries everything, or
    several by name.
    """
    limits = limits or Limits()
    return asyncio.run(_Run(engine, settings, worker_id, clock, bells, transport, limits, stopping, rung).run())


def transport_for(settings: Settings, engine: Engine, clock: Callable[[], datetime], limits: Limits, way: Way | None = None) -> Transport:
    """The relay of a transport as it stands, of the default one if none is named; without a relay, the local outbox. Raises
    SettingError."""
    if way is None:
        with engine.connect() as conn:
            way = transports.ways(conn, settings, clock())[DEFAULT]
    if way.url is None:
        return OutboxTransport(engine, clock, limits.connections or OUTBOX_CONNECTIONS)
    host = settings.base_host
    literal = f"[{host}]" if host.replace(".", "").isdigit() else "localhost"
    hello = host if host.isascii() and ":" not in host and not host.replace(".", "").isdigit() else literal
    return way.relay(settings, hello, limits.connections)


OUTBOX_CONNECTIONS = 4


@dataclass(slots=True)
class Standing:
    """How the transports of the installation stood at the last look, with their lanes, and how many workers send."""

    ways: Mapping[str, Way]
    lanes: Mapping[str, Mapping[str, Lane]]
    names: Mapping[str, Sequence[str]]  # what each of them carries: its own mail, and the default one what nobody else does
    workers: int = 1

    @property
    def open(self) -> list[str]:
        return [name for name, way in self.ways.items() if way.closed is None and way.problem is None]


class _Run:
    """One run over all transports. Everything in it belongs to the loop's thread, except what says otherwise."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        worker_id: UUID,
        clock: Callable[[], datetime],
        bells: Bells,
        transport: Transport | Mapping[str, Transport] | None,
        limits: Limits,
        stopping: Callable[[], bool],
        rung: threading.Event | None,
    ):
        self.engine, self.settings, self.worker_id, self.clock, self.bells = engine, settings, worker_id, clock, bells
        self.given = transport if transport is None or isinstance(transport, Mapping) else {DEFAULT: transport}
        self.carries_all = transport is not None and not isinstance(transport, Mapping)
        self.limits, self.stopping, self.rung = limits, stopping, rung
        self.threads = ThreadPoolExecutor(6, "deliver")
        self.pens = ThreadPoolExecutor(SIGNERS, "sign")
        self.database = Held(engine)
        self.pacer = Pacer(settings.redis_url, worker_id, lambda: self.standing.workers)
        self.one_at_a_time = asyncio.Lock()  # what reads and claims: one connection, one preparer
        self.changed = False  # a transport came, went or moved: the next run sees it

    async def run(self) -> int:
        self.loop = asyncio.get_running_loop()
        self.until = self.loop.time() + self.limits.horizon
        try:
            self.preparer = await self.in_thread(self._begin)
            if self.preparer is None:
                return 0
            with Heartbeat(self.engine, self.worker_id, self.limits.heartbeat):
                taken = await self._deliver()
            _preparers[self.engine] = self.preparer
            return taken
        finally:
            self.database.close()
            self.pacer.close()
            self.threads.shutdown()
            self.pens.shutdown()

    async def _deliver(self) -> int:
        self.lines: list[_Line] = []
        self.books = Bookkeeper(
            self.engine, self.clock, self.bells, self.preparer.partitions, self.threads, self.limits, self._written, self._note
        )
        carriers = {name: self._carrier(name) for name in self.standing.ways}
        carriers = {name: carrier for name, carrier in carriers.items() if carrier is not None}
        connections = sum(carrier.connections for carrier in carriers.values())
        enough = max(1, min(connections, 32) * 3 // 4)
        self.gate = Gatekeeper(self.engine, self.clock, self.threads, self.limits, self.books.settle, enough)
        self.lines = [_Line(self, name, carrier) for name, carrier in carriers.items()]
        keepers = [asyncio.create_task(self.books.run(self._any_busy)), asyncio.create_task(self.gate.run(self._handing))]
        listener = [asyncio.create_task(self._listen())] if self.rung else []
        try:
            await self._while_all_work([asyncio.create_task(line.feed()) for line in self.lines], [*keepers, *listener])
        finally:
            for line in self.lines:
                line.couriers.give_back()
            await asyncio.gather(*(line.couriers.finish(self.stopping) for line in self.lines))
            self.books.finish(self.limits.farewell if self.stopping() else None)
            await keepers[0]
            for task in (keepers[1], *listener):
                task.cancel()
            await asyncio.gather(keepers[1], *listener, return_exceptions=True)
            await self.in_thread(self._release)
            with contextlib.suppress(*AWAY):
                await self.in_thread(self._stop)
        if self.loop.time() >= self.until or self.changed:
            self.bells.deliver()
        return sum(line.couriers.taken for line in self.lines)

    def _carrier(self, name: str) -> Transport | None:
        if self.given is not None:
            return self.given.get(name)
        way = self.standing.ways[name]
        if way.problem:
            log.error("%s", way.problem)
            return None
        try:
            return transport_for(self.settings, self.engine, self.clock, self.limits, way)
        except SettingError as error:
            log.error("transport %s: %s", name, error)
            return None

    async def _while_all_work(self, feeders: Sequence[asyncio.Task], keepers: Sequence[asyncio.Task]) -> None:
        """Until all feeders are done. Whoever fails meanwhile ends the run with his error, instead of leaving the others waiting."""
        workers = {*feeders, *keepers, *(task for line in self.lines for task in line.couriers.tasks)}
        try:
            while not all(feeder.done() for feeder in feeders):
                done, workers = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if not done <= set(feeders):
                    return
        finally:
            for feeder in feeders:
                if not feeder.done():
                    feeder.cancel()
            await asyncio.gather(*feeders, return_exceptions=True)

    async def _listen(self) -> None:
        """Has every line look again when somebody rings."""
        while True:
            if await self.in_thread(self.rung.wait, 0.5):
                self.rung.clear()
                for line in self.lines:
                    line.rang.set()

    def _written(self) -> None:
        for line in self.lines:
            line.hungry.set()

    def _any_busy(self) -> bool:
        return any(line.couriers.busy for line in self.lines)

    def _handing(self) -> int:
        return sum(line.couriers.handing for line in self.lines)

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
        kept.settings = self.settings
        return kept

    def _look(self, conn: Connection) -> tuple[set[int], Keyring, int] | None:
        self.standing = self._stand(conn)
        names = [name for line in self.standing.open for name in self.standing.names[line]]
        if not claims.any_due(conn, self.clock(), names):
            return None
        ring = claims.begin(conn, self.worker_id, self.clock())
        return ring, load_keyring(conn), conn.execute(select(installation.c.partitions)).scalar_one()

    def look_again(self, conn: Connection) -> None:
        """How everything stands now. Where a transport came, went or moved, the run ends, and the next one knows it."""
        before, self.standing = self.standing, self._stand(conn)
        if self.given is None and {name: _place(way) for name, way in before.ways.items()} != {
            name: _place(way) for name, way in self.standing.ways.items()
        }:
            self.changed = True

    def _stand(self, conn: Connection) -> Standing:
        now = self.clock()
        found = transports.ways(conn, self.settings, now)
        try:
            lifecycle = publish.book(conn).lifecycle
        except NotFound:
            lifecycle = None
        if self.given is not None:
            found = {name: replace(found.get(name, found[DEFAULT]), name=name, problem=None) for name in self.given}
            found = {name: replace(way, pace=Pace(getattr(self.given[name], "rate", None))) for name, way in found.items()}
        names: dict[str, Sequence[str]] = {name: (name,) for name in found}
        if DEFAULT in found:
            names[DEFAULT] = transports.names_of(found, lifecycle)
        lanes = {name: transports.lanes(conn, name, now) for name in found}
        return Standing(found, lanes, names, transports.workers(conn))

    def _note(self, conn: Connection, outcomes: Sequence[Outcome]) -> None:
        """What results say about transports and lanes. In the bookkeeper's transaction."""
        standing = self.standing
        known = {(name, provider): lane for name, found in standing.lanes.items() for provider, lane in found.items()}
        struck = {name for name, way in standing.ways.items() if way.strikes or way.recovering}
        if not known and not struck and not any(one.ending.ours or one.ending.slows for one in outcomes):
            return
        seen = [_seen(one, standing.ways[one.transport]) for one in outcomes if one.address and one.transport in standing.ways]
        for name in {one.transport for one in seen if one.taken} & {name for name in struck if standing.ways[name].recovering}:
            transports.works(conn, name)
        transports.note(conn, seen, known, struck, self.clock())

    def _release(self) -> None:
        for line in self.lines:
            self.pacer.release(line.name, line.limited)

    def _stop(self) -> None:
        self.database.do(lambda conn: claims.stop(conn, self.worker_id))

    async def in_thread(self, function: Callable, *args: Any) -> Any:
        return await self.loop.run_in_executor(self.threads, function, *args)

    async def pause(self, seconds: float, event: asyncio.Event | None = None) -> None:
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


class _Line:
    """One transport of a run: its feeder and its couriers."""

    def __init__(self, run: _Run, name: str, transport: Transport):
        self.run, self.name, self.transport, self.limits = run, name, transport, run.limits
        self.hungry, self.rang = asyncio.Event(), asyncio.Event()
        self.couriers = Couriers(
            transport,
            run.limits,
            run.clock,
            partial(run.preparer.make, service=transport.service),
            run.gate.permitted,
            run.books.settle,
            self.hungry.set,
            run.pens,
            name,
            lambda address: self.way.providers.of(address),
        )
        self.limited: set[str] = set()  # providers that were asked about
        self.resting_since: float | None = None
        self._looked_at = run.loop.time()
        self._claim_at = 0.0  # until then the relay is as busy as it may be
        if self.way.pace.limits:
            self.couriers.allowed = 0  # until the first lease

    @property
    def way(self) -> Way:
        return self.run.standing.ways.get(self.name) or replace(self.run.standing.ways[DEFAULT], closed="removed")

    async def feed(self) -> None:
        """Claims what the couriers can carry, until nothing is due on any line."""
        run, couriers, doubt = self.run, self.couriers, False
        while not run.stopping() and run.loop.time() < run.until and not run.changed:
            try:
                if couriers.misset is not None:
                    await self._shut()
                if couriers.struck:
                    await self._see_strikes()
                elif run.loop.time() - self._looked_at >= LOOK:
                    await self._in_turn(self._look)
                if self.way.closed:
                    if not await self._sit_out():
                        return
                    continue
                if (couriers.unreachable or not couriers.connected) and not await self._reach():
                    if not await self._in_turn(self._any_due) and not await self._linger():
                        return
                    continue
                if not couriers.allowed and not await self._in_turn(self._lease, self.transport.connections):
                    await run.pause(0.25)
                    continue
                size = self._size()
                if len(couriers.ready) >= max(size // 2, self.transport.connections):
                    await run.pause(self.limits.poll, self.hungry)
                    continue
                if (left := self._claim_at - run.loop.time()) > 0:
                    await run.pause(min(left, LOOK))
                    continue
                self.rang.clear()  # before the look: what falls due after it rings again
                if doubt:
                    await self._in_turn(self._forget)
                    doubt = False
                claimed, served = await self._in_turn(self._fetch, couriers.take_stale(), size)
            except AWAY as error:
                log.warning("the database is away: %s", error.orig)
                doubt = True
                await run.pause(0.2)
                continue
            if served is not None:
                couriers.serve(*served)
            if claimed < size:
                if not self._is_busy():
                    if await self._linger():
                        continue
                    return
                # Nothing more is due. Whoever still carries a letter may do so for minutes; new mail falls due meanwhile.
                look = run.loop.time() + self.limits.poll
                while self._is_busy() and (left := look - run.loop.time()) > 0 and not run.stopping():
                    await run.pause(left, self.hungry)

    def _size(self) -> int:
        """How many to claim: what goes in a quarter of a second at the present rate, and no more than the transport lets go in half its
        horizon, as nobody else could have them meanwhile."""
        size, rate = self.couriers.rate.batch(2 * self.transport.connections, self.limits.batch), self.way.pace.rate
        return size if rate is None else min(size, max(1, int(rate * HORIZON / 2)))

    async def _linger(self) -> bool:
        """Nothing is due here. Whether to look again: somebody rang, or other lines still work. False when all have rested for long."""
        run, was_closed = self.run, self.way.closed is not None
        self.resting_since = run.loop.time()
        try:
            while not run.stopping() and run.loop.time() < run.until and not run.changed:
                if self.rang.is_set():
                    return True
                rests = [line.resting_since for line in run.lines]
                idle = self.limits.idle if run.rung else 0.0
                if None not in rests and not self._is_busy() and run.loop.time() - max(rests) >= idle:
                    return False
                if not run.rung and run.loop.time() - self.resting_since >= self.limits.poll:
                    return True
                if run.loop.time() - self._looked_at >= LOOK:
                    with contextlib.suppress(*AWAY):
                        await self._in_turn(self._look)
                    if self.way.closed is None and self.couriers.misset is None and was_closed:
                        return True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.25 if run.rung else self.limits.poll):
                        await self.rang.wait()
            return False
        finally:
            if self.rang.is_set() or None in [line.resting_since for line in run.lines]:
                self.resting_since = None

    def _is_busy(self) -> bool:
        return self.couriers.busy or self.run.books.busy

    async def _reach(self) -> bool:
        """A relay that cannot be reached costs one attempt now and then, and nothing is claimed for it."""
        if self.couriers.fruitless:
            patience = self.limits.patience
            await self.run.pause(patience[min(self.couriers.fruitless, len(patience)) - 1])
        return await self.couriers.reach()

    async def _shut(self) -> None:
        """Only another setting can help: nothing goes over this transport for a while."""
        said, self.couriers.misset = str(self.couriers.misset), None
        self.couriers.give_back()
        await self._in_turn(self._pause_for_setting, said)

    async def _see_strikes(self) -> None:
        """Nothing is claimed before the refusals are written down and what follows from them is known."""
        while self.run.books.busy and not self.run.stopping():
            await self.run.pause(0.05)
        self.couriers.struck = False
        await self._in_turn(self._look)

    async def _sit_out(self) -> bool:
        """Paused or switched off: what is claimed goes back, and everything waits. Whether to go on looking."""
        self.couriers.give_back()
        self.couriers.unreachable, self.couriers.fruitless = None, 0
        return await self._linger()

    async def _in_turn(self, function: Callable, *args: Any) -> Any:
        async with self.run.one_at_a_time:
            return await self.run.in_thread(function, *args)

    # In a thread, one at a time:

    def _look(self) -> None:
        """How everything stands now. The leases go on: for those who have nothing to carry, of the connections that are open."""
        self._looked_at = self.run.loop.time()
        self.run.database.do(self.run.look_again)
        if self.way.pace.limits and self.way.closed is None and self.couriers.allowed:
            self._lease(self.transport.connections if self.couriers.busy else max(1, self.couriers.connected))

    def _pause_for_setting(self, said: str) -> None:
        def shut(conn: Connection) -> None:
            transports.pause_for_setting(conn, self.name, said, self.run.clock())
            self.run.look_again(conn)

        self.run.database.do(shut)

    def _lease(self, connections: int) -> int:
        """Asks for connections. Returns how many there are."""
        granted = self.run.pacer.ask(Asked(self.name, self.way.pace, connections))
        self.couriers.allowed = granted.connections
        return granted.connections

    def _fetch(self, stale: list[Row], size: int) -> tuple[int, tuple | None]:
        """Claims more messages and reads what is known of them, and of the claims that waited too long. Returns how many are claimed, and
        what the couriers get.

        Where one may take something from another that is one transaction, and one worker at a time, so that of all that is due the higher
        priority takes its place first.
        """
        run, claimed = self.run, stale
        try:
            taken, facts = run.database.do(lambda conn: self._claim(conn, stale, size))
            if taken and facts is None:
                claimed = taken
                facts = run.database.do(lambda conn: run.preparer.gather(conn, claimed, run.clock(), reserving=False))
            if not taken:
                return 0, None
            return len(taken), self._paced(taken, facts)
        except BaseException:
            # Nothing of these has touched the wire.
            self._put_off([Outcome(row, Ending("due", None), run.clock()) for row in claimed])
            raise

    def _claim(self, conn: Connection, stale: list[Row], size: int) -> tuple[list[Row], Facts | None]:
        """The stale claims and as many new ones as make up `size`; none of those while another worker claims. With what is known of all
        where they may take something from each other, or from what others claim next: their places are given before anybody else claims."""
        run = self.run
        if not reservations.lock(conn):
            return stale, None
        claimed = stale
        if len(stale) < size:
            names = run.standing.names[self.name]
            claimed = stale + claims.claim(conn, run.worker_id, run.clock(), size - len(stale), names)
        if not claimed or not reservations.contested(conn, publish.book(conn), claimed):
            return claimed, None
        return claimed, run.preparer.gather(conn, claimed, run.clock(), reserving=True)

    def _paced(self, rows: Sequence[Row], facts: Facts) -> tuple[Sequence[Row], Facts, Mapping[UUID, Turn]]:
        """Gives each message its turn, by one question to Redis for all. What must not go now is put off with its reason."""
        way, found, now = self.way, self.run.standing.lanes.get(self.name, {}), self.run.clock()
        if not way.pace.limits and not found and not way.providers.paces:
            return rows, facts, {}
        off: list[Outcome] = []
        going: list[tuple[Row, str]] = []
        paces: dict[str, Pace] = {}
        told_apart = bool(found or way.providers.paces)
        for row in rows:
            contact = facts.of(row)[2] if told_apart else None
            provider = way.providers.of(contact.address) if contact is not None and contact.address else ""
            lane = found.get(provider)
            if lane is not None and lane.paused(now):
                off.append(_waits(row, "lane_paused", lane.paused_until, provider, now))
                continue
            if provider not in paces:
                paces[provider] = transports.pace_of(way, found, provider, now)
            going.append((row, provider))
        lanes = {provider: pace for provider, pace in paces.items() if pace.limits}
        self.limited.update(lanes)
        granted = self.run.pacer.ask(Asked(self.name, way.pace, self.transport.connections, lanes, [provider for _, provider in going]))
        kept, turns = self._turns(going, granted, off, now)
        self._put_off(off)
        return kept, facts, turns

    def _turns(
        self, going: Sequence[tuple[Row, str]], granted: Granted, off: list[Outcome], now: datetime
    ) -> tuple[list[Row], dict[UUID, Turn]]:
        start, rate = self.run.loop.time(), self.way.pace.rate
        self.couriers.allowed, self.couriers.rooms = granted.connections, granted.lanes
        self._claim_at = start + granted.wait
        room = {provider: QUEUED * many - self.couriers.waiting_for(provider) for provider, many in granted.lanes.items()}
        behind: dict[str, int] = {}
        kept, turns = [], {}
        for (row, provider), slot, wait in zip(going, granted.slots, granted.waits, strict=True):
            limited = provider if provider in room else None
            if slot is not None and limited is not None and room[limited] <= 0:
                slot, wait = None, LOOK
            if slot is None:
                # One behind the other, so that they do not all come back at once.
                lane_rate = self.way.providers.pace(provider).rate if limited else None
                step = 1 / (lane_rate or rate or 10)
                behind[provider] = behind.get(provider, -1) + 1
                off.append(_waits(row, "throttled", now + timedelta(seconds=wait + step * behind[provider]), provider, now))
                continue
            if limited is not None:
                room[limited] -= 1
            if limited is not None or slot > AT_ONCE:
                turns[row.claim] = Turn(start + slot, limited)
            kept.append(row)
        return kept, turns

    def _put_off(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            self.run.loop.call_soon_threadsafe(self.run.books.settle, outcomes)

    def _any_due(self) -> bool:
        names = self.run.standing.names[self.name]
        return self.run.database.do(lambda conn: claims.any_due(conn, self.run.clock(), names))

    def _forget(self) -> int:
        tokens = [token for line in self.run.lines for token in line.couriers.tokens()]
        return self.run.database.do(lambda conn: claims.forget(conn, self.run.worker_id, tokens))


def _waits(row: Row, reason: str, until: datetime, provider: str, now: datetime) -> Outcome:
    """Not beyond the end: whatever still waits then is looked at once more, and skipped as expired."""
    evidence = {"provider": provider, "until": until.isoformat()}
    return Outcome(row, Ending("due", reason, due_at=min(until, max(row.expires_at, now))), now, evidence=evidence)


def _seen(one: Outcome, way: Way) -> Seen:
    ending = one.ending
    sender = ending.ours and one.evidence.get("phase") == "mail"
    return Seen(
        one.transport,
        way.providers.of(one.address),
        ours=ending.ours and not sender,
        slows=ending.slows,
        sender=sender,
        taken=ending.state == "sent",
        reply=one.reply,
    )


def _place(way: Way) -> tuple:
    """What a run cannot change of a transport while it uses it."""
    return way.url, way.problem, way.pace.connections, way.letters, way.idle, way.size, way.reset, way.timeouts


# What a process keeps between runs. Taken out while a run uses it, as it belongs to one thread at a time.
_preparers: WeakKeyDictionary[Engine, Preparer] = WeakKeyDictionary()
