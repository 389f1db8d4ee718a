"""The frozen values that rules take and give: what is known of an account, what happened, what was decided.

Nothing here touches a clock, a session or a network. Live runs, simulation, campaign tests and explanation all speak these types.
Accounts and contacts are named by external ids (`key`), so that the same facts give the same answers in any database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import UUID

EMPTY: Mapping[str, Any] = MappingProxyType({})
NO_KEYS: frozenset[str] = frozenset()
OWN_PREFIX = "nurture."  # of the names of the engine's own events
CLICKED = "nurture.email_clicked"
CLICK_WITHDRAWN = "nurture.email_click_withdrawn"  # undoes one CLICKED in the counts of usage, and nothing else
TRIGGER_MAX_AGE = timedelta(days=3)  # what is older when anybody first hears of it enrolls nobody
_Fact = TypeVar("_Fact")


def _none() -> Any:
    return field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Contact:
    """A person at this account. `roles` are those of the membership; `joined_at` None says that there is no membership (yet).

    `suppressed` holds the scopes (`all`, `bounced`, `complained`, `manual` or topics) that are closed for the person's address;
    `held` is the reason of a hold, or None; `clocks` say how new each value is: {name: [occurred_at, message_id]}.
    """

    key: str
    id: int
    address: str | None = None
    person: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    roles: frozenset[str] = NO_KEYS
    timezone: str | None = None
    locale: str | None = None
    traits: Mapping[str, Any] = _none()
    joined_at: datetime | None = None
    last_seen_at: datetime | None = None
    suppressed: frozenset[str] = NO_KEYS
    held: str | None = None
    clocks: Mapping[str, Any] = _none()

    def unreachable(self, topic: str) -> str | None:
        """The reason code for not writing to this contact, or None."""
        if not self.person:
            return "no_address"
        if "all" in self.suppressed and topic != "transactional":
            return "opted_out"
        if not self.suppressed.isdisjoint(("bounced", "complained", "manual")):
            return "suppressed"
        if topic in self.suppressed and topic != "transactional":
            return "topic_opted_out"
        return None


@dataclass(frozen=True, slots=True)
class Usage:
    """One metric's daily counts (UTC), newest first: `days` are (ordinal of the day, count). `people` are (ordinal of the day, contact),
    for metrics that count contacts."""

    days: tuple[tuple[int, int], ...] = ()
    last_at: datetime | None = None
    people: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    score: float | None = None
    band: str | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Milestone:
    reached_at: datetime | None = None
    overdue_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Enrollment:
    """One account, or one contact of it, inside one version of a campaign.

    `position` is what the current step must remember (deadlines, messages that are not yet settled); its keys belong to
    `rules.journey`. `entry` is the event it entered by.
    """

    id: UUID
    campaign: str
    version: int
    contact: str | None
    shadow: bool
    held_out: bool
    step: str | None
    occurrence: int
    position: Mapping[str, Any]
    entry: Mapping[str, Any]
    entered_at: datetime
    due_at: datetime | None
    goal_at: datetime | None = None
    state: str = "active"
    ended_at: datetime | None = None
    end_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What re-entry must know of enrollments that have ended: per (campaign, contact, shadow) the last end."""

    campaign: str
    contact: str | None
    shadow: bool
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class Account:
    """All that rules may know of an account at one moment. `contacts` and `usage` are loaded only where something reads them.

    `watched` is what watches remember of what they have told, by the watch's key (`rules.watching`).
    """

    key: str
    id: int
    name: str | None = None
    touch: str | None = None
    timezone: str | None = None
    owner_name: str | None = None
    owner_email: str | None = None
    owner_timezone: str | None = None
    seats: int | None = None
    customer_since: datetime | None = None
    renewal_date: datetime | None = None
    revenue: float | None = None
    traits: Mapping[str, Any] = _none()
    stage: str | None = None
    stage_entered_at: datetime | None = None
    created_at: datetime | None = None
    due_at: datetime | None = None
    milestones: Mapping[str, Milestone] = _none()
    health: Health = Health()
    usage: Mapping[str, Usage] = _none()
    contacts: Mapping[str, Contact] = _none()
    enrollments: tuple[Enrollment, ...] = ()
    past: tuple[Past, ...] = ()
    candidates: tuple[Mapping[str, Any], ...] = ()
    watched: Mapping[str, Any] = _none()
    held: str | None = None
    clocks: Mapping[str, Any] = _none()


@dataclass(frozen=True, slots=True)
class Event:
    """A dated fact. `id` is its row, None for one that is only now derived; `mark` is None, `too_old` or `backfill`; `source` is who
    posted it, 0 for the engine itself. Where it tells an address, `closed` are the scopes that are closed for the person behind it."""

    name: str
    properties: Mapping[str, Any]
    occurred_at: datetime
    received_at: datetime
    message_id: str
    kind: str = "track"
    contact: str | None = None
    mark: str | None = None
    depth: int = 0
    id: int | None = None
    source: int = 0
    closed: frozenset[str] = NO_KEYS

    @property
    def at(self) -> datetime:
        return self.received_at

    @property
    def own(self) -> bool:
        """Whether the engine raised it itself: being mailed, or clicking in a mail, is not being seen in the product."""
        return self.name.startswith(OWN_PREFIX)


@dataclass(frozen=True, slots=True)
class Timer:
    """A moment that came: of an enrollment (`enrollment` is its id) or of the account itself (None).

    `seen` is when it is really looked at, which is later than `at` after an outage; None stands for `at`.
    """

    at: datetime
    enrollment: UUID | None = None
    seen: datetime | None = None


Occurrence = Event | Timer


@dataclass(frozen=True, slots=True)
class Decision:
    """A line of the ledger. `gate` is where, `verdict` is yes, no or wait, `reason` is a code, `evidence` is what it saw."""

    gate: str
    verdict: str
    reason: str
    at: datetime
    campaign: str | None = None
    version: int | None = None
    enrollment: UUID | None = None
    step: str | None = None
    contact: str | None = None
    message: UUID | None = None
    evidence: Mapping[str, Any] = _none()


@dataclass(frozen=True, slots=True)
class NewMessage:
    """An effect: one email to one contact for one step. `state` is due, ghosted (held out) or shadow."""

    id: UUID
    enrollment: UUID
    campaign: str
    version: int
    step: str
    occurrence: int
    contact: str
    kind: str
    topic: str
    priority: int
    created_at: datetime
    due_at: datetime
    expires_at: datetime
    state: str = "due"


@dataclass(frozen=True, slots=True)
class NewEffect:
    """An effect on staff or on another system: an alert, a task or a webhook, once for a step of an enrollment.

    `spec` is what the step says, `values` are the facts that its merge tags read, as they were when the step came. `state` is due,
    ghosted (held out), shadow, or frozen: its campaign is paused.
    """

    id: UUID
    kind: str
    enrollment: UUID
    campaign: str
    version: int
    step: str
    occurrence: int
    contact: str | None
    spec: Mapping[str, Any]
    values: Mapping[str, Any]
    created_at: datetime
    state: str = "due"


@dataclass(frozen=True, slots=True)
class Reaction:
    """What follows from one occurrence: the account afterwards, and everything that must be written with it.

    `account` carries the new values of the account itself, its milestones, contacts and active enrollments; whoever stores it
    compares it with what was loaded. `enrollments` are those that changed, the ended ones included; `usage` names the metrics that
    the occurrence counts in.
    """

    account: Account
    enrollments: tuple[Enrollment, ...] = ()
    messages: tuple[NewMessage, ...] = ()
    effects: tuple[NewEffect, ...] = ()
    decisions: tuple[Decision, ...] = ()
    derived: tuple[Event, ...] = ()
    usage: tuple[str, ...] = ()
    stages: tuple[tuple[str, datetime, str], ...] = ()  # entered: name, when, why


@dataclass(slots=True)
class Scope:
    """What a condition or a template may read: one account, perhaps one contact, event, enrollment and answer, and the time.

    `now` is the time of the occurrence, never the clock's.
    """

    account: Account
    now: datetime
    contact: Contact | None = None
    event: Event | Mapping[str, Any] | None = None
    enrollment: Enrollment | None = None
    response: Mapping[str, Any] | None = None


def renew(fact: _Fact, **changes: Any) -> _Fact:
    """`dataclasses.replace` for the frozen values of this module, in a third of its time. Names that there are not raise AttributeError."""
    kind = type(fact)
    read, writers = _PARTS.get(kind) or _parts(kind)
    new = object.__new__(kind)
    for write, value in zip(writers, read(fact), strict=True):
        write(new, value)
    for name, value in changes.items():
        object.__setattr__(new, name, value)
    return new


def _parts(kind: type) -> tuple[Callable, tuple[Callable, ...]]:
    names = [one.name for one in fields(kind)]
    _PARTS[kind] = attrgetter(*names), tuple(getattr(kind, name).__set__ for name in names)
    return _PARTS[kind]


_PARTS: dict[type, tuple[Callable, tuple[Callable, ...]]] = {}


def utc_day(at: datetime) -> int:
    """The ordinal of the UTC day: what usage and last-seen are counted by."""
    return at.astimezone(UTC).toordinal()


def hash_id(*parts: object) -> UUID:
    """The id that follows from `parts`: the same parts, the same id, in a live run and in a simulation alike."""
    digest = hashlib.blake2b("\x1f".join("" if part is None else str(part) for part in parts).encode(), digest_size=16)
    return UUID(bytes=digest.digest())


def hash_share(*parts: object) -> float:
    """A number in [0, 1) that follows from `parts`: for holdouts, splits and jitter."""
    return hash_id(*parts).int / 2**128


def partition_of(key: str, partitions: int) -> int:
    """The partition that the account (or, where none is known, the contact) named `key` belongs to."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big") % partitions
