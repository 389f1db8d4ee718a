"""The local outbox: where mail goes while no relay is configured, so that nobody is written to by accident."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from app.errors import SendError
from app.models import outbox
from app.providers import Letter


class OutboxTransport:
    """Captures mail into the table `outbox`, each message once, through the same two halves as a relay. Never opens a socket."""

    service = None

    def __init__(self, engine: Engine, clock: Callable[[], datetime], connections: int = 4):
        self.connections = min(connections, 4)
        self.engine = engine
        self.clock = clock

    async def open(self) -> OutboxConnection:
        return OutboxConnection(self)


class OutboxConnection:
    """See `providers.Connection`."""

    def __init__(self, transport: OutboxTransport):
        self.transport = transport
        self.carried = 0
        self.usable = True
        self._letter: Letter | None = None

    async def begin(self, letter: Letter) -> None:
        self.carried += 1
        self._letter = letter

    async def finish(self) -> str:
        letter, self._letter = self._letter, None
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._capture, letter)
        except DBAPIError as error:
            self.usable = False
            raise SendError("unknown", "dot", f"the outbox did not answer: {error.orig}"[:300]) from error
        return "250 captured in the outbox"

    def drop(self) -> None:
        self.usable = False

    async def close(self) -> None:
        self.usable = False

    def _capture(self, letter: Letter) -> None:
        row = {
            "message_id": letter.message_id,
            "sender": letter.sender,
            "recipient": letter.recipient,
            "raw": letter.data,
            "captured_at": self.transport.clock(),
        }
        with self.transport.engine.begin() as conn:
            conn.execute(insert(outbox).values(row).on_conflict_do_nothing(index_elements=["message_id"]))
