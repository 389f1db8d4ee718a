"""The places that messages take: under the caps, as the one survey that a person is asked, as the one mail that a person gets of a step.

Reserved in the transaction that claims, one such transaction at a time, so that of everything that is due the higher priority comes first,
however many workers there are. Kept while the relay has it wait; given back when a message is not sent after all, or when a gate has it
wait, and whoever waited for the place is due again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from app import db
from app.db import insert_rows
from app.models import reservation
from app.rules import capacity
from app.rules.book import Book
from app.rules.capacity import Place, Refusal
from app.rules.facts import Account, Contact, Enrollment

LOCK_WAIT_MS = 500
LOCK_IDLE_MS = 10_000


def lock(conn: Connection) -> bool:
    """One claiming transaction at a time; False when another is at it for long."""
    return db.lock(conn, db.LOCK_CLAIMS, 0, wait_ms=LOCK_WAIT_MS, idle_ms=LOCK_IDLE_MS)


def contested(conn: Connection, book: Book, rows: Sequence[Row]) -> bool:
    """Whether any of the claimed messages may take something from others, or they from it (`Places.needed`)."""
    if any(row.kind == "survey" or book.caps_for(row.topic) for row in rows):
        return True
    return conn.exec_driver_sql(_ANY_SHARED, {"contacts": list({row.contact_id for row in rows})}).scalar()


class Places:
    """The places of the persons and accounts of a batch, and what the batch takes.

    `held` are the messages of the batch that have a place, `refused` those that must not take one. Without `reserving` nothing can be
    taken: for callers that do not hold the lock.
    """

    def __init__(self, conn: Connection, book: Book, persons: Iterable[str], accounts: Iterable[int], now: datetime, reserving: bool):
        self.book, self.now = book, now
        self.held: set[UUID] = set()
        self.refused: dict[UUID, Refusal] = {}
        self._fresh: list[Mapping[str, Any]] = []
        self._by_person: dict[str, dict[UUID, Place]] = {}
        self._by_account: dict[int, dict[UUID, Place]] = {}
        known = sorted(persons)
        self._shared = frozenset(conn.exec_driver_sql(_SHARED, {"persons": known}).scalars())
        if reserving:
            longest = max([cap.within for cap in book.lifecycle.caps], default=timedelta(0))
            values = {"persons": known, "accounts": sorted(accounts), "since": now - longest, "shared": sorted(self._shared)}
            for row in conn.exec_driver_sql(_TAKEN, values):
                self._note(Place(*row))

    def needed(self, row: Row, person: str) -> bool:
        """Whether a claimed message must have a place before it is sent: under a cap, to somebody at several accounts, or a survey,
        which nobody may be asked by two workers at once."""
        return row.kind == "survey" or person in self._shared or bool(self.book.caps_for(row.topic))

    def take(self, row: Row, account: Account, contact: Contact, enrollment: Enrollment) -> bool:
        """Gives the message its place, if it needs one and there is room. A place that it has already it takes anew."""
        if not self.needed(row, contact.person):
            return True
        version = self.book.versions[row.version_id]
        wanted = Place(row.id, contact.person, account.id, row.topic, version.key, row.step_id, enrollment.shadow, self.now)
        mine, ours = self._by_person.get(wanted.person, {}), self._by_account.get(wanted.account, {})
        # What went to the person when it had another address is its own where it is at several accounts: that side comes last.
        no = capacity.refusal(self.book, version, wanted, {**ours, **mine}.values())
        if no is not None:
            self.refused[row.id] = no
            return False
        self._note(wanted)
        self._fresh.append(_row(wanted, row))
        self.held.add(row.id)
        return True

    def leave(self, row: Row) -> None:
        """The message takes no place, or no longer: those that come after it in the batch find it free."""
        self.held.discard(row.id)
        place = self._by_account.get(row.account_id, {}).pop(row.id, None)
        if place is not None:
            self._by_person.get(place.person, {}).pop(row.id, None)

    def write(self, conn: Connection) -> None:
        """Stores what was taken."""
        fresh = [one for one in self._fresh if one["message_id"] in self.held]
        insert_rows(conn, reservation, fresh, conflict="(message_id) do update set person = excluded.person, at = excluded.at")

    def _note(self, place: Place) -> None:
        self._by_person.setdefault(place.person, {})[place.message] = place
        self._by_account.setdefault(place.account, {})[place.message] = place


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
_ANY_SHARED = """
select exists (
    select from contact o join membership m on m.contact_id = o.id
    where o.person = any(array(select c.person from contact c where c.id = any(%(contacts)s)))
    group by o.person having count(distinct m.account_id) > 1)"""
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
