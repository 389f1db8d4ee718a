"""Unknown messages: handed over to the final dot, and no answer came. Whether they arrived, nobody can say for certain (S-05).

They are kept for a while in which anything that shows their fate settles it: a report of any kind, also that the mail came back, or a link
that was fetched. Then marketing mail counts as sent, at most once; transactional mail is sent once more under the same Message-ID, at least
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from app.errors import InputError
from app.flow import outcome
from app.flow.outcome import PROOF, Verdict
from app.queue import Bells
from app.rules.delivery import unknown_again

VERDICTS = ("sent", "not_sent")
BATCH = 500
SHOWN = 200


def resolve_due(engine: Engine, clock: Callable[[], datetime], bells: Bells) -> int:
    """Settles the unknown messages of which there is evidence, or whose time is over. Returns how many. Safe to run anywhere at once."""
    settled = 0
    while True:
        with engine.begin() as conn:
            now = clock()
            rows = conn.execute(_RIPE, {"now": now, "limit": BATCH}).all()
            # What came back decides first; where nothing did, time does.
            count = outcome.resolve(conn, [row.id for row in rows], now)
            done = outcome.decide(conn, [_verdict(row, now) for row in rows if row.unknown_until is None or row.unknown_until <= now], now)
        if done:
            bells.deliver()
        settled += count + len(done)
        if len(rows) < BATCH:
            return settled


def unknown(conn: Connection, *, campaign: str | None = None, limit: int = SHOWN) -> list[dict[str, Any]]:
    """Unknown messages, the oldest first: to whom, when their dot was written, and until when evidence is waited for."""
    rows = conn.execute(_LIST, {"campaign": campaign, "limit": limit})
    return [{**row._mapping, "id": str(row.id)} for row in rows]


def decide(conn: Connection, messages: Sequence[str], verdict: str, now: datetime) -> list[UUID]:
    """What somebody who looked at the relay's log says of unknown messages: `sent`, or `not_sent`, which sends them again, under their
    Message-ID. Returns those that were unknown. Raises InputError; the caller rings the bell for delivery."""
    if verdict not in VERDICTS:
        raise InputError(f"must be one of {', '.join(VERDICTS)}", "verdict")
    try:
        ids = [UUID(one) for one in messages]
    except ValueError as error:
        raise InputError("is not the id of a message", "message") from error
    state, reason = ("sent", "said_sent") if verdict == "sent" else ("due", "sent_again")
    return outcome.decide(conn, [Verdict(one, state, reason, {"by": "operator"}) for one in ids], now)


def _verdict(row: Any, now: datetime) -> Verdict:
    again = unknown_again(row.topic, row.resends, row.unknown_until is not None, now, row.expires_at)
    return Verdict(row.id, "due", "sent_again") if again else Verdict(row.id, "sent", "assumed_sent")


# Evidence is looked for when it comes (`outcome.resolve`); here for what came in the very moment in which a message became unknown.
_RIPE = text(f"""
    select m.id, m.topic, m.resends, m.unknown_until, m.expires_at from message m
    where m.state = 'unknown' and (m.unknown_until is null or m.unknown_until <= :now or {PROOF} is not null)
    order by m.id limit :limit for update skip locked
""")
_LIST = text("""
    select m.id, k.key as campaign, m.step_id as step, a.external_id as account, c.external_id as contact, m.person as address, m.topic,
        m.transport, m.message_header as message_header, m.dot_at, m.reason, m.unknown_until, m.resends
    from message m join campaign k on k.id = m.campaign_id join account a on a.id = m.account_id join contact c on c.id = m.contact_id
    where m.state = 'unknown' and (cast(:campaign as text) is null or k.key = :campaign)
    order by m.dot_at, m.id limit :limit
""")
