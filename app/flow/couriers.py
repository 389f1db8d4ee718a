"""The couriers: each carries one letter at a time over a connection of its own, and says what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Row

from app.errors import SendError
from app.flow.outcome import Outcome
from app.flow.prepare import Prepared
from app.providers import Connection, Transport
from app.rules.delivery import SENT, Ending, Limits, about_the_relay, ending

log = logging.getLogger("nurture.deliver")


class Couriers:
    """All connections of a run and the letters that wait for one.

    `permitted` is asked between a letter's body and its final dot; `settle` gets what came of each letter; `hungry` is called when more
    letters would be welcome. `stale` are claims whose gates must be asked again, as they waited too long. `unreachable` is set while the
    relay takes nothing from anybody; `taken` counts what it took.
    """

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        clock: Callable[[], datetime],
        permitted: Callable[[Prepared], Awaitable[bool]],
        settle: Callable[[Sequence[Outcome]], None],
        hungry: Callable[[], None],
    ):
        self.transport, self.limits, self.clock = transport, limits, clock
        self.permitted, self.settle, self.hungry = permitted, settle, hungry
        self.loop = asyncio.get_running_loop()
        self.ready: deque[Prepared] = deque()
        self.stale: list[Row] = []
        self.carrying: set[UUID] = set()  # the tokens of the letters in somebody's hands
        self.connected = 0
        self.taken = 0
        self.fruitless = 0  # attempts to use the relay since something last went well
        self.unreachable: SendError | None = None
        self.rate = Rate()
        self._spare: list[Connection] = []
        self._free: deque[asyncio.Future] = deque()
        self._over = asyncio.Event()
        self._tasks = [asyncio.create_task(self._courier()) for _ in range(transport.connections)]

    @property
    def busy(self) -> bool:
        return bool(self.carrying or self.ready or self.stale)

    @property
    def tasks(self) -> Sequence[asyncio.Task]:
        """One per courier; each ends only when the run does, or when our own code is wrong."""
        return self._tasks

    def serve(self, letters: Iterable[Prepared]) -> None:
        """More letters to carry."""
        self.ready.extend(letters)
        for _ in range(min(len(self.ready), len(self._free))):
            self._wake_one()

    def tokens(self) -> list[UUID]:
        """The tokens of all claims that are waiting or in somebody's hands."""
        return [*self.carrying, *(one.ready.claimed.claim for one in self.ready), *(row.claim for row in self.stale)]

    def take_stale(self) -> list[Row]:
        stale, self.stale = self.stale, []
        return stale

    async def reach(self) -> bool:
        """Opens a connection ahead of the letters, to see whether the relay can be reached at all."""
        try:
            self._spare.append(await self.transport.open())
        except SendError as error:
            self._is_unreachable(error)
            return False
        self.connected += 1
        self.unreachable = None
        return True

    def give_back(self) -> None:
        """What nobody carries yet is due again."""
        rows = [*(one.ready.claimed for one in self.ready), *self.stale]
        self.ready.clear()
        self.stale.clear()
        self.settle([self._given_back(row) for row in rows])

    async def finish(self, stopping: Callable[[], bool]) -> None:
        """Lets everybody end what he carries. When the worker is to stop, those who hang in their dot are cut off after a while, and
        their mail is unknown."""
        self._over.set()
        self._wake_all()
        pending, deadline = set(self._tasks), None
        while pending:
            _, pending = await asyncio.wait(pending, timeout=0.2)
            if deadline is None and stopping():
                deadline = self.loop.time() + self.limits.farewell
            if deadline is not None and self.loop.time() >= deadline:
                for task in pending:
                    task.cancel()
        await asyncio.gather(*(connection.close() for connection in self._spare))
        for task in self._tasks:
            if not task.cancelled() and task.exception():
                log.error("a courier failed", exc_info=task.exception())

    async def _courier(self) -> None:
        connection: Connection | None = None
        while (letter := await self._next(connection)) is not None:
            if letter is _IDLE:
                connection = await self._close(connection)
                continue
            token = letter.ready.claimed.claim
            self.carrying.add(token)
            try:
                connection = await self._carry(letter, connection)
            finally:
                self.carrying.discard(token)
                self.hungry()
            if connection is _CROWDED:
                connection = None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), self.limits.back_off)
        await self._close(connection)

    async def _next(self, connection: Connection | None) -> Prepared | None:
        """The next letter whose gates were asked a moment ago; None when the run is over."""
        while not self._over.is_set():
            while self.ready:
                letter = self.ready.popleft()
                if len(self.ready) < self.transport.connections:
                    self.hungry()
                if self._is_fresh(letter):
                    return letter
            future = self.loop.create_future()
            self._free.append(future)
            alarm = self.loop.call_later(self.limits.idle, _tell, future, _IDLE)
            try:
                if await future is _IDLE and connection is not None:
                    return _IDLE
            finally:
                alarm.cancel()
        return None

    def _is_fresh(self, letter: Prepared) -> bool:
        if time.monotonic() - letter.judged <= self.limits.fresh:
            return True
        self.stale.append(letter.ready.claimed)
        self.hungry()
        return False

    async def _carry(self, letter: Prepared, connection: Connection | None) -> Connection | None:
        """One letter, to its end. Returns the connection if it is good for another."""
        phase = "body"
        try:
            while True:
                if connection is None or not connection.usable:
                    self._drop(connection)
                    connection = None
                    connection = await self._open(letter)
                    if connection is None or connection is _CROWDED:
                        return connection
                    if not self._is_fresh(letter):
                        return connection
                try:
                    await connection.begin(letter.letter)
                    break
                except SendError as error:
                    if not (error.code is None and error.phase == "mail" and connection.carried > 1):
                        raise
                    # The relay had ended a connection that was idle. It has nothing of this letter, so a new one takes it.
            if not await self.permitted(letter):
                self._drop(connection)
                return None
            phase = "dot"
            reply = await connection.finish()
        except SendError as error:
            return self._failed(letter, connection, error)
        except asyncio.CancelledError:
            # Cut off by a worker that has to stop.
            self._drop(connection)
            if phase == "dot":
                self._failed(letter, None, SendError("unknown", "dot", "the worker was stopped before the relay answered"))
            else:
                self.settle([self._given_back(letter.ready.claimed)])
            raise
        except Exception as error:
            # A fault of our own costs this letter its turn, never the run. Before the dot it is surely unsent (invariant 12).
            log.exception("carrying message %s raised", letter.letter.message_id)
            self._drop(connection)
            what = "unknown" if phase == "dot" else "temp"
            return self._failed(letter, None, SendError(what, phase, f"{type(error).__name__}: {error}"[:300]))
        self.taken += 1
        self._went_on()
        self.settle([Outcome(letter.ready.claimed, SENT, self.clock(), reply=reply)])
        return connection

    async def _open(self, letter: Prepared) -> Connection | None:
        """A new connection. If there is none to be had the letter goes back: to the others, if they have one."""
        if self._spare:
            return self._spare.pop()
        try:
            connection = await self.transport.open()
        except SendError as error:
            self.ready.appendleft(letter)
            if self.connected:
                log.info("the relay wants no more than %d connections: %s", self.connected, error)
                self._wake_one()
                return _CROWDED
            self._is_unreachable(error)
            self.give_back()
            return None
        self.connected += 1
        return connection

    def _failed(self, letter: Prepared, connection: Connection | None, error: SendError) -> Connection | None:
        row, now = letter.ready.claimed, self.clock()
        if about_the_relay(error):
            self._drop(connection)
            self._is_unreachable(error)
            self.settle([self._given_back(row)])
            return None
        self._went_on()
        end = ending(error, row.id, row.attempts + 1, now, row.expires_at)
        said = f"{error.code} {error.text}" if error.code else error.text
        self.settle([Outcome(row, end, now, evidence={"phase": error.phase}, reply=said, person=letter.ready.person)])
        if connection is not None and connection.usable:
            return connection
        self._drop(connection)
        return None

    def _given_back(self, row: Row) -> Outcome:
        """The message was not sent, for a reason that is not its own: due again, and the attempt does not count."""
        error, now = self.unreachable, self.clock()
        if error is None:
            return Outcome(row, Ending("due", None), now)
        later = now + timedelta(seconds=self.limits.back_off)
        return Outcome(row, Ending("due", "relay_unavailable", due_at=later), now, evidence={"phase": error.phase}, reply=str(error)[:500])

    def _is_unreachable(self, error: SendError) -> None:
        if self.unreachable is None or not self.fruitless:
            log.warning("the relay takes nothing: %s", error)
        self.unreachable = error
        self.fruitless += 1

    def _went_on(self) -> None:
        self.fruitless = 0
        self.rate.count()

    def _drop(self, connection: Connection | None) -> None:
        if connection is not None:
            connection.drop()
            self.connected -= 1

    async def _close(self, connection: Connection | None) -> None:
        if connection is not None:
            await connection.close()
            self.connected -= 1

    def _wake_one(self) -> None:
        while self._free:
            future = self._free.popleft()
            if not future.done():
                future.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._free:
            self._wake_one()


class Rate:
    """How many messages went in the last quarter of a second: what is claimed ahead lasts for about as long, so that the yes of the
    gates stays fresh."""

    def __init__(self) -> None:
        self._since, self._count, self._last = time.monotonic(), 0, 0.0

    def count(self) -> None:
        self._count += 1
        passed = time.monotonic() - self._since
        if passed >= 0.25:
            self._last = self._count / passed
            self._since, self._count = time.monotonic(), 0

    def batch(self, least: int, most: int) -> int:
        return max(min(int(self._last / 4), most), least)


# What stands in the place of a letter or a connection: nothing came for long; the relay wants no more connections.
_IDLE = object()
_CROWDED = object()


def _tell(future: asyncio.Future, what: object) -> None:
    if not future.done():
        future.set_result(what)
