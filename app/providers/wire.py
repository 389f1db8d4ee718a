"""The bytes of an SMTP dialogue: replies are read within bounds of size and time, whatever the server does."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from dataclasses import dataclass

# RFC 5321 allows 512 octets a line; real servers are longer, but no honest reply comes near these.
LINE = 8 * 1024
REPLY = 64 * 1024
KEPT = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of the server. `lines` are without codes and control characters."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """All lines as one of at most 500 characters, fit for a database."""
        return " ".join(self.lines)[:KEPT]

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip()


class Lost(Exception):
    """The dialogue is over: the peer closed, broke the protocol, sent too much, or let a deadline pass."""


class Wire(asyncio.Protocol):
    """One TCP connection that carries commands and replies.

    It parses as bytes arrive and ends itself when a line or a reply grows too large, so a hostile server costs at most 64 KB and the
    deadline of one command. It knows nothing of what the commands mean.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.replies: deque[Reply] = deque()
        self.lost: Lost | None = None
        self._buffer = bytearray()
        self._lines: list[str] = []
        self._code: int | None = None
        self._size = 0
        self._waiter: asyncio.Future | None = None
        self._wanted = 1
        self._paused = False
        self._resumed: asyncio.Future | None = None
        self._deadline: float | None = None
        self._patience = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def quiet(self) -> bool:
        """Whether the connection stands and the server has said nothing that was not asked for."""
        return self.lost is None and not self.replies and not self._buffer and not self._lines

    def send(self, data: bytes) -> None:
        """Writes. Raises Lost when the connection is known to be gone; nothing of `data` has been written then."""
        if self.lost or self.transport.is_closing():
            raise self.lost or Lost("the connection is closing")
        self.transport.write(data)

    async def drained(self, seconds: float) -> None:
        """Waits until everything written was handed to the operating system. Raises Lost."""
        if self.lost:
            raise self.lost
        if self._paused:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._within(self._resumed, seconds)

    async def reply(self, seconds: float, ahead: int = 1) -> Reply:
        """The next reply. Raises Lost when the connection ends or `seconds` pass first; replies that came before are still given.

        `ahead` is how many commands are unanswered: waiting for all of them at once costs less, and a loss ends the waiting.
        """
        if len(self.replies) < ahead and not self.lost:
            self._wanted = ahead
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._within(self._waiter, seconds)
            except Lost:
                if not self.replies:
                    raise
        if not self.replies:
            raise self.lost
        return self.replies.popleft()

    def end(self, why: str) -> None:
        """Ends the connection at once."""
        if self.lost is None:
            self.lost = Lost(why)
            if self.transport is not None:
                self.transport.abort()
        for future in (self._waiter, self._resumed):
            if future is not None and not future.done():
                future.set_exception(self.lost)
        self._buffer.clear()
        self._lines.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    # asyncio calls these.

    def connection_made(self, transport) -> None:
        self.transport = transport
        # As low as it goes: `drained` then means that the body has left this process, and only the dot is still to come. Zero would
        # stop TLS for ever, which pauses at sizes of `high` and more.
        transport.set_write_buffer_limits(high=1, low=0)

    def data_received(self, data: bytes) -> None:
        if self.lost:
            return
        self._buffer += data
        start = 0
        while (stop := self._buffer.find(b"\n", start)) >= 0:
            if not self._take(bytes(self._buffer[start:stop])):
                return
            start = stop + 1
        del self._buffer[:start]
        if len(self._buffer) > LINE:
            self.end("the server sent a line without an end")

    def connection_lost(self, error: Exception | None) -> None:
        self.end(str(error) if error else "the server closed the connection")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    def _take(self, line: bytes) -> bool:
        line = line.rstrip(b"\r")
        self._size += len(line)
        code = line[:3]
        if len(code) < 3 or not code.isdigit() or not 200 <= int(code) <= 599 or line[3:4] not in (b" ", b"-", b""):
            self.end("the server does not speak SMTP")
        elif self._code not in (None, int(code)):
            self.end("the server changed the code within a reply")
        elif self._size > REPLY or len(line) > LINE or len(self.replies) > 16:
            self.end("the server said too much")
        else:
            self._code = int(code)
            self._lines.append(_CONTROL.sub(" ", line[4:].decode("utf-8", "replace")).strip())
            if line[3:4] != b"-":
                self._complete()
            return True
        return False

    def _complete(self) -> None:
        self.replies.append(Reply(self._code, tuple(self._lines)))
        self._lines.clear()
        self._code = None
        self._size = 0
        if self._waiter is not None and len(self.replies) >= self._wanted and not self._waiter.done():
            self._waiter.set_result(None)

    async def _within(self, future: asyncio.Future, seconds: float) -> None:
        """Waits for `future`; the connection ends when `seconds` pass first."""
        loop = asyncio.get_running_loop()
        self._deadline, self._patience = loop.time() + seconds, seconds
        if self._alarm is None or self._deadline < self._alarm.when():
            self._set_alarm(loop)
        await future
        self._deadline = None

    def _set_alarm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_at(self._deadline, self._ring)

    def _ring(self) -> None:
        """One alarm serves many deadlines: it is left standing when an answer comes, and set again when it finds a later one."""
        self._alarm = None
        if self._deadline is None or self.lost:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._deadline:
            self.end(f"no answer within {self._patience:g} s")
        else:
            self._set_alarm(loop)
