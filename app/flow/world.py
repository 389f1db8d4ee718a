"""The engine in memory: the same rules over the same occurrences, without a database and on any clock (invariant 10).

Simulation, campaign tests and explanation run in a World. It keeps what `flow.states` would load and does around the rules what
`flow.advance`, `flow.consequences`, `flow.prepare`, `flow.claims` and `flow.outcome` do; what is decided, `rules.journey.react`,
`rules.consent.gate` and `rules.delivery.ending` decide. Nothing is ever sent, and no clock is read.

Occurrences go in the order of their times: at one instant first what changes around the accounts (holds, suppressions), then events
in their sequence, then timers, then the mail that is due. With `every` the engine looks only at whole multiples of it (since the
epoch), as a live engine does whose ticks are that far apart: everything up to the tick, by what holds at the tick.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any, Protocol
from uuid import UUID

from app.errors import RenderSkip, SendError
from app.flow.assess import AGAIN_AFTER
from app.flow.check import Campaigns
from app.flow.compose import Compiled, Composer, Mail, nowhere
from app.flow.consequences import ASSESS_LATER, ASSESS_SOON
from app.flow.prepare import LOOK_AGAIN, locales, why
from app.flow.respond import clean
from app.flow.states import USAGE_KEPT
from app.flow.track import SETTLES_AFTER
from app.flow.vitals import Vitals
from app.rules import capacity, consent, journey
from app.rules.book import Book, Node, Standing, Version, build_book, compile_version
from app.rules.capacity import Place, Refusal
from app.rules.conditions import values
from app.rules.delivery import ages_of, ending
from app.rules.facts import (
    EMPTY,
    Account,
    Contact,
    Decision,
    Enrollment,
    Event,
    Health,
    Milestone,
    NewEffect,
    NewMessage,
    Reaction,
    Scope,
    Timer,
    Usage,
    renew,
)
from app.rules.identity import contact_values, normalise
from app.rules.lifecycle import TRANSACTIONAL, Lifecycle
from app.rules.steps import message_id
from app.rules.triggers import SCALES

OWN_SOURCE = 0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PAST_KEPT = 64  # ends of enrollments, before those that a later one makes superfluous are dropped


@dataclass(frozen=True, slots=True)
class Posted:
    """One event as it reached the inbox. `source` is who posted it, 0 for the engine's own events that are facts here, such as
    `nurture.health_changed`; the same (source, message_id) is one event (invariant 1). Times are aware UTC."""

    message_id: str
    kind: str
    name: str
    account: str | None
    contact: str | None
    properties: Mapping[str, Any]
    occurred_at: datetime
    received_at: datetime
    source: int = 1
    mark: str | None = None


@dataclass(slots=True)
class Letter:
    """One message of the world. `id` is the one that a live run gives it.

    `outcome` is due, sent, skipped, unknown, ghosted or shadow; `reason`, `gate` and `evidence` say why it waits or was skipped.
    `address` and `person` are the contact's when it was written, then those it went to. `mail` is what `compose` made of it.
    """

    id: UUID
    account: str
    contact: str
    address: str | None
    person: str | None
    enrollment: UUID
    campaign: str
    version: int
    step: str
    occurrence: int
    kind: str
    topic: str
    priority: int
    created_at: datetime
    due_at: datetime
    expires_at: datetime
    outcome: str = "due"
    reason: str | None = None
    gate: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    settled_at: datetime | None = None
    subject: str | None = None
    shadow: bool = False
    attempts: int = 0
    tried_at: datetime | None = None
    mail: Any = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a recipient does with a letter.

    `kind` is clicked (`link`, `url` and `label` say on what), answered (a survey: `score`, `comment`), replied (by mail: `comment`; `key`
    tells several apart), unsubscribed (`scope` is a topic or `all`, by default the letter's topic), complained, or proved (it arrived, by
    whatever sign). A click is judged human here; the event follows when a live one would be judged.
    """

    kind: str
    score: int | None = None
    comment: str | None = None
    scope: str | None = None
    link: int = 0
    url: str | None = None
    label: str | None = None
    key: str = "1"


class Feedback(Protocol):
    """How relay and recipients answer."""

    def outcome(self, letter: Letter) -> str:
        """What the relay says: sent, rejected (no such recipient), refused (for good, but not for the recipient), deferred, unknown."""

    def after(self, letter: Letter) -> Iterable[tuple[timedelta | datetime, Reply]]:
        """What follows once the letter is sent or unknown: each with its moment, or how long after the sending."""


Compose = Callable[[Letter, Version, Node, Scope], Mail]

# What a live relay says in each case.
_REPLIES: Mapping[str, tuple[str, str, str, int | None]] = {
    "rejected": ("perm", "rcpt", "5.1.1 no such user", 550),
    "refused": ("perm", "dot", "5.7.1 refused", 554),
    "deferred": ("temp", "dot", "4.3.0 later", 451),
    "unknown": ("unknown", "dot", "no answer", None),
}


def refusal(said: str) -> SendError:
    """What a transport raises where Feedback says so: for anything but sent."""
    return SendError(*_REPLIES[said])


class World:
    """Any number of accounts, what happens to them, and what the engine makes of it.

    `feedback` None has every letter sent and nobody answer. `compose` writes the mail and may raise RenderSkip; None writes nothing.
    `every` is how far apart the moments are at which the engine looks; None has it look at once.

    Read what came of it from `letters`, `effects`, `decisions` and `derived` (each with the account it is about), `enrollments` (by id:
    account and latest state), `stages` (account, stage, when, why) and `accounts`. Belongs to one thread.
    """

    def __init__(
        self,
        book: Book,
        *,
        feedback: Feedback | None = None,
        compose: Compose | None = None,
        every: timedelta | None = None,
    ):
        self.book = book
        self.feedback, self.compose, self.every = feedback, compose, every
        self.now: datetime | None = None  # of the latest look
        self.letters: list[Letter] = []
        self.effects: list[tuple[str, NewEffect]] = []
        self.decisions: list[tuple[str | None, Decision]] = []
        self.derived: list[tuple[str, Event]] = []
        self.enrollments: dict[UUID, tuple[str, Enrollment]] = {}
        self.stages: list[tuple[str, str, datetime, str]] = []
        self._homes: dict[str, _Home] = {}
        self._contacts: dict[str, Contact] = {}  # as strangers: without roles and membership
        self._members: dict[str, dict[str, None]] = defaultdict(dict)  # contact → accounts
        self._persons: dict[str, dict[str, None]] = defaultdict(dict)  # person → contacts
        self._closed: dict[str, frozenset[str]] = {}  # person → scopes
        self._holds: dict[tuple[str | None, str | None], list[_Hold]] = defaultdict(list)  # by account or contact
        self._aliases: dict[str, str] = {}
        self._seen: dict[str, int] = {}  # contact → day
        self._unknown: dict[str, datetime] = {}  # last seen, of those who are no contacts yet
        self._late: dict[str, datetime] = {}  # contact → last seen, where `_contacts` does not know it yet
        self._asked: dict[str, datetime] = {}  # contact → latest survey
        self._by_person: dict[str, dict[UUID, Place]] = defaultdict(dict)
        self._by_account: dict[str, dict[UUID, Place]] = defaultdict(dict)
        self._waiting: dict[UUID, Letter] = {}  # due, once a gate or the relay has had them wait
        self._of_contact: dict[str, list[Letter]] = defaultdict(list)
        self._answers: dict[UUID, tuple[int, str | None, int]] = {}
        self._known: set[tuple[int, str]] = set()
        self._by_id: dict[UUID, Letter] = {}
        self._effect_ids: set[UUID] = set()
        self._inbox: list[tuple[datetime, int, Posted]] = []  # the next one last
        self._sorted = True
        self._agenda: list[tuple] = []  # a heap: own events and timers
        self._outgoing: list[tuple] = []  # a heap: letters that are due
        self._changes: list[tuple] = []  # a heap: what happens around the accounts
        self._due: dict[UUID, datetime] = {}
        self._frozen: list[tuple] = []  # timers of paused campaigns
        self._vitals = Vitals()
        self._count = 0
        self._rows = 0

    # What happens to it -----------------------------------------------------------------------------------------------

    def post(self, events: Iterable[Posted]) -> None:
        """Events for the inbox, those known already excepted. What is received before the latest look is taken at the next."""
        for one in events:
            if (one.source, one.message_id) not in self._known:
                self._known.add((one.source, one.message_id))
                self._inbox.append((one.received_at, self._next(), one))
                self._sorted = False

    def hold(
        self,
        *,
        account: str | None = None,
        contact: str | None = None,
        reason: str,
        since: datetime,
        until: datetime | None = None,
        released: datetime | None = None,
    ) -> None:
        """Holds the account or the contact; `released` is when somebody ended it, which frees waiting mail at once."""
        held = _Hold(account, contact, reason)
        self._change(since, self._held, held, True)
        if until is not None:
            self._change(until, self._held, held, False)
        if released is not None and (until is None or released < until):
            self._change(released, self._released, held)

    def suppress(self, person: str, scope: str, at: datetime) -> None:
        """Closes `scope` (a topic, `all`, `bounced`, `complained`, `manual`) for the person from `at` on."""
        self._change(at, self._suppressed, person, scope, True)

    def lift(self, person: str, scope: str, at: datetime) -> None:
        """Opens the scope again."""
        self._change(at, self._suppressed, person, scope, False)

    def stand(self, account: str, at: datetime, *, stage: str | None = None, milestones: Iterable[str] = ()) -> None:
        """Where the account, which is known by then, stands at `at`, however it came there: nothing follows from that alone."""
        self._change(at, self._stood, account, stage, tuple(milestones))

    def assess(self, account: str, score: float | None, band: str | None, at: datetime) -> None:
        """What the health of the account was found to be. That is told by an event only where it is news."""
        self._change(at, self._assessed, account, score, band)

    def assess_from(self, account: str, since: datetime, last: Mapping[str, Any] | None = None) -> None:
        """From `since` on the health of the account is assessed here, as a live engine would; `last` is the row of its latest assessment.
        Without this the world believes what it is told."""
        self._vitals.watch(account, since, last)
        if last is not None:
            self._ask_health(account, since)

    def set_book(self, book: Book) -> None:
        """What is in force from now on. Versions that `book` does not know are kept for those inside them (invariant 7)."""
        self.book = replace(book, versions={**self.book.versions, **book.versions})
        for home in self._homes.values():
            home.uncounted.update(book.lifecycle.usage)
        for entry in self._frozen:
            heappush(self._agenda, entry)
        self._frozen.clear()
        self._thaw()

    # What comes of it -------------------------------------------------------------------------------------------------

    @property
    def accounts(self) -> dict[str, Account]:
        """Every account by external id, as it is now."""
        return {key: self._whole(home) for key, home in self._homes.items()}

    def account(self, key: str) -> Account | None:
        """One account, as it is now."""
        home = self._homes.get(key)
        return self._whole(home) if home else None

    # The run ----------------------------------------------------------------------------------------------------------

    def run(self, until: datetime) -> None:
        """Goes on until nothing is left up to and including `until`. May be called again with a later time, and the same time changes
        nothing."""
        if self.every is None:
            while self._step(until):
                pass
        else:
            while (at := self._next_at()) is not None:
                tick = max(self._tick(at), self._tick(self.now) if self.now else EPOCH)
                if tick > until:
                    break
                self._look(tick)

    def _step(self, until: datetime) -> bool:
        """The next thing that happens, up to `until`; False when there is none. At one instant: changes, then occurrences, then mail."""
        occurs = self._occurs_at()
        changes, leaves = self._changes, self._outgoing[0][0] if self._outgoing else None
        if changes and (occurs is None or changes[0][0] <= occurs) and (leaves is None or changes[0][0] <= leaves):
            at = changes[0][0]
        elif occurs is not None and (leaves is None or occurs <= leaves):
            at = occurs
        elif leaves is not None:
            at = leaves
        else:
            return False
        if at > until:
            return False
        if self.now is None or self.now < at:
            self.now = at
        if changes and at == changes[0][0]:
            self._take_change()
        elif at == occurs:
            self._take_occurrence()
        else:
            self._deliver(self.now)
        return True

    def _look(self, now: datetime) -> None:
        """Everything up to `now`, by what holds then."""
        self.now = now
        while self._changes and self._changes[0][0] <= now:
            self._take_change()
        while True:
            while (at := self._occurs_at()) is not None and at <= now:
                self._take_occurrence()
            if not self._outgoing or self._outgoing[0][0] > now:
                return
            self._deliver(now)

    def _occurs_at(self) -> datetime | None:
        """When the next occurrence is."""
        if not self._sorted:
            self._inbox.sort(key=lambda one: one[:2], reverse=True)
            self._sorted = True
        inbox, agenda = self._inbox, self._agenda
        if inbox:
            at = inbox[-1][0]
            return at if not agenda or at <= agenda[0][0] else agenda[0][0]
        return agenda[0][0] if agenda else None

    def _take_change(self) -> None:
        at, _, change, arguments = heappop(self._changes)
        change(at, *arguments)

    def _take_occurrence(self) -> None:
        inbox, agenda = self._inbox, self._agenda
        if inbox and (not agenda or inbox[-1][0] < agenda[0][0] or (inbox[-1][0], 0, inbox[-1][1]) < agenda[0][:3]):
            self._take_event(inbox.pop()[2])
            return
        entry = heappop(agenda)
        if entry[1] == 0:
            self._take_event(entry[3])
        elif (timer := self._timer(entry)) is not None:
            self._react(self._homes[timer[0]], timer[1], None)

    def _timer(self, entry: tuple) -> tuple[str, Timer] | None:
        """The timer, unless another has taken its place, or its campaign is paused."""
        at, _, of_account, ident, key = entry
        if of_account:
            home = self._homes[key]
            return (key, Timer(at, None, self.now)) if home.account.due_at == at else None
        if self._due.get(ident) != at:
            return None
        if self._is_paused(self.enrollments[ident][1].campaign):
            self._frozen.append(entry)
            return None
        return key, Timer(at, ident, self.now)

    def _next_at(self) -> datetime | None:
        heads = [heap[0][0] for heap in (self._outgoing, self._changes) if heap]
        if (at := self._occurs_at()) is not None:
            heads.append(at)
        at = min(heads, default=None)
        return at if at is None or self.now is None else max(at, self.now)

    def _tick(self, at: datetime) -> datetime:
        return EPOCH - (EPOCH - at) // self.every * self.every

    # Occurrences ------------------------------------------------------------------------------------------------------

    def _take_event(self, one: Posted) -> None:
        contact = self._aliases.get(one.contact, one.contact) if one.contact else one.contact
        closed = frozenset()
        if one.kind == "identify" and self._closed:
            closed = self._closed.get(normalise(one.properties.get("email")) or "", closed)
        times = one.occurred_at, one.received_at
        event = Event(one.name, one.properties, *times, one.message_id, one.kind, contact, one.mark, 0, None, one.source, closed)
        speaks = one.kind in ("identify", "group") and contact is not None
        if speaks and contact not in self._contacts:
            self._contacts[contact] = Contact(contact, self._row(), last_seen_at=self._unknown.pop(contact, None))
        key = one.account
        if key is None:
            accounts = self._members.get(contact or "", ())
            if len(accounts) == 1:
                key = next(iter(accounts))
            else:
                self._alone(event, len(accounts))
        if key is not None:
            home = self._homes.get(key) or self._make(key, event.received_at)
            self._react(home, event, self._stranger(contact) if speaks else None)
            if one.kind == "track" and contact is not None and one.mark is None and not event.own:
                self._saw(contact, one.contact, event.occurred_at)
        if one.kind == "alias":
            self._join(str(one.properties.get("previous_id") or ""), contact)

    def _react(self, home: _Home, occurrence: Event | Timer, stranger: Contact | None) -> None:
        book = self.book
        if stranger is None and not journey.needs(book, home.account, occurrence):
            bare = home.bare or home.strip()
            reaction = journey.react(book, bare, occurrence)
            if reaction.account is bare and not (reaction.enrollments or reaction.decisions or reaction.derived or reaction.stages):
                if reaction.usage:
                    self._use(home, occurrence, reaction, True)
                if isinstance(occurrence, Event):
                    self._ask_health(home.key, self.now + ASSESS_LATER)
                return
            # Something follows after all, and may be decided only by everything that is known.
        before = self._whole(home)
        if stranger is not None and stranger.key not in before.contacts:
            before = renew(before, contacts={**before.contacts, stranger.key: stranger})
        self._take(home, before, occurrence, journey.react(book, before, occurrence))

    def _take(self, home: _Home, before: Account, occurrence: Event | Timer, reaction: Reaction) -> None:
        key, after = home.key, reaction.account
        if len(after.past) > PAST_KEPT:
            latest = {(one.campaign, one.contact, one.shadow): one for one in sorted(after.past, key=lambda one: one.ended_at)}
            after = renew(after, past=tuple(latest.values()))
        home.set(after)
        if reaction.usage:
            self._use(home, occurrence, reaction, bool(reaction.derived))
        if isinstance(occurrence, Event):
            soon = after.clocks is not before.clocks or after.milestones is not before.milestones
            self._ask_health(key, self.now + (ASSESS_SOON if soon else ASSESS_LATER))
        if after.contacts is not before.contacts:
            for one in after.contacts.values():
                if before.contacts.get(one.key) is not one:
                    self._learnt(key, one)
        for one in reaction.enrollments:
            self.enrollments[one.id] = (key, one)
            if one.due_at is None:
                self._due.pop(one.id, None)
            elif self._due.get(one.id) != one.due_at:
                self._due[one.id] = one.due_at
                heappush(self._agenda, (one.due_at, 1, 0, one.id, key))
        if after.due_at is not None and after.due_at != home.due_at:
            heappush(self._agenda, (after.due_at, 1, 1, key, key))
        home.due_at = after.due_at
        for one in reaction.messages:
            self._write(key, one)
        for one in reaction.effects:
            if one.id not in self._effect_ids:
                self._effect_ids.add(one.id)
                self.effects.append((key, one))
        self.decisions += [(key, one) for one in reaction.decisions]
        self.derived += [(key, one) for one in reaction.derived]
        self.stages += [(key, *one) for one in reaction.stages]

    def _alone(self, event: Event, memberships: int) -> None:
        """An event of a contact that belongs to no account, or to several, and does not say which."""
        if event.kind == "identify":
            self._changed(contact_values(self._stranger(event.contact), event))
        elif event.kind == "track":
            evidence = {"event": event.name, "message_id": event.message_id, "contact": event.contact, "memberships": memberships}
            said = Decision("trigger", "no", "account_ambiguous", event.at, contact=event.contact, evidence=evidence)
            self.decisions.append((None, said))

    # Accounts and people ----------------------------------------------------------------------------------------------

    def _make(self, key: str, at: datetime) -> _Home:
        home = self._homes[key] = _Home(key, Account(key, self._row(), created_at=at), self.book.lifecycle.usage)
        if (held := self._held_by(key, None)) is not None:
            home.set(renew(home.account, held=held))
        return home

    def _whole(self, home: _Home) -> Account:
        """The account with its usage, and its people as they were last seen."""
        if home.unseen or home.uncounted:
            account = home.account
            usage, contacts = account.usage, account.contacts
            if home.uncounted:
                since = self.now.toordinal() - USAGE_KEPT.days if self.now else 0
                usage = home.counted(self.book.lifecycle.usage, since)
            if home.unseen:
                contacts = dict(contacts)
                for key in home.unseen:
                    if (known := contacts.get(key)) is not None:
                        contacts[key] = renew(known, last_seen_at=self._stranger(key).last_seen_at)
                home.unseen.clear()
            home.account = renew(account, usage=usage, contacts=contacts)
        return home.account

    def _use(self, home: _Home, occurrence: Event, reaction: Reaction, uncounted: bool) -> None:
        """Counts the occurrence; `uncounted` says that the facts of the account do not have it yet."""
        at = occurrence.occurred_at
        day = (at if at.tzinfo is UTC else at.astimezone(UTC)).toordinal()
        self._vitals.hear(reaction.usage)
        for metric in reaction.usage:
            spec = self.book.lifecycle.usage.get(metric)
            home.count(metric, day, at, occurrence.contact if spec is not None and spec.contacts else None)
            if uncounted:
                home.uncounted.add(metric)

    def _saw(self, contact: str, called: str, at: datetime) -> None:
        """When a contact was last seen is kept to the day; the facts learn it when somebody wants to know. Whom nobody has told of yet was
        seen under the id that it was called by."""
        known = self._contacts.get(contact)
        day = at.toordinal()
        if known is None:
            self._unknown[called] = max(at, self._unknown.get(called, at))
            return
        if self._seen.get(contact, 0) >= day:
            return
        self._seen[contact] = day
        if known.last_seen_at is None or known.last_seen_at.toordinal() < day:
            self._late[contact] = at
            for account in self._members.get(contact, ()):
                self._homes[account].unseen.add(contact)

    def _stranger(self, key: str) -> Contact:
        """The contact as everybody knows it."""
        if (at := self._late.pop(key, None)) is not None:
            self._contacts[key] = renew(self._contacts[key], last_seen_at=at)
        return self._contacts[key]

    def _learnt(self, account: str, one: Contact) -> None:
        """A contact that an account has told of: known so to all accounts it belongs to."""
        if one.joined_at is not None:
            self._members[one.key][account] = None
        self._changed(renew(one, roles=frozenset(), joined_at=None))

    def _changed(self, stranger: Contact) -> None:
        key = stranger.key
        former = self._contacts.get(key)
        if former is not None and former.person != stranger.person and former.person:
            self._persons[former.person].pop(key, None)
        if stranger.person:
            self._persons[stranger.person][key] = None
        closed = self._closed.get(stranger.person or "", frozenset())
        held = self._held_by(None, key)
        if stranger.suppressed != closed or stranger.held != held:
            stranger = renew(stranger, suppressed=closed, held=held)
        self._contacts[key] = stranger
        for account in self._members.get(key, ()):
            home = self._homes[account]
            known = home.account.contacts.get(key)
            if known is not None:
                fresh = renew(stranger, roles=known.roles, joined_at=known.joined_at)
                if fresh != known:
                    home.set(renew(home.account, contacts={**home.account.contacts, key: fresh}))

    def _join(self, previous: str, contact: str | None) -> None:
        """A contact known by its former id only takes the new one; where both are contacts, later events of the former id are the new
        one's."""
        if not previous or contact is None or previous == contact:
            return
        if previous not in self._aliases:
            self._aliases[previous] = contact
            for home in self._homes.values():
                home.rename_counted(previous, contact)
        if previous not in self._contacts or contact in self._contacts:
            return
        stranger = renew(self._stranger(previous), key=contact)
        del self._contacts[previous]
        self._contacts[contact] = stranger
        if stranger.person:
            self._persons[stranger.person].pop(previous, None)
            self._persons[stranger.person][contact] = None
        for kept in (self._members, self._seen, self._asked):
            if previous in kept:
                kept[contact] = kept.pop(previous)
        for account in self._members.get(contact, ()):
            home = self._homes[account]
            home.rename(previous, contact)
        for ident, (account, one) in self.enrollments.items():
            if one.contact == previous:
                self.enrollments[ident] = (account, renew(one, contact=contact))
        moved = self._of_contact.pop(previous, [])
        for letter in moved:
            letter.contact = contact
        self._of_contact[contact] += moved
        self.effects = [(account, renew(one, contact=contact) if one.contact == previous else one) for account, one in self.effects]

    # Holds and suppressions -------------------------------------------------------------------------------------------

    def _change(self, at: datetime, change: Callable, *arguments: Any) -> None:
        heappush(self._changes, (at, self._next(), change, arguments))

    def _held(self, at: datetime, held: _Hold, holds: bool) -> None:
        standing = self._holds[held.account, held.contact]
        if holds:
            standing.append(held)
        elif held in standing:
            standing.remove(held)
        if held.account is not None and (home := self._homes.get(held.account)):
            home.set(renew(home.account, held=self._held_by(held.account, None)))
        elif held.contact is not None and held.contact in self._contacts:
            self._changed(self._stranger(held.contact))

    def _released(self, at: datetime, held: _Hold) -> None:
        self._held(at, held, False)
        for letter in self._waiting.values():
            mine = letter.account == held.account if held.account is not None else letter.contact == held.contact
            if mine and letter.reason == "held" and letter.due_at > at:
                letter.due_at = at
                self._put_out(letter)

    def _held_by(self, account: str | None, contact: str | None) -> str | None:
        standing = self._holds.get((account, contact))
        return standing[0].reason if standing else None

    def _stood(self, at: datetime, account: str, stage: str | None, milestones: tuple[str, ...]) -> None:
        if home := self._homes.get(account):
            reached = {**home.account.milestones, **{name: Milestone(at) for name in milestones}}
            stood = {"stage": stage, "stage_entered_at": at} if stage is not None else {}
            home.set(renew(home.account, milestones=reached, **stood))

    def _assessed(self, at: datetime, account: str, score: float | None, band: str | None) -> None:
        if home := self._homes.get(account):
            home.set(renew(home.account, health=Health(score, band, at)))

    def _ask_health(self, account: str, at: datetime) -> None:
        if self._vitals.ask(account, at, self.book.lifecycle):
            self._change(at, self._assess_health, account)

    def _assess_health(self, at: datetime, account: str) -> None:
        """Assesses the account, where it is due now, and tells what is news."""
        if not self._vitals.is_due(account, at):
            return
        home, now = self._homes[account], max(at, self.now or at)
        seen = [last for key in home.account.contacts if (last := self._last_seen(key)) is not None]
        health, told = self._vitals.assess(home.account, home.counts, seen, self.book.lifecycle, now)
        self._change(now + AGAIN_AFTER, self._assess_health, account)
        if health is not None:
            home.set(renew(home.account, health=health))
        if told is not None:
            ident = f"health:{account}:{now.isoformat()}"
            one = Posted(ident, "track", "nurture.health_changed", account, None, told, now, now, OWN_SOURCE)
            heappush(self._agenda, (now, 0, self._next(), one))

    def _last_seen(self, contact: str) -> datetime | None:
        return self._late.get(contact) or self._contacts[contact].last_seen_at

    def _suppressed(self, at: datetime, person: str, scope: str, closed: bool) -> None:
        known = self._closed.get(person, frozenset())
        self._closed[person] = known | {scope} if closed else known - {scope}
        for contact in list(self._persons.get(person, ())):
            self._changed(self._stranger(contact))

    # Mail -------------------------------------------------------------------------------------------------------------

    def _write(self, key: str, new: NewMessage) -> None:
        if new.id in self._by_id:
            return
        contact = self._homes[key].account.contacts.get(new.contact)
        letter = self._by_id[new.id] = Letter(
            id=new.id,
            account=key,
            contact=new.contact,
            address=contact.address if contact else None,
            person=contact.person if contact else None,
            enrollment=new.enrollment,
            campaign=new.campaign,
            version=new.version,
            step=new.step,
            occurrence=new.occurrence,
            kind=new.kind,
            topic=new.topic,
            priority=new.priority,
            created_at=new.created_at,
            due_at=new.due_at,
            expires_at=new.expires_at,
            outcome=new.state,
            shadow=self.enrollments[new.enrollment][1].shadow,
        )
        self.letters.append(letter)
        self._of_contact[letter.contact].append(letter)
        if new.state == "due":
            self._put_out(letter)

    def _put_out(self, letter: Letter) -> None:
        heappush(self._outgoing, (letter.due_at, letter.id, letter))

    def _thaw(self) -> None:
        """Effects of campaigns that are not paused any more are done."""
        for place, (key, one) in enumerate(self.effects):
            if one.state == "frozen" and not self._is_paused(one.campaign):
                self.effects[place] = (key, renew(one, state="due"))
                if one.kind == "task":
                    about = (one.campaign, one.version, one.enrollment, one.step, one.contact)
                    self.decisions.append((key, Decision("effect", "yes", "task_made", self.now, *about)))

    def _deliver(self, now: datetime) -> None:
        """What is due, the higher priority first; what is woken meanwhile takes its turn."""
        ready: list[tuple] = []
        while True:
            while self._outgoing and self._outgoing[0][0] <= now:
                at, ident, letter = heappop(self._outgoing)
                if letter.outcome == "due" and letter.due_at == at:
                    heappush(ready, (-letter.priority, at, ident, letter))
            if not ready:
                return
            letter = heappop(ready)[-1]
            if letter.outcome == "due" and letter.due_at <= now:
                self._send(letter, now)

    def _reserve(self, letter: Letter, version: Version, contact: Contact, now: datetime) -> Refusal | None:
        """Takes the letter's place, where it needs one. Why there is none, or None."""
        person, key = contact.person, letter.account
        shared = len({one for mine in self._persons[person] for one in self._members.get(mine, ())}) > 1
        if not (letter.kind == "survey" or shared or self.book.caps_for(letter.topic)):
            return None
        wanted = Place(letter.id, person, key, letter.topic, letter.campaign, letter.step, letter.shadow, now)
        taken = {**self._by_person[person], **self._by_account[key]}
        longest = max((cap.within for cap in self.book.lifecycle.caps), default=timedelta(0))
        taken = {ident: one for ident, one in taken.items() if one.at > now - longest}
        if shared:
            taken |= self._sent_to(person)
        no = capacity.refusal(self.book, version, wanted, taken.values())
        if no is None:
            if (former := self._by_account[key].get(letter.id)) is not None and former.person != person:
                del self._by_person[former.person][letter.id]
            self._by_person[person][letter.id] = self._by_account[key][letter.id] = wanted
        return no

    def _sent_to(self, person: str) -> dict[UUID, Place]:
        """Everything that ever went to the person, wherever, with or without a place."""
        return {
            one.id: Place(one.id, person, one.account, one.topic, one.campaign, one.step, one.outcome == "shadow", one.settled_at)
            for contact in self._persons[person]
            for one in self._of_contact[contact]
            if one.outcome in ("sent", "unknown", "ghosted", "shadow")
        }

    def _give_back(self, letter: Letter, now: datetime) -> None:
        """The letter's place is free again, and whoever waited for one there is judged anew."""
        place = self._by_account[letter.account].pop(letter.id, None)
        if place is None:
            return
        self._by_person[place.person].pop(letter.id, None)
        contacts = self._persons[place.person]
        for one in self._waiting.values():
            if one.reason == "capped" and one.due_at > now and (one.account == letter.account or one.contact in contacts):
                one.due_at = now
                self._put_out(one)

    def _send(self, letter: Letter, now: datetime) -> None:
        if letter.expires_at <= now and not self._is_paused(letter.campaign):
            gate, reason = consent.why_expired(letter.reason)
            self._settle(letter, "skipped", reason, now, gate, {"expires_at": letter.expires_at.isoformat()})
            return
        enrollment = self.enrollments[letter.enrollment][1]
        if enrollment.state != "active":
            self._settle(letter, "skipped", "enrollment_ended", now, "enrollment")
            return
        account = self._whole(self._homes[letter.account])
        version = self.book.versions[letter.version]
        node, contact = version.nodes[letter.step], account.contacts.get(letter.contact)
        if contact is None:
            self._settle(letter, "skipped", "not_a_member", now, "recipient")
            return
        shut = consent.gate(self.book, account, enrollment, version, node, contact, now, self._asked_at(contact.person, letter))
        if shut is None:
            shut = self._reserve(letter, version, contact, now)
        if shut is not None:
            self._shut(letter, shut, now)
            return
        letter.address, letter.person = contact.address, contact.person
        if self.compose is not None:
            scope = Scope(account, now, contact, enrollment.entry, enrollment, enrollment.position.get("response"))
            try:
                letter.mail = self.compose(letter, version, node, scope)
            except RenderSkip as skip:
                self._settle(letter, "skipped", skip.reason, now, "render", skip.evidence)
                return
            letter.subject = letter.mail.subject
        if enrollment.shadow:
            self._settle(letter, "shadow", "shadow", now, "campaign")
        elif enrollment.held_out:
            self._settle(letter, "ghosted", "held_out", now, "holdout")
        else:
            self._hand_over(letter, node, now)

    def _shut(self, letter: Letter, said: Decision | Refusal, now: datetime) -> None:
        """A gate's no skips the message, its not yet makes it due when it says, as long as that is before the message expires."""
        if said.verdict == "no":
            self._settle(letter, "skipped", said.reason, now, said.gate, said.evidence)
            return
        until = said.evidence.get("until")
        again = datetime.fromisoformat(until) if until else now + LOOK_AGAIN
        if said.reason != "campaign_paused":
            again = min(max(again, now), letter.expires_at)
        self._settle(letter, "due", said.reason, now, said.gate, said.evidence, again)

    def _is_paused(self, campaign: str) -> bool:
        standing = self.book.standings.get(campaign)
        return standing is not None and standing.mode == "paused"

    def _hand_over(self, letter: Letter, node: Node, now: datetime) -> None:
        said = self.feedback.outcome(letter) if self.feedback is not None else "sent"
        letter.attempts += 1
        if said == "sent":
            self._settle(letter, "sent", None, now)
        else:
            error = refusal(said)
            ages = ages_of(letter.topic, self.book.lifecycle.sending)
            end = ending(error, letter.id, letter.attempts, now, letter.expires_at, letter.tried_at, ages)
            letter.tried_at = letter.tried_at or now
            reply = f"{error.code} {error.text}" if error.code else error.text
            if end.suppress and letter.person:
                self._suppressed(now, letter.person, "bounced", True)
            self._settle(letter, end.state, end.reason, now, "send", {"reply": reply, "phase": error.phase}, end.due_at)
        if letter.outcome in ("sent", "unknown") and self.feedback is not None:
            for when, reply in self.feedback.after(letter):
                moment = when if isinstance(when, datetime) else now + when
                self._change(moment, self._replied, letter, node, reply)

    def _settle(
        self,
        letter: Letter,
        outcome: str,
        reason: str | None,
        now: datetime,
        gate: str | None = None,
        evidence: Mapping[str, Any] = EMPTY,
        due_at: datetime | None = None,
    ) -> None:
        waits = outcome == "due"
        if reason is not None and not (waits and reason == letter.reason):
            self.decisions.append((letter.account, _said(letter, "wait" if waits else "no", reason, now, gate or "send", evidence)))
        letter.outcome, letter.reason, letter.gate, letter.evidence = outcome, reason, gate, evidence
        if outcome == "skipped" or (waits and gate != "send"):
            self._give_back(letter, now)
        if waits:
            self._waiting[letter.id] = letter
            letter.due_at = due_at or letter.due_at
            self._put_out(letter)
            return
        self._waiting.pop(letter.id, None)
        letter.settled_at = now
        if letter.kind == "survey" and outcome in ("sent", "unknown", "ghosted"):
            self._asked[letter.contact] = now
        properties = {
            "message": str(letter.id),
            "campaign": letter.campaign,
            "step": letter.step,
            "occurrence": letter.occurrence,
            "enrollment": str(letter.enrollment),
            "outcome": outcome,
        }
        self._raise("nurture.message_settled", f"settled:{letter.id}", properties, letter, now, now)

    def _asked_at(self, person: str | None, letter: Letter) -> datetime | None:
        """When the person was last asked something by another letter, or one was chosen that the relay has wait."""
        moments = []
        for contact in self._persons.get(person or "", ()):
            if contact in self._asked:
                moments.append(self._asked[contact])
            for one in self._of_contact[contact]:
                waits = one is not letter and one.kind == "survey" and one.outcome == "due"
                if waits and (place := self._by_account[one.account].get(one.id)) is not None and not place.shadow:
                    moments.append(place.at)
        return max(moments, default=None)

    # Replies ----------------------------------------------------------------------------------------------------------

    def _replied(self, at: datetime, letter: Letter, node: Node, reply: Reply) -> None:
        if reply.kind == "clicked":
            about = {"campaign": letter.campaign, "step": letter.step, "message": str(letter.id), "enrollment": str(letter.enrollment)}
            urls = letter.mail.links if letter.mail is not None else ()
            url = urls[reply.link] if reply.url is None and reply.link < len(urls) else reply.url
            properties = {**about, "link": reply.link, "url": url, "label": reply.label}
            judged = at + SETTLES_AFTER
            judged = self._tick(judged) if self.every is not None else judged
            self._raise("nurture.email_clicked", f"click:{letter.id}:{reply.link}", properties, letter, at, judged)
            self._change(judged, self._proved, letter)
        elif reply.kind == "replied":
            about = {"campaign": letter.campaign, "step": letter.step, "message": str(letter.id), "enrollment": str(letter.enrollment)}
            properties = {**about, "text": reply.comment or ""}
            self._raise("nurture.email_replied", f"reply:{letter.id}:{reply.key}", properties, letter, at, at)
            self._proved(at, letter)
        elif reply.kind == "proved":
            self._proved(at, letter)
        elif reply.kind == "answered":
            self._answered(at, *self._question(letter, node), reply)
        elif reply.kind == "unsubscribed":
            scope = reply.scope or letter.topic
            if scope != TRANSACTIONAL:
                for person in self._people(letter):
                    self._suppressed(at, person, scope, True)
        elif letter.person:
            self._suppressed(at, letter.person, "complained", True)

    def _proved(self, at: datetime, letter: Letter) -> None:
        """Something came back of a letter of which nobody knew whether it arrived (S-05)."""
        if letter.outcome == "unknown":
            letter.outcome, letter.reason = "sent", "proved_sent"
            self.decisions.append((letter.account, _said(letter, "yes", "proved_sent", at, "send", EMPTY)))

    def _question(self, letter: Letter, node: Node) -> tuple[Letter, Node]:
        """The survey that is answered: the letter's own, or the one that it reminds of."""
        if node.kind == "survey":
            return letter, node
        original = self.book.versions[letter.version].nodes[node.step.reminds]
        got = self.enrollments[letter.enrollment][1].position.get("got", {}).get(original.id, {})
        return self._by_id[message_id(letter.enrollment, original.id, got.get(letter.contact, 1), letter.contact)], original

    def _answered(self, at: datetime, letter: Letter, node: Node, reply: Reply) -> None:
        """The last answer before the survey closes counts; the same said again says nothing."""
        survey, question = node.step.survey, node.step.question
        low, high = SCALES[survey]
        comment = clean(reply.comment)
        previous, said, revision = self._answers.get(letter.id, (None, None, 0))
        closed = at >= letter.settled_at + self.book.lifecycle.survey.closes_after
        if closed or not low <= reply.score <= high or (revision and (previous, said) == (reply.score, comment)):
            return
        self._vitals.answered(letter.account, survey, letter.person or letter.contact, reply.score, at)
        self._ask_health(letter.account, at)
        revision += 1
        self._answers[letter.id] = (reply.score, comment, revision)
        properties = {
            "survey": survey,
            "question": question,
            "score": reply.score,
            "comment": comment,
            "campaign": letter.campaign,
            "step": letter.step,
            "message": str(letter.id),
            "enrollment": str(letter.enrollment),
            "revision": revision,
            "previous": previous,
        }
        self._raise("nurture.survey_responded", f"response:{letter.id}:{question}:{revision}", properties, letter, at, at)

    def _people(self, letter: Letter) -> Iterator[str]:
        present = self._contacts.get(letter.contact)
        yield from dict.fromkeys(one for one in (letter.person, present.person if present else None) if one)

    def _raise(
        self, name: str, message_id: str, properties: Mapping[str, Any], letter: Letter, occurred_at: datetime, received_at: datetime
    ) -> None:
        """An own event, once."""
        if (OWN_SOURCE, message_id) in self._known:
            return
        self._known.add((OWN_SOURCE, message_id))
        one = Posted(message_id, "track", name, letter.account, letter.contact, properties, occurred_at, received_at, OWN_SOURCE)
        heappush(self._agenda, (received_at, 0, self._next(), one))

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _row(self) -> int:
        self._rows += 1
        return self._rows


@dataclass(eq=False, slots=True)
class _Hold:
    account: str | None
    contact: str | None
    reason: str


class _Home:
    """One account: the facts as rules take them, and the usage as it is counted.

    `bare` is the account without what only decisions need. `uncounted` are the metrics, `unseen` the contacts, of which `account` does
    not know the latest yet.
    """

    __slots__ = ("account", "bare", "counts", "due_at", "key", "lasts", "people", "uncounted", "unseen")

    def __init__(self, key: str, account: Account, metrics: Iterable[str]):
        self.key = key
        self.account = account
        self.bare: Account | None = None
        self.due_at: datetime | None = None
        self.counts: dict[str, list[tuple[int, int]]] = {}  # by metric: (day, count), the newest first
        self.lasts: dict[str, datetime] = {}
        self.people: dict[str, dict[tuple[int, str], None]] = {}
        self.uncounted = set(metrics)
        self.unseen: set[str] = set()

    def set(self, account: Account) -> None:
        before, self.account = self.account, account
        if self.bare is not None and not _same_of_bare(before, account):
            self.bare = None

    def strip(self) -> Account:
        self.bare = renew(self.account, contacts=EMPTY, usage=EMPTY, past=())
        return self.bare

    def count(self, metric: str, day: int, at: datetime, contact: str | None) -> None:
        days = self.counts.setdefault(metric, [])
        if days and days[0][0] == day:
            days[0] = (day, days[0][1] + 1)
        elif not days or days[0][0] < day:
            days.insert(0, (day, 1))
        else:
            place = bisect_left(days, -day, key=lambda one: -one[0])
            if place < len(days) and days[place][0] == day:
                days[place] = (day, days[place][1] + 1)
            else:
                days.insert(place, (day, 1))
        if (last := self.lasts.get(metric)) is None or last < at:
            self.lasts[metric] = at
        if contact is not None:
            self.people.setdefault(metric, {})[day, contact] = None

    def counted(self, metrics: Iterable[str], since: int) -> dict[str, Usage]:
        """The usage of all metrics after the day `since`."""
        usage = {metric: known for metric in metrics if (known := self.account.usage.get(metric)) is not None}
        for metric in self.uncounted:
            days = self.counts.get(metric, [])
            while days and days[-1][0] <= since:
                days.pop()
            people = tuple(one for one in self.people.get(metric, ()) if one[0] > since)
            usage[metric] = Usage(tuple(days), self.lasts[metric] if days else None, people)
        self.uncounted.clear()
        return usage

    def rename_counted(self, previous: str, contact: str) -> None:
        """Who was counted under a former id is one person with who comes under the present one."""
        for metric, people in self.people.items():
            if any(one == previous for _, one in people):
                self.people[metric] = {(day, contact if one == previous else one): None for day, one in people}
                self.uncounted.add(metric)

    def rename(self, previous: str, contact: str) -> None:
        account = self.account
        if previous in self.unseen:
            self.unseen.remove(previous)
            self.unseen.add(contact)
        self.set(
            renew(
                account,
                contacts={
                    contact if key == previous else key: renew(one, key=contact) if key == previous else one
                    for key, one in account.contacts.items()
                },
                enrollments=tuple(renew(one, contact=contact) if one.contact == previous else one for one in account.enrollments),
                past=tuple(renew(one, contact=contact) if one.contact == previous else one for one in account.past),
            )
        )


def _same_of_bare(one: Account, other: Account) -> bool:
    """Whether a bare account serves for both. Equal values may be different objects: that costs a copy."""
    return (
        one.clocks is other.clocks
        and one.traits is other.traits
        and one.stage is other.stage
        and one.milestones is other.milestones
        and one.health is other.health
        and one.enrollments is other.enrollments
        and one.candidates is other.candidates
        and one.held is other.held
    )


def _said(letter: Letter, verdict: str, reason: str, now: datetime, gate: str, evidence: Mapping[str, Any]) -> Decision:
    return Decision(
        gate,
        verdict,
        reason,
        now,
        letter.campaign,
        letter.version,
        letter.enrollment,
        letter.step,
        letter.contact,
        letter.id,
        evidence,
    )


# From a folder -------------------------------------------------------------------------------------------------------


def book_of(campaigns: Campaigns, *, live: Iterable[str] | bool = (), first: int = 1) -> Book:
    """The book of a campaigns folder, without a database. The versions are numbered from `first` in the order of the folders.

    Each campaign is in the mode that its file says; those named in `live` (all with True) are live whatever it says.
    """
    lifecycle = campaigns.lifecycle
    standings, versions = [], {}
    for number, folder in enumerate(campaigns.folders, first):
        mode = "live" if live is True or (live and folder.key in live) else folder.campaign.mode
        standings.append(Standing(number, folder.key, mode, number))
        versions[number] = compile_version(number, folder.key, 1, folder.campaign, lifecycle.schema)
    return build_book(lifecycle, standings, versions)


def compose_of(campaigns: Campaigns, base_url: str = "http://127.0.0.1") -> Compose:
    """Writes the mails of a campaigns folder. Their links lead below `base_url` and nowhere: no token is valid."""
    templates: dict[tuple[str, str], dict[str, Compiled]] = {}
    for folder in campaigns.folders:
        for one in folder.templates:
            templates.setdefault((folder.key, one.step), {})[one.locale] = one.compiled
    return writing(templates, campaigns.lifecycle, base_url)


def writing(
    templates: Mapping[tuple[str, str], Mapping[str, Compiled]], lifecycle: Lifecycle, base_url: str = "http://127.0.0.1"
) -> Compose:
    """Writes mails of compiled `templates`, by campaign and step, then by language."""
    composer = Composer()
    brand = lifecycle.brand.model_dump()

    def compose(letter: Letter, version: Version, node: Node, scope: Scope) -> Mail:
        found = templates.get((version.key, node.id), {})
        locale = next((name for name in locales(scope.contact.locale) if name in found), None)
        if locale is None:
            raise RenderSkip("bad_template", {"problems": [f"step {node.id} has no template"]})
        compiled = found[locale]
        kept = values(scope, compiled.reads, lifecycle.schema)
        reader = why(brand["name"], scope.account)
        return composer.render((version.key, node.id, locale), compiled, kept, nowhere(base_url), brand, reader)

    return compose
