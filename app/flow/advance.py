"""The heart: takes the next occurrences of one partition, asks the rules, writes every consequence in the same transaction.

A partition is advanced by one transaction at a time, under a Postgres advisory lock, so an account is single-threaded, and a crash
repeats a batch that never happened. Deciding is `rules.journey`'s; storing is `flow.consequences`'.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from app import db
from app.flow import consequences, states, tombstones
from app.flow.publish import book as read_book
from app.flow.publish import including
from app.models import parked
from app.queue import Bells
from app.rules import journey
from app.rules.book import Book
from app.rules.facts import Account, Contact, Event, Occurrence, Timer
from app.rules.identity import contact_values, normalise
from app.rules.journey import STEERED

log = logging.getLogger("nurture.advance")

BATCH = 1000
LOCK_WAIT_MS = 250
DEADLOCKS = 5  # in one run, before whoever rings next tries again
MOMENT = timedelta(microseconds=1)


@dataclass(slots=True)
class Advanced:
    """What one transaction did. `busy` says that somebody else holds the partition: never that there is nothing to do."""

    processed: int = 0
    busy: bool = False
    full: bool = False
    mail_due: bool = False
    effects_due: bool = False
    noted: dict[str, datetime] = field(default_factory=dict)  # contacts that were written down as seen, once this is committed
    ring: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Poison:
    """The occurrence that was being processed when something raised."""

    occurrence: str = ""
    account: str | None = None
    contact: str | None = None


def run_partition(engine: Engine, bells: Bells, partition: int, clock: Callable[[], datetime], *, batch: int = BATCH) -> int:
    """Advances the partition until nothing of it is pending or due. Returns how many occurrences were processed.

    A batch that raises is halved until the occurrence that raises stands alone; that one is parked with its traceback and its account
    waits, the others go on. Two partitions that speak of the same people may meet in a deadlock: the one that PostgreSQL takes back begins
    again. A database that is away raises: nothing has happened then, and the tick rings again.
    """
    total, limit, deadlocks = 0, batch, 0
    while True:
        poison = Poison()
        try:
            with engine.begin() as conn:
                done = advance(conn, partition, clock(), limit, poison)
        except (OperationalError, InterfaceError) as error:
            deadlocks += 1
            if not db.is_deadlock(error) or deadlocks > DEADLOCKS:
                raise
            continue
        except Exception as error:
            if limit > 1:
                limit = max(1, limit // 2)
            else:
                with engine.begin() as conn:
                    _park(conn, partition, poison, error, clock())
            continue
        consequences.note(engine, done.noted)
        if done.mail_due:
            bells.deliver()
        if done.effects_due:
            bells.notify()
        if done.ring:
            bells.advance(done.ring)
        if done.busy:
            bells.advance([partition])
            return total
        total += done.processed
        limit = min(batch, limit * 2)
        if not done.full or not done.processed:
            return total


def advance(conn: Connection, partition: int, now: datetime, limit: int, poison: Poison | None = None) -> Advanced:
    """Processes up to `limit` of the partition's occurrences: events by time received, timers by due time, then in sequence; at the
    same instant the event first. Commits nothing itself."""
    if not db.lock(conn, db.LOCK_PARTITION, partition, wait_ms=LOCK_WAIT_MS):
        return Advanced(busy=True)
    book = read_book(conn)
    taken = _take(conn, book, partition, now, limit)
    done = Advanced(processed=len(taken.events) + len(taken.timers), full=taken.full)
    if not done.processed:
        return done
    batch = consequences.Batch(book=book, partition=partition, now=now)
    if poison is not None:
        poison.account, _, poison.occurrence = taken.ordered()[0]
    _resolve_aliases(conn, taken)
    _route(conn, taken, batch, partition, now, done)
    accounts = _accounts(conn, taken, partition, now)
    batch.book = book = including(conn, book, _versions(accounts, taken))
    strangers, batch.unborn = _contacts(conn, taken, now)
    _addresses(conn, taken)
    accounts = _complete(conn, book, accounts, taken, now)
    batch.before = dict(accounts)
    batch.strangers = strangers
    for key, occurrence, what in taken.in_turn():
        if poison is not None:
            poison.occurrence, poison.account = what, key
            poison.contact = occurrence.contact if isinstance(occurrence, Event) and key is None else None
        if isinstance(occurrence, Event) and occurrence.kind == "alias":
            batch.aliases.append(occurrence)
        if _speaks_of_contact(occurrence):
            batch.unborn.discard(occurrence.contact)
        if key is None:
            _alone(batch, occurrence)
            continue
        account = _with_stranger(accounts[key], occurrence, strangers)
        reaction = journey.react(book, account, occurrence)
        taken.follow(book, account, reaction.account)
        accounts[key] = reaction.account
        _keep_stranger(reaction.account, occurrence, strangers)
        batch.add(key, occurrence, reaction)
    batch.after = accounts
    batch.processed = taken.processed_ids()
    done.mail_due, done.effects_due = consequences.write(conn, batch)
    done.noted = batch.noted
    return done


# Choosing ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Event:
    """A pending event with the account it belongs to, once that is known."""

    event: Event
    account: str | None


@dataclass(slots=True)
class _Taken:
    events: list[_Event]
    timers: list[tuple[str, Timer, str]]
    full: bool
    aliased: bool  # whether any contact has a former id
    buried: bool  # whether any address was erased
    horizon: datetime  # up to here nothing else of the partition is waiting
    now: datetime
    set_aside: set[int] = field(default_factory=set)  # pending events that are not processed by this batch
    acting: set[str] = field(default_factory=set)  # accounts that are loaded completely
    following: list[tuple[datetime, int, str, Timer, str]] = field(default_factory=list)  # a heap
    followed: int = 0

    def in_turn(self) -> Iterator[tuple[str | None, Occurrence, str]]:
        """`ordered`, and between them the timers that follow from what is processed meanwhile."""
        for one in self.ordered():
            while self.following and self.following[0][0] < one[1].at:
                yield heappop(self.following)[2:]
            yield one
        while self.following:
            yield heappop(self.following)[2:]

    def follow(self, book: Book, before: Account, after: Account) -> None:
        """Timers of the account that were set just now and are due already take their place in this batch: after an outage the order
        is that of the times, whatever the size of the batch."""
        if after is before or after.key not in self.acting:
            return
        known = {one.id: one.due_at for one in before.enrollments}
        new = [(one.due_at, one.id) for one in after.enrollments if one.due_at is not None and one.due_at != known.get(one.id)
               and getattr(book.standings.get(one.campaign), "mode", None) != "paused"]  # fmt: skip
        if after.due_at is not None and after.due_at != before.due_at:
            new.append((after.due_at, None))
        for due, ident in new:
            if due <= self.horizon:
                what = f"enrollment:{ident}" if ident else f"account:{after.key}"
                self.followed += 1
                heappush(self.following, (due, self.followed, after.key, Timer(due, ident, self.now), what))

    def ordered(self) -> list[tuple[str | None, Occurrence, str]]:
        """(account, occurrence, what it is called when it has to be parked), in the order of processing."""
        found = [(one.event.at, 0, one.event.id, one.account, one.event) for one in self.events if one.event.id not in self.set_aside]
        found += [(timer.at, 1, index, key, timer) for index, (key, timer, _) in enumerate(self.timers)]
        found.sort(key=lambda one: one[:3])
        return [(key, occurrence, f"event:{number}" if rank == 0 else self.timers[number][2]) for _, rank, number, key, occurrence in found]

    def processed_ids(self) -> list[int]:
        return [one.event.id for one in self.events if one.event.id not in self.set_aside]


def _take(conn: Connection, book: Book, partition: int, now: datetime, limit: int) -> _Taken:
    """The next occurrences, those of parked accounts left out, and enrollments of paused campaigns, whose timers are frozen."""
    waits, aliased, buried = conn.exec_driver_sql(_BEFORE, {"partition": partition}).one()
    values = {
        "partition": partition,
        "now": now,
        "limit": limit,
        "accounts": [account for account, _ in waits if account is not None],
        "contacts": [contact for account, contact in waits if account is None],
        "paused": [standing.id for standing in book.standings.values() if standing.mode == "paused"],
    }
    pending = _PENDING.format(parked=_NOT_PARKED if waits else "")
    rows = conn.exec_driver_sql(pending, values).all()
    due = conn.exec_driver_sql(_TIMERS, values).all()
    timers = [
        (key, Timer(at, enrollment, now), f"enrollment:{enrollment}" if enrollment else f"account:{key}") for key, enrollment, at in due
    ]
    events = [_Event(Event(name, properties, at, received, message, kind, contact, mark, depth, ident, source), account)
              for ident, kind, name, account, contact, properties, at, received, message, mark, depth, source in rows]  # fmt: skip
    full, horizon = max(len(rows), len(due)) >= limit, now
    if len(events) + len(timers) > limit:
        moments = [(one.event.at, 0) for one in events] + [(timer.at, 1) for _, timer, _ in timers]
        last = sorted(moments)[limit - 1]
        horizon = last[0] - MOMENT
        events = [one for one in events if (one.event.at, 0) <= last]
        timers = [one for one in timers if (one[1].at, 1) <= last]
        full = True
    elif full:
        horizon = max([one.event.at for one in events] + [timer.at for _, timer, _ in timers]) - MOMENT
    return _Taken(events, timers, full, aliased, buried, horizon, now)


def _resolve_aliases(conn: Connection, taken: _Taken) -> None:
    """Events of a contact's former id are the contact's."""
    if not taken.aliased:
        return
    keys = list({one.event.contact for one in taken.events if one.event.contact})
    rows = conn.exec_driver_sql("select previous_key, contact_key from contact_alias where previous_key = any(%(keys)s)", {"keys": keys})
    aliases = dict(rows.all())
    for one in taken.events:
        if one.event.contact in aliases:
            one.event = replace(one.event, contact=aliases[one.event.contact])


def _route(conn: Connection, taken: _Taken, batch: consequences.Batch, partition: int, now: datetime, done: Advanced) -> None:
    """Events that name no account belong to the sole membership of their contact, perhaps in another partition; with several or
    none they stay on the contact, unless the event that makes it a member is still on its way. An alias waits for what tells of the
    former id in the same way: the contact is renamed, not made under an id that leads nowhere."""
    alone = [one for one in taken.events if one.account is None]
    if not alone:
        return
    keys = list({one.event.contact for one in alone if one.event.contact})
    memberships: dict[str, list[tuple[str, int]]] = {}
    for contact, account, place in conn.exec_driver_sql(_MEMBERSHIPS, {"keys": keys}):
        memberships.setdefault(contact, []).append((account, place))
    former = {one.event.id: str(one.event.properties.get("previous_id") or "") for one in alone if one.event.kind == "alias"}
    untold: set[str] = set()
    if former:
        untold.update(conn.exec_driver_sql(_TELLING, {"keys": list(former.values()), "partition": partition}).scalars())
    nowhere = [key for key in keys if key not in memberships]
    coming: dict[str, list[tuple[datetime, int]]] = {}
    if nowhere:
        # Of this partition only what comes before: what comes after must not be waited for by its own queue. Nothing waits for an
        # account that is parked, which may take days.
        for contact, elsewhere, at, ident in conn.exec_driver_sql(_JOINING, {"keys": nowhere, "partition": partition}):
            coming.setdefault(contact, []).append((datetime.min.replace(tzinfo=UTC), 0) if elsewhere else (at, ident))
    moved, waiting = [], 0
    for one in alone:
        contact = one.event.contact
        found = memberships.get(contact or "", [])
        if former.get(one.event.id) in untold:
            taken.set_aside.add(one.event.id)
            waiting += 1
        elif len(found) == 1:
            account, place = found[0]
            moved.append({"id": one.event.id, "account": account, "place": place})
            if place == partition:
                one.account = account
            else:
                taken.set_aside.add(one.event.id)
                done.ring.add(place)
        elif min(coming.get(contact or "", ()), default=_NEVER) < (one.event.at, one.event.id):
            taken.set_aside.add(one.event.id)
            waiting += 1
        elif one.event.kind == "track":
            batch.ambiguous.append((one.event, len(found)))
    if moved:
        columns = {name: [row[name] for row in moved] for name in ("id", "account", "place")}
        conn.exec_driver_sql(_MOVE_EVENTS, columns)
        conn.exec_driver_sql(_MOVE_PENDING, columns)
    done.processed -= waiting


# Loading -------------------------------------------------------------------------------------------------------------


def _accounts(conn: Connection, taken: _Taken, partition: int, now: datetime) -> dict[str, Account]:
    """The accounts of the batch; those never heard of before are made."""
    first: dict[str, datetime] = {}
    for one in taken.events:
        if one.account is not None and one.event.id not in taken.set_aside:
            first[one.account] = min(first.get(one.account, one.event.at), one.event.at)
    keys = set(first) | {key for key, _, _ in taken.timers}
    accounts = states.load(conn, keys=keys, now=now)
    missing = sorted(keys - set(accounts))
    if missing:
        rows = [{"key": key, "partition": partition, "at": first[key]} for key in missing]
        consequences.make_accounts(conn, rows)
        accounts.update(states.load(conn, keys=missing, now=now))
    return accounts


def _versions(accounts: dict[str, Account], taken: _Taken) -> Iterator[int]:
    """The versions that the rules may be asked about."""
    for account in accounts.values():
        yield from (one.version for one in account.enrollments)
        yield from (one["version"] for one in account.candidates if "version" in one)
    for one in taken.events:
        if one.event.name == STEERED and isinstance(version := one.event.properties.get("version"), int):
            yield version


def _contacts(conn: Connection, taken: _Taken, now: datetime) -> tuple[dict[str, Contact], set[str]]:
    """The contacts that events of this batch speak of, locked, made where they are new, as strangers without a membership; and which are
    new."""
    keys = {
        one.event.contact: one.event.at
        for one in reversed(taken.events)
        if one.event.contact and one.event.kind in ("identify", "group") and one.event.id not in taken.set_aside
    }
    if not keys:
        return {}, set()
    new = consequences.make_contacts(conn, keys)
    return states.load_contacts(conn, list(keys), now, lock=True), new


def _addresses(conn: Connection, taken: _Taken) -> None:
    """What is closed for the persons whose addresses the batch tells: they may be mailed by the same batch."""
    told = [
        (one, person) for one in taken.events if one.event.kind == "identify" and (person := normalise(one.event.properties.get("email")))
    ]
    if not told:
        return
    persons = sorted({person for _, person in told})
    if taken.buried:
        tombstones.revive(conn, persons)
    closed = dict(conn.exec_driver_sql(_CLOSED, {"persons": persons}).all())
    for one, person in told:
        if person in closed:
            one.event = replace(one.event, closed=frozenset(closed[person]))


def _complete(conn: Connection, book: Book, accounts: dict[str, Account], taken: _Taken, now: datetime) -> dict[str, Account]:
    """Loads the rest of what is known for the accounts where something may be decided."""
    acting = {key for key, occurrence, _ in taken.ordered() if key is not None and journey.needs(book, accounts[key], occurrence)}
    taken.acting = acting
    if acting:
        some = {key: accounts[key] for key in acting}
        accounts.update(states.complete(conn, some, book.lifecycle.usage, now, entering=True, lock=book.sets_contacts))
    return accounts


def _with_stranger(account: Account, occurrence: Occurrence, strangers: dict[str, Contact]) -> Account:
    """The contact of an identify or group event is known to the rules even before it is a member, and every contact as it is now: the
    same batch may have heard of it under another account."""
    if not strangers:
        return account
    fresh = {}
    for key in account.contacts.keys() & strangers.keys():
        known = account.contacts[key]
        if known.clocks != strangers[key].clocks:
            fresh[key] = replace(strangers[key], roles=known.roles, joined_at=known.joined_at)
    if _speaks_of_contact(occurrence) and occurrence.contact in strangers and occurrence.contact not in account.contacts:
        fresh[occurrence.contact] = strangers[occurrence.contact]
    return replace(account, contacts={**account.contacts, **fresh}) if fresh else account


def _keep_stranger(account: Account, occurrence: Occurrence, strangers: dict[str, Contact]) -> None:
    if _speaks_of_contact(occurrence) and occurrence.contact in strangers:
        strangers[occurrence.contact] = replace(account.contacts[occurrence.contact], roles=frozenset(), joined_at=None)


def _speaks_of_contact(occurrence: Occurrence) -> bool:
    return isinstance(occurrence, Event) and occurrence.kind in ("identify", "group")


def _alone(batch: consequences.Batch, event: Event) -> None:
    """An event of a contact that belongs to no account, or to several, and does not say which."""
    if event.kind == "identify" and (contact := batch.strangers.get(event.contact or "")):
        batch.strangers[contact.key] = batch.changed_strangers[contact.key] = contact_values(contact, event)


def _park(conn: Connection, partition: int, poison: Poison, error: BaseException, now: datetime) -> None:
    if not poison.occurrence:
        raise error
    log.error("parked %s of account %s: %r", poison.occurrence, poison.account, error)
    db.insert_rows(
        conn,
        parked,
        [
            {
                "partition": partition,
                "account_key": poison.account,
                "contact_key": poison.contact,
                "occurrence": poison.occurrence,
                "error": f"{type(error).__name__}: {error}"[:2000].replace("\x00", ""),
                "traceback": "".join(traceback.format_exception(error))[-20_000:].replace("\x00", ""),
                "parked_at": now,
            }
        ],
    )


_NEVER = (datetime.max.replace(tzinfo=UTC), 0)
_BEFORE = """
select coalesce((select jsonb_agg(jsonb_build_array(account_key, contact_key)) from parked
                 where partition = %(partition)s and released_at is null), '[]'),
       exists (select from contact_alias), exists (select from tombstone)"""
_NOT_PARKED = """
      and (p.account_key is null or p.account_key <> all(%(accounts)s))
      and (p.account_key is not null or p.contact_key is null or p.contact_key <> all(%(contacts)s))"""
# Chosen with `= any(array(…))`: the join chose a sequential scan.
_PENDING = """
select id, kind, name, account_key, contact_key, properties, occurred_at, received_at, message_id, mark, depth, source_id
from event where id = any(array(
    select event_id from event_pending p where partition = %(partition)s {parked} order by received_at, event_id limit %(limit)s))"""
_TIMERS = """
(select a.external_id, e.id, e.due_at from enrollment e join account a on a.id = e.account_id
 where e.partition = %(partition)s and e.state = 'active' and e.due_at <= %(now)s
   and e.campaign_id <> all(%(paused)s) and a.external_id <> all(%(accounts)s)
 order by e.due_at, e.id limit %(limit)s)
union all
(select external_id, null, due_at from account
 where partition = %(partition)s and due_at <= %(now)s and external_id <> all(%(accounts)s) order by due_at, id limit %(limit)s)"""
_MEMBERSHIPS = """
select c.external_id, a.external_id, a.partition from contact c
join membership m on m.contact_id = c.id join account a on a.id = m.account_id where c.external_id = any(%(keys)s)"""
_JOINING = """
select e.contact_key, p.partition <> %(partition)s, p.received_at, p.event_id from event e join event_pending p on p.event_id = e.id
where e.contact_key = any(%(keys)s) and e.account_key is not null and e.kind in ('group', 'identify')
  and not exists (select from parked k where k.account_key = e.account_key and k.released_at is null)"""
_TELLING = """
select distinct e.contact_key from event e join event_pending p on p.event_id = e.id
where e.contact_key = any(%(keys)s) and e.kind in ('group', 'identify') and p.partition <> %(partition)s
  and not exists (select from parked k where k.released_at is null
                  and (k.account_key = e.account_key or (e.account_key is null and k.contact_key = e.contact_key)))"""
_CLOSED = "select person, array_agg(scope) from suppression where person = any(%(persons)s) and lifted_at is null group by person"
_MOVED = "(select unnest(%(id)s::bigint[]) as id, unnest(%(account)s::text[]) as account, unnest(%(place)s::smallint[]) as place) r"
_MOVE_EVENTS = f"update event e set account_key = r.account from {_MOVED} where e.id = r.id"
_MOVE_PENDING = f"update event_pending p set account_key = r.account, partition = r.place from {_MOVED} where p.event_id = r.id"
