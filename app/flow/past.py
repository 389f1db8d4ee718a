"""What was in force and what was known at a moment of the past, rebuilt from what is stored: versions, and events run again in a World.

Reads only. The rules that decide again are those that decided then.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from app.errors import RenderSkip
from app.flow import history
from app.flow.compose import Mail
from app.flow.publish import including
from app.flow.world import Compose, Feedback, Letter, Reply, World
from app.rules.book import Book, Standing, build_book
from app.rules.facts import Account, Decision, Event, Occurrence, Reaction
from app.rules.lifecycle import Lifecycle
from app.rules.reasons import GATE_OF
from app.rules.triggers import ENROLL_REQUESTED

LONGEST = 50_000  # events of an account, and of those it shares people with, that are run again
BOOKS = 32  # of the past that this process keeps compiled

log = logging.getLogger("nurture.explain")


@dataclass(frozen=True, slots=True)
class Seen:
    """An event that starts campaigns, as it was processed: the account before and after, and what was decided. `book` was in force."""

    event: Event
    before: Account
    after: Account
    decisions: tuple[Decision, ...]
    book: Book


@dataclass(slots=True)
class Past:
    """An account's past. `problem` is None where it was rebuilt whole; else `events_pruned` (`since` is the oldest event that is still
    stored), `no_events`, `too_long` or `not_rebuilt`, and nothing is known."""

    problem: str | None = None
    since: datetime | None = None
    accounts: dict[datetime, Account] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def at(self, moment: datetime) -> Account | None:
        """The account as it was then, if that was asked for and could be rebuilt."""
        return self.accounts.get(moment)

    def of_event(self, message_id: str) -> Seen | None:
        return next((one for one in reversed(self.seen) if one.event.message_id == message_id), None)


def rebuild(conn: Connection, key: str, created_at: datetime, moments: Iterable[datetime], until: datetime) -> Past:
    """The past of the account `key` up to and including `until`; as it was at each of `moments`.

    Never guesses: an account whose first events are no longer stored has a past with a `problem` and nothing else.
    """
    oldest, pruned_at = conn.exec_driver_sql(_OLDEST, {"account": key}).one()
    past = Past(since=oldest and max(oldest, pruned_at or oldest))
    if past.since is None or past.since > created_at:
        past.problem = "no_events" if past.since is None else "events_pruned"
        return past
    told = next(history.of_database(conn, accounts=[key], until=until))
    if len(told.events) > LONGEST:
        past.problem = "too_long"
        return past
    laws = Laws(conn)
    changes = [one for one in laws.changes if one <= until]
    try:
        deferred = dict(conn.exec_driver_sql(_DEFERRED, {"accounts": list(told.accounts), "until": until}).all())
        skipped = dict(conn.exec_driver_sql(_UNWRITTEN, {"accounts": list(told.accounts), "reasons": list(_RENDER), "until": until}).all())
        world = _Watched(
            laws.book(changes[0] if changes else until), key, past, feedback=_Deferring(told.feedback, deferred), compose=_composed(skipped)
        )
        told.tell(world)
        for moment in sorted({*changes[1:], *(one for one in moments if one <= until), until}):
            world.run(moment)
            if moment in changes[1:]:
                world.set_book(laws.book(moment))
            if (account := world.account(key)) is not None:
                past.accounts[moment] = account
    except Exception:
        # What the engine parked raises here again. An explanation without it is better than none, and says so.
        log.exception("the past of account %s could not be rebuilt", key)
        return Past("not_rebuilt", past.since)
    past.decisions = [said for about, said in world.decisions if about == key]
    return past


class _Deferring:
    """Feedback as it was recorded, put off as often as the relay put it off."""

    def __init__(self, recorded: Feedback, deferred: Mapping[UUID, int]):
        self._recorded, self._deferred = recorded, deferred

    def outcome(self, letter: Letter) -> str:
        return "deferred" if letter.attempts < self._deferred.get(letter.id, 0) else self._recorded.outcome(letter)

    def after(self, letter: Letter) -> Iterable[tuple[timedelta | datetime, Reply]]:
        return self._recorded.after(letter)


def _composed(skipped: Mapping[UUID, str]) -> Compose:
    """Writes nothing, but fails where a mail could not be rendered: templates are not run again."""

    def compose(letter: Letter, *_: Any) -> Mail:
        if (reason := skipped.get(letter.id)) is not None:
            raise RenderSkip(reason, {})
        return Mail("", "", "", ())

    return compose


class _Watched(World):
    """A world that notes how the events went that start campaigns of one account."""

    def __init__(self, book: Book, key: str, past: Past, **more: Any):
        super().__init__(book, **more)
        self._key, self._past = key, past

    def _take(self, home: Any, before: Account, occurrence: Occurrence, reaction: Reaction) -> None:
        super()._take(home, before, occurrence, reaction)
        if home.key != self._key:
            return
        for event in (occurrence, *reaction.derived):
            if isinstance(event, Event) and (event.name in self.book.triggers or event.name == ENROLL_REQUESTED):
                self._past.seen.append(Seen(event, before, reaction.account, reaction.decisions, self.book))


# What was in force ---------------------------------------------------------------------------------------------------


class Laws:
    """Which book was in force when: every publication, rollback and change of a mode is written down with its time."""

    def __init__(self, conn: Connection):
        self.conn = conn
        self._where = conn.engine.url.render_as_string(hide_password=True)
        self._lifecycles: Sequence[Row] = conn.exec_driver_sql(_LIFECYCLES).all()
        self._changes: dict[str, list[Row]] = {}
        for one in conn.exec_driver_sql(_CHANGES):
            self._changes.setdefault(one.key, []).append(one)
        times = {one.published_at for one in self._lifecycles} | {one.at for rows in self._changes.values() for one in rows}
        self.changes: list[datetime] = sorted(times)

    def published_at(self, key: str) -> datetime | None:
        """When the campaign was first published."""
        return next((one.at for one in self._changes.get(key, ())), None)

    def book(self, at: datetime) -> Book:
        """What was in force at that moment; before anything was, what came first."""
        known = [one for one in self._lifecycles if one.published_at <= at]
        row = known[-1] if known else self._lifecycles[0]
        standings = []
        for key, rows in self._changes.items():
            if (there := bisect_right(rows, at, key=lambda one: one.at)) > 0:
                one = rows[there - 1]
                standings.append(Standing(one.campaign_id, key, one.mode, one.version_id))
        place = (self._where, row.id, tuple(standings))
        with _lock:
            found = _books.get(place)
        if found is None:
            empty = build_book(Lifecycle.model_validate(row.definition), standings, {})
            found = including(self.conn, empty, [standing.version for standing in standings])
        with _lock:
            _books[place] = found
            _books.move_to_end(place)
            while len(_books) > BOOKS:
                _books.popitem(last=False)
        return found


_lock = threading.Lock()
_books: OrderedDict[tuple[str, int, tuple[Standing, ...]], Book] = OrderedDict()
_RENDER = frozenset(reason for reason, gate in GATE_OF.items() if gate == "render")
_UNWRITTEN = """
select m.id, m.reason from message m join account a on a.id = m.account_id
where a.external_id = any(%(accounts)s) and m.state = 'skipped' and m.reason = any(%(reasons)s) and m.settled_at <= %(until)s"""
_DEFERRED = """
select m.id, count(*) from message m join account a on a.id = m.account_id join delivery_event d on d.message_id = m.id
where a.external_id = any(%(accounts)s) and d.kind = 'deferred' and d.at <= %(until)s group by m.id"""
# Events may lack in the middle, too, where a contact was erased.
_OLDEST = """
select (select min(received_at) from event where account_key = %(account)s),
       (select pruned_at from account where external_id = %(account)s)"""
_LIFECYCLES = "select id, definition, published_at from lifecycle_version order by id"
_CHANGES = """
select c.key, h.campaign_id, h.mode, h.version_id, h.at from campaign_change h join campaign c on c.id = h.campaign_id
order by h.campaign_id, h.at, h.id"""
