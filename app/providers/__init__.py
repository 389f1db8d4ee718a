"""We call them: what carries mail.

A transport opens connections; a connection takes one letter at a time in two halves, so that the caller can commit "the final dot is
being written" to the database between them (S-01, S-03):

    await connection.begin(letter)      everything up to the end of the body; a failure here means: certainly not sent
    reply = await connection.finish()   the final dot and its reply; no reply means: nobody knows

Both raise `errors.SendError`, whose outcome follows table 2.1 of email-standards. Whoever does not want to finish a letter that has
begun calls `drop()`, and the connection ends without a dot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from app.rules.relays import Relay


@dataclass(frozen=True, slots=True)
class Letter:
    """One email with its envelope: one sender, one recipient (S-18).

    `data` is the whole message with CRLF line ends and without dot-stuffing, which is the transport's. Addresses are ASCII (M-11).
    `plain` says that whoever made it has seen to it that all line ends are CRLF and no line begins with a dot.
    """

    message_id: UUID
    sender: str
    recipient: str
    data: bytes
    plain: bool = False


class Connection(Protocol):
    """One way to the relay, used by one task at a time.

    `carried` counts the letters begun on it; `usable` says whether another may begin.
    """

    carried: int

    @property
    def usable(self) -> bool: ...

    async def begin(self, letter: Letter) -> None:
        """Hands over the envelope and the body. Never the final dot. Raises SendError (temp or perm)."""

    async def finish(self) -> str:
        """Writes the final dot and returns the relay's reply. Raises SendError (temp, perm or unknown)."""

    def drop(self) -> None:
        """Ends the connection at once, without a dot and without a farewell. Never raises, may be called twice."""

    async def close(self) -> None:
        """Says goodbye and ends the connection. Never raises, takes a second at most."""


class Transport(Protocol):
    """What carries mail, with its limits: `connections` at once. `service` is the email service behind it, if that is known. One that has a
    `rate` takes no more messages per second, one that has an `idle` wants connections closed that were not used for so many seconds."""

    connections: int
    service: Relay | None

    async def open(self) -> Connection:
        """A connection that is ready for a letter. Raises SendError with phase `connect`: that is about the relay, not a letter."""
