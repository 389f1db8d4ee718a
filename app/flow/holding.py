"""Holds: reasons to send nothing but transactional mail to an account or a contact, until a date or until released."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, text, update

from app.errors import InputError, NotFound
from app.flow.reading.accounts import find_account
from app.flow.reading.contacts import find_contact
from app.models import contact as contacts
from app.models import hold as holds_table
from app.models import message as messages

LONGEST = timedelta(days=3653)


def hold(
    conn: Connection, reason: str, now: datetime, *, account: str | None = None, contact: str | None = None, until: datetime | None = None
) -> int:
    """Holds the account or the contact of that external id and returns the hold's id. Nothing already sent changes.

    Raises InputError unless exactly one is named, on a reason that is empty or over 200 characters, and on an end that has passed;
    NotFound when the account or contact does not exist.
    """
    if (account is None) == (contact is None):
        raise InputError("name an account or a contact, not both")
    reason = reason.replace("\x00", "").strip()
    if not 1 <= len(reason) <= 200:
        raise InputError("must have 1 to 200 characters", "reason")
    if until is not None and until <= now:
        raise InputError("must be in the future", "until")
    if until is not None and until > now + LONGEST:
        raise InputError("must be within ten years; leave it out to hold until released", "until")
    return conn.execute(
        holds_table.insert()
        .values(
            account_id=find_account(conn, account).id if account is not None else None,
            contact_id=find_contact(conn, contact).id if contact is not None else None,
            reason=reason,
            created_at=now,
            until=until,
        )
        .returning(holds_table.c.id)
    ).scalar_one()


def release(conn: Connection, hold_id: int, now: datetime) -> None:
    """Ends the hold at once: what waited because of it is due now. Raises NotFound when there is none in force with that id."""
    ended = (
        update(holds_table)
        .where(holds_table.c.id == hold_id, holds_table.c.released_at.is_(None))
        .values(released_at=now)
        .returning(holds_table.c.account_id, holds_table.c.contact_id, holds_table.c.person)
    )
    row = conn.execute(ended).one_or_none() if 0 <= hold_id < 2**63 else None
    if row is None:
        raise NotFound(f"There is no hold {hold_id} in force.")
    if row.account_id is not None:
        whose = messages.c.account_id == row.account_id
    elif row.contact_id is not None:
        whose = messages.c.contact_id == row.contact_id
    else:
        whose = messages.c.contact_id.in_(select(contacts.c.id).where(contacts.c.person == row.person))
    # The gates are decided again before anything is sent, so another hold goes on holding.
    waiting = (whose, messages.c.state == "due", messages.c.reason == "held", messages.c.due_at > now)
    conn.execute(update(messages).where(*waiting).values(due_at=now))


def list_holds(conn: Connection, now: datetime) -> list[dict[str, Any]]:
    """The holds in force (1,000 at most), newest first."""
    rows = conn.execute(
        text(
            """select h.id, a.external_id as account, coalesce(c.external_id, h.person) as contact, h.reason, h.created_at, h.until
               from hold h
               left join account a on a.id = h.account_id left join contact c on c.id = h.contact_id
               where h.released_at is null and (h.until is null or h.until > :now) order by h.created_at desc, h.id desc limit 1000"""
        ),
        {"now": now},
    )
    return [dict(row._mapping) for row in rows]
