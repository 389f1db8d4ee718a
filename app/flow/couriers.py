"""The couriers: each carries one letter at a time over a connection of its own, and says what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from uuid import UUID

from sqlalchemy import Row

from app.errors import SendError
from app.flow.outcome import Outcome
from app.flow.prepare import Facts, Prepared, not_prepared
from app.providers import Connection, Transport
from app.rules.delivery import SENT, Ending, Limits, about_the_relay, about_the_setting, ending, enhanced
from app.rules.lanes import STRIKES
from app.rules.lifecycle import DEFAULT

EMPTY: Mapping = MappingProxyType({})
WRITTEN_AT_ONCE = 4  # about a millisecond, in which nobody else has a turn
SIGNED_AT_ONCE = 8
SIGNERS = 2  # threads: one signs about as fast as one loop sends

log = logging.getLogger("nurture.deliver")


@dataclass(frozen=True, slots=True)
class Turn:
    """When a message may go at the earliest, by the loop's clock, and which limited provider it goes to, if any (S-15)."""

    at: float
    provider: str | None


class Couriers:
    """All connections of a run over one transport and the letters that wait for one.

    `make` asks the gates and writes a letter; a few are written ahead, so that there is work while the couriers wait for answers. What
    has a signer is signed by `threads`, several at a time, before a courier takes it.
    `permitted` is asked between a letter's body and its final dot; `settle` gets what came of it; `hungry` is called when more claims
    would be welcome. `stale` are claims whose facts have grown old while they waited. `unreachable` is set while the relay takes nothing
    from anybody, `misset` where only another setting can help; `taken` counts what it took.

    `allowed` is how many connections may be open, `rooms` how many letters may be on their way to each limited provider at once;
    `turns` says of a claim's token when its letter may go. Without a turn it may go at once.
    """

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        clock: Callable[[], datetime],
        make: Callable[[Facts, Row, datetime], Prepared | Outcome],
        permitted: Callable[[Prepared], Awaitable[bool]],
        settle: Callable[[Sequence[Outcome]], None],
        hungry: Callable[[], None],
        threads: Executor,
        name: str = DEFAULT,
        provider_of: Callable[[str], str] = lambda address: address.rpartition("@")[2],
    ):
        self.threads = threads
        self.name, self.provider_of = name, provider_of
        self.idle = getattr(transport, "idle", limits.idle)
        self.transport, self.limits, self.clock = transport, limits, clock
        self.make, self.permitted, self.settle, self.hungry = make, permitted, settle, hungry
        self.loop = asyncio.get_running_loop()
        self.ready: deque[tuple[Row, Facts]] = deque()
        self.unsigned: deque[tuple[Prepared, Facts]] = deque()
        self.signing: dict[UUID, tuple[Prepared, Facts]] = {}  # by token; who is taken out meanwhile was given back
        self.letters: deque[tuple[Prepared, Facts]] = deque()
        self.stale: list[Row] = []
        self.carrying: set[UUID] = set()  # the tokens of the letters in somebody's hands
        self.handing = 0  # letters on their way to their dot
        self.connected = 0
        self.taken = 0
        self.fruitless = 0  # attempts to use the relay since something last went well
        self.unreachable: SendError | None = None
        self.misset: SendError | None = None
        self.strikes: Counter[str] = Counter()  # refusals of us in a row by provider, "" for those of us as a sender
        self.struck = False  # somebody refused us too often in a row: the feeder looks how the lanes stand before it claims again
        self.allowed = transport.connections
        self.rooms: Mapping[str, int] = {}
        self.turns: dict[UUID, Turn] = {}
        self.towards: Counter[str] = Counter()  # letters in somebody's hands, by limited provider
        self._opening = 0
        self._alarm: asyncio.TimerHandle | None = None
        self.rate = Rate()
        self._spare: list[Connection] = []
        self._crowded_until = 0.0
        self._free: deque[asyncio.Future] = deque()
        self._over = asyncio.Event()
        self._to_write = asyncio.Event()
        self._to_sign = asyncio.Event()
        self._writers = [asyncio.create_task(self._write()), *(asyncio.create_task(self._sign()) for _ in range(SIGNERS))]
        self._tasks = [asyncio.create_task(self._courier()) for _ in range(transport.connections)]

    @property
    def busy(self) -> bool:
        return bool(self.carrying or self.ready or self.unsigned or self.signing or self.letters or self.stale)

    @property
    def tasks(self) -> Sequence[asyncio.Task]:
        """The writer, the signers and the couriers; each ends only when the run does, or when our own code is wrong."""
        return [*self._writers, *self._tasks]

    def serve(self, claimed: Iterable[Row], facts: Facts, turns: Mapping[UUID, Turn] = EMPTY) -> None:
        """More letters to carry."""
        self.turns |= turns
        self.ready.extend((row, facts) for row in claimed)
        self._to_write.set()

    def tokens(self) -> list[UUID]:
        """The tokens of all claims that are waiting or in somebody's hands."""
        return [*self.carrying, *(row.claim for row in self._waiting())]

    def waiting_for(self, provider: str) -> int:
        """How many letters to a limited provider wait here or are on their way."""
        return self.towards[provider] + sum(turn.provider == provider for turn in self.turns.values())

    def take_stale(self) -> list[Row]:
        stale, self.stale = self.stale, []
        return stale

    async def reach(self) -> bool:
        """Opens a connection ahead of the letters, to see whether the relay can be reached at all."""
        try:
            self._spare.append(await self._connect())
        except SendError as error:
            self._is_unreachable(error)
            return False
        self.unreachable = None
        return True

    def give_back(self) -> None:
        """What nobody carries yet is due again."""
        rows = self._waiting()
        for held in (self.ready, self.unsigned, self.signing, self.letters, self.stale, self.turns):
            held.clear()
        self.settle([self._given_back(row) for row in rows])

    async def finish(self, stopping: Callable[[], bool]) -> None:
        """Lets everybody end what he carries. When the worker is to stop, those who hang in their dot are cut off after a while, and
        their mail is unknown."""
        self._over.set()
        self._to_write.set()
        self._to_sign.set()
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

    def _waiting(self) -> list[Row]:
        written = (*self.unsigned, *self.signing.values(), *self.letters)
        return [*(row for row, _ in self.ready), *(one.ready.claimed for one, _ in written), *self.stale]

    async def _write(self) -> None:
        """Writes letters ahead of the couriers, one for each, letting everybody else have a turn after every few."""
        count = 0
        while not self._over.is_set():
            if not self.ready or len(self.letters) + len(self.unsigned) + len(self.signing) >= self.transport.connections:
                self._to_write.clear()
                self.hungry()
                await self._to_write.wait()
                continue
            row, facts = self.ready.popleft()
            if self._is_fresh(row, facts):
                made = self.make(facts, row, self.clock())
                if isinstance(made, Outcome):
                    self.turns.pop(row.claim, None)
                    self.settle([made])
                elif made.signer is not None:
                    self.unsigned.append((made, facts))
                    self._to_sign.set()
                else:
                    self.letters.append((made, facts))
                    self._wake_one()
            count += 1
            if count % WRITTEN_AT_ONCE == 0:
                self.hungry()
                await asyncio.sleep(0)

    async def _sign(self) -> None:
        """Has letters signed in a thread, as many as wait for it, up to a limit."""
        while not self._over.is_set():
            if not self.unsigned:
                self._to_sign.clear()
                await self._to_sign.wait()
                continue
            batch = [self.unsigned.popleft() for _ in range(min(len(self.unsigned), SIGNED_AT_ONCE))]
            self.signing |= {one.ready.claimed.claim: (one, facts) for one, facts in batch}
            signed = await self.loop.run_in_executor(self.threads, _signed, [one for one, _ in batch], self.clock())
            for (one, facts), made in zip(batch, signed, strict=True):
                if self.signing.pop(one.ready.claimed.claim, None) is None:
                    continue
                if isinstance(made, Outcome):
                    self.turns.pop(made.claimed.claim, None)
                    self.settle([made])
                else:
                    self.letters.append((made, facts))
                    self._wake_one()
            self._to_write.set()

    async def _courier(self) -> None:
        connection: Connection | None = None
        while (turn := await self._next(connection)) is not None:
            if turn is _IDLE:
                connection = await self._close(connection)
                continue
            letter, facts = turn
            token = letter.ready.claimed.claim
            limited = self.turns.pop(token, NO_TURN).provider
            self.towards[limited] += 1
            self.carrying.add(token)
            try:
                if connection is None or not connection.usable:
                    self._drop(connection)
                    connection = await self._open(letter, facts)
                if connection is not None and self._is_fresh(letter.ready.claimed, facts):
                    connection = await self._carry(letter, connection)
            finally:
                self.carrying.discard(token)
                self.towards[limited] -= 1
                if limited is not None and self.letters:
                    self._wake_one()
                self.hungry()
        await self._close(connection)

    async def _next(self, connection: Connection | None) -> tuple[Prepared, Facts] | None:
        """The next letter; None when the run is over."""
        while not self._over.is_set():
            if connection is not None and self.connected > self.allowed:
                return _IDLE
            if connection is None and self._is_full():
                self._wake_one()
                await self._rest(0.1)
                continue
            if connection is None and self._is_crowded():
                # The relay has just refused another connection: those who have one do the work for a while.
                self._wake_one()
                await self._rest(self._crowded_until - self.loop.time())
                continue
            if self.letters and (taken := self._take()) is not None:
                self._to_write.set()
                return taken
            future = self.loop.create_future()
            self._free.append(future)
            alarm = self.loop.call_later(self.idle, _tell, future, _IDLE)
            try:
                if await future is _IDLE and connection is not None:
                    return _IDLE
            finally:
                alarm.cancel()
        return None

    def _take(self) -> tuple[Prepared, Facts] | None:
        """The first letter whose turn has come and whose provider has room. What waits for so long that its facts are old waits for newer
        ones, and makes room for others."""
        if not self.turns:
            return self.letters.popleft()
        now, next_at = self.loop.time(), None
        for index, one in enumerate(self.letters):
            letter, facts = one
            turn = self.turns.get(letter.ready.claimed.claim, NO_TURN)
            if turn.at <= now and (turn.provider is None or self.towards[turn.provider] < self.rooms.get(turn.provider, 1)):
                del self.letters[index]
                return one
            if not self._is_fresh(letter.ready.claimed, facts):
                del self.letters[index]
                self._to_write.set()
                break
            if turn.at > now:
                next_at = turn.at if next_at is None else min(next_at, turn.at)
        self._wake_at(now + 0.1 if next_at is None else next_at)
        return None

    def _wake_at(self, moment: float) -> None:
        if self._alarm is not None:
            if not self._alarm.cancelled() and self.loop.time() < self._alarm.when() <= moment:
                return
            self._alarm.cancel()
        self._alarm = self.loop.call_at(moment, self._wake_one)

    def _is_full(self) -> bool:
        return not self._spare and self.connected + self._opening >= self.allowed

    def _is_fresh(self, row: Row, facts: Facts) -> bool:
        """Whether the gates may still be judged by `facts`; if not, the claim waits for newer ones."""
        if time.monotonic() - facts.at <= self.limits.fresh:
            return True
        self.turns.pop(row.claim, None)
        self.stale.append(row)
        return False

    async def _carry(self, letter: Prepared, connection: Connection | None) -> Connection | None:
        """One letter, to its end."""
        phase = "body"
        self.handing += 1
        try:
            while True:
                try:
                    await connection.begin(letter.letter)
                    break
                except SendError as error:
                    if not (error.code is None and error.phase == "mail" and connection.carried > 1):
                        raise
                    # The relay had ended a connection that was idle. It has nothing of this letter, so a new one takes it.
                    self._drop(connection)
                    connection = None
                    connection = await self._connect()
            permitted = await self.permitted(letter)
            self.handing -= 1
            phase = "permitted"
            if not permitted:
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
        finally:
            if phase == "body":
                self.handing -= 1
        self.taken += 1
        self._went_on()
        if self.strikes:
            self.strikes.pop(self.provider_of(letter.letter.recipient), None)
            self.strikes.pop("", None)
        end = replace(SENT, enhanced=enhanced(reply))
        self.settle([Outcome(letter.ready.claimed, end, self.clock(), reply=reply, transport=self.name, address=letter.letter.recipient)])
        return connection

    async def _open(self, letter: Prepared, facts: Facts) -> Connection | None:
        """A connection. If there is none to be had the letter goes back: to the others, if they have one."""
        if self._spare:
            return self._spare.pop()
        try:
            return await self._connect()
        except SendError as error:
            self.letters.appendleft((letter, facts))
            if self.connected:
                log.info("the relay wants no more than %d connections: %s", self.connected, error)
                self._crowded_until = self.loop.time() + self.limits.back_off
                self._wake_one()
            else:
                self._is_unreachable(error)
                self.give_back()
            return None
        except asyncio.CancelledError:
            self.settle([self._given_back(letter.ready.claimed)])
            raise

    async def _connect(self) -> Connection:
        self._opening += 1
        try:
            connection = await self.transport.open()
        finally:
            self._opening -= 1
        self.connected += 1
        return connection

    def _is_crowded(self) -> bool:
        return self.connected > 0 and not self._spare and self.loop.time() < self._crowded_until

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    def _failed(self, letter: Prepared, connection: Connection | None, error: SendError) -> Connection | None:
        row, now = letter.ready.claimed, self.clock()
        if about_the_relay(error):
            self._drop(connection)
            self._is_unreachable(error)
            self.settle([self._given_back(row)])
            return None
        self._went_on()
        end = ending(error, row.id, row.attempts + 1, now, row.expires_at, row.tried_at, letter.ages)
        said = f"{error.code} {error.text}" if error.code else error.text
        if end.ours or end.slows:
            self._strike("" if error.phase == "mail" else self.provider_of(letter.letter.recipient), end)
        about = {"transport": self.name, "address": letter.letter.recipient}
        self.settle([Outcome(row, end, now, evidence={"phase": error.phase}, reply=said, person=letter.ready.person, **about)])
        if connection is not None and connection.usable:
            return connection
        self._drop(connection)
        return None

    def _strike(self, provider: str, end: Ending) -> None:
        """Refused for what we are. Too often in a row, and what waits here goes back before it is refused as well (S-15, S-19)."""
        self.strikes[provider] += 1
        if end.slows or self.strikes[provider] >= STRIKES:
            del self.strikes[provider]
            self.struck = True
            self.give_back()

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
        if about_the_setting(error):
            self.misset = error
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
            # Whoever was busy last: a quiet time then needs no more connections than it uses.
            future = self._free.pop()
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


def _signed(letters: Sequence[Prepared], now: datetime) -> list[Prepared | Outcome]:
    """The letters with their signatures. One that cannot be signed is tried again like one that could not be written (invariant 12)."""
    found: list[Prepared | Outcome] = []
    for one in letters:
        try:
            letter = replace(one.letter, data=one.signer.sign(one.letter.data, now, one.unsigned))
            found.append(replace(one, letter=letter, signer=None))
        except Exception as error:
            log.exception("message %s could not be signed", one.letter.message_id)
            found.append(not_prepared(one.ready.claimed, error, now))
    return found


NO_TURN = Turn(0.0, None)
# What stands in the place of a claim when none came for long.
_IDLE = object()


def _tell(future: asyncio.Future, what: object) -> None:
    if not future.done():
        future.set_result(what)
