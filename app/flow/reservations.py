"""The places that messages take under the caps, and as the one that a person gets of a step.

Reserved in the transaction that claims, one such transaction at a time, so that of everything that is due the higher priority comes first,
however many workers there are. Given back when a message is not sent after all, and whoever waited for the place is due again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from app import db
from app.models import reservation
from app.rules import capacity
from app.rules.book import Book
from app.rules.capacity import Place, Refusal
from app.rules.facts import Account, Contact, Enrollment

LOCK_WAIT_MS = 500


@dataclass(slots=True)
class Reserved:
    """What came of a batch: the messages that have a place, and those that must not take one."""

    held: set[UUID] = field(default_factory=set)
    refused: dict[UUID, Refusal] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()  # persons who are at several accounts


def lock(conn: Connection) -> bool:
    """One reserving transaction at a time; False when another is at it for long. A process that is stopped in the middle of it loses
    its session to PostgreSQL's own clock, and nobody waits for it for longer than that."""
    conn.exec_driver_sql("set local idle_in_transaction_session_timeout = '10s'")
    return db.lock(conn, db.LOCK_CAPS, 0, wait_ms=LOCK_WAIT_MS)


def shared_persons(conn: Connection, persons: Iterable[str]) -> frozenset[str]:
    """Those of the persons who are members of more than one account."""
    return frozenset(conn.exec_driver_sql(_SHARED, {"persons": sorted(persons)}).scalars())


def needed(book: Book, row: Row, person: str, shared: frozenset[str]) -> bool:
    """Whether a claimed message must have a place before it is sent: under a cap, to somebody at several accounts, or a survey, which
    nobody may be asked by two workers at once."""
    return row.kind == "survey" or person in shared or bool(book.caps_for(row.topic))


def reserve(
    conn: Connection,
    book: Book,
    wanting: Sequence[tuple[Row, Account, Contact, Enrollment]],
    shared: frozenset[str],
    now: datetime,
) -> Reserved:
    """Gives places to the messages `wanting` one, in their order, as far as there is room. The caller holds the lock."""
    found = Reserved(shared=shared)
    asking = [one for one in wanting if needed(book, one[0], one[2].person, shared)]
    if not asking:
        return found
    by_person, by_account = _taken(conn, asking, shared, now, max([cap.within for cap in book.lifecycle.caps], default=timedelta(0)))
    fresh = []
    for row, account, contact, enrollment in asking:
        version = book.versions[row.version_id]
        wanted = Place(row.id, contact.person, account.id, row.topic, version.key, row.step_id, enrollment.shadow, now)
        mine, ours = by_person.setdefault(contact.person, {}), by_account.setdefault(account.id, {})
        if row.id not in mine:
            no = capacity.refusal(book, version, wanted, {**mine, **ours}.values())
            if no is not None:
                found.refused[row.id] = no
                continue
            fresh.append(_row(wanted, row))
            mine[row.id] = ours[row.id] = wanted
        found.held.add(row.id)
    db.insert_rows(conn, reservation, fresh, conflict="do nothing")
    return found


def give_back(conn: Connection, message_ids: Sequence[UUID], now: datetime) -> None:
    """These are not sent after all. What waited for their places is due now, and is judged anew."""
    if not message_ids:
        return
    freed = conn.exec_driver_sql(_GIVE_BACK, {"ids": list(message_ids)}).all()
    if freed:
        values = {"persons": sorted({row.person for row in freed}), "accounts": sorted({row.account_id for row in freed}), "now": now}
        conn.exec_driver_sql(_WAKE, values)


def look_again(conn: Connection, filled: Sequence[tuple[UUID, UUID]], now: datetime) -> None:
    """Who was refused for want of a place that was given back before the refusal was written down is due now: nobody else wakes them.

    `filled` are pairs: a message that was refused, and one whose place it would have needed.
    """
    if filled:
        refused, others = zip(*filled, strict=True)
        # Whoever is giving one of them back is waited for; whoever wants to afterwards waits for us, and sees whom to wake.
        conn.exec_driver_sql(_HOLD, {"others": sorted(others)})
        conn.exec_driver_sql(_AGAIN, {"refused": list(refused), "others": list(others), "now": now})


def _row(place: Place, row: Row) -> Mapping[str, Any]:
    return {
        "message_id": place.message,
        "person": place.person,
        "account_id": place.account,
        "topic": place.topic,
        "campaign_id": row.campaign_id,
        "step_id": place.step,
        "shadow": place.shadow,
        "at": place.at,
    }


def _taken(
    conn: Connection, asking: Sequence[tuple], shared: frozenset[str], now: datetime, longest: timedelta
) -> tuple[dict[str, dict[UUID, Place]], dict[int, dict[UUID, Place]]]:
    persons, accounts = {contact.person for _, _, contact, _ in asking}, {account.id for _, account, _, _ in asking}
    values = {"persons": sorted(persons), "accounts": sorted(accounts), "since": now - longest, "shared": sorted(shared & persons)}
    by_person: dict[str, dict[UUID, Place]] = {}
    by_account: dict[int, dict[UUID, Place]] = {}
    for row in conn.exec_driver_sql(_TAKEN, values):
        place = Place(*row)
        by_person.setdefault(place.person, {})[place.message] = place
        by_account.setdefault(place.account, {})[place.message] = place
    return by_person, by_account


# Of the persons at several accounts everything counts, however old; it may have been sent before they were at several.
_TAKEN = """
select r.message_id, r.person, r.account_id, r.topic, c.key, r.step_id, r.shadow, r.at
from reservation r join campaign c on c.id = r.campaign_id where r.person = any(%(persons)s) and r.at > %(since)s
union
select r.message_id, r.person, r.account_id, r.topic, c.key, r.step_id, r.shadow, r.at
from reservation r join campaign c on c.id = r.campaign_id where r.account_id = any(%(accounts)s) and r.at > %(since)s
union
select m.id, p.person, m.account_id, m.topic, c.key, m.step_id, m.state = 'shadow', coalesce(m.settled_at, m.dot_at, m.created_at)
from contact p join message m on m.contact_id = p.id join campaign c on c.id = m.campaign_id
where p.person = any(%(shared)s) and m.state in ('in_dot', 'sent', 'unknown', 'ghosted', 'shadow')"""
_SHARED = """
select c.person from contact c join membership m on m.contact_id = c.id where c.person = any(%(persons)s)
group by c.person having count(distinct m.account_id) > 1"""
_GIVE_BACK = "delete from reservation where message_id = any(%(ids)s) returning person, account_id"
_HOLD = "select message_id from reservation where message_id = any(%(others)s::uuid[]) order by message_id for share"
_AGAIN = """
update message m set due_at = %(now)s
from unnest(%(refused)s::uuid[], %(others)s::uuid[]) as r(refused, other)
where m.id = r.refused and m.state = 'due' and m.reason = 'capped' and m.due_at > %(now)s
  and not exists (select from reservation p where p.message_id = r.other)"""
_WAKE = """
update message m set due_at = %(now)s
where m.state = 'due' and m.reason = 'capped' and m.due_at > %(now)s
  and (m.account_id = any(%(accounts)s)
       or m.contact_id = any(array(select c.id from contact c where c.person = any(%(persons)s))))"""
