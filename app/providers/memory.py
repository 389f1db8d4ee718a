"""A transport that keeps mail in memory: the double that tests use instead of a relay."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable

from app.errors import SendError
from app.providers import Letter
from app.rules.relays import Relay


class MemoryTransport:
    """Takes every letter and remembers it, unless told to fail. `service` is whose relay it plays.

    `letters` are those whose final dot was accepted, in order; `accepted` counts them by message id. `fail(phase, …)` makes the next
    letters fail there: phase is connect, mail, rcpt, data, body or dot. `before_dot` is called when a body has been handed over.
    """

    def __init__(self, connections: int = 4, service: Relay | None = None):
        self.connections = connections
        self.service = service
        self.letters: list[Letter] = []
        self.begun: list[Letter] = []
        self.accepted: Counter = Counter()
        self.dropped = 0
        self.opened = 0
        self.before_dot: Callable[[Letter], None] | None = None
        self._failures: dict[str, deque[SendError]] = {}

    def fail(self, phase: str, outcome: str = "temp", text: str = "4.3.0 later", code: int | None = 451, *, times: int = 1) -> None:
        self._failures.setdefault(phase, deque()).extend(SendError(outcome, phase, text, code) for _ in range(times))

    def refuse_setting(self, text: str, code: int | None = None, *, times: int = 1) -> None:
        """The next connections fail for a setting that somebody must change."""
        failures = (SendError("temp", "connect", text, code, setting=True) for _ in range(times))
        self._failures.setdefault("connect", deque()).extend(failures)

    async def open(self) -> MemoryConnection:
        await asyncio.sleep(0)
        self.check(["connect"])
        self.opened += 1
        return MemoryConnection(self)

    def check(self, phases: Iterable[str]) -> None:
        for phase in phases:
            if waiting := self._failures.get(phase):
                raise waiting.popleft()


class MemoryConnection:
    def __init__(self, transport: MemoryTransport):
        self.transport = transport
        self.carried = 0
        self.usable = True
        self._letter: Letter | None = None

    async def begin(self, letter: Letter) -> None:
        self.carried += 1
        await asyncio.sleep(0)
        self.transport.check(["mail", "rcpt", "data", "body"])
        self.transport.begun.append(letter)
        self._letter = letter
        if self.transport.before_dot:
            self.transport.before_dot(letter)

    async def finish(self) -> str:
        await asyncio.sleep(0)
        letter, self._letter = self._letter, None
        self.transport.check(["dot"])
        self.transport.letters.append(letter)
        self.transport.accepted[letter.message_id] += 1
        return "250 2.0.0 kept"

    def drop(self) -> None:
        if self.usable:
            self.usable = False
            self.transport.dropped += 1

    async def close(self) -> None:
        self.usable = False
