"""What campaigns will do, before they do it: a run of the real rules over stored history, or over a file of events, and what came of it.

Nothing is sent and nothing is written. Accounts that share people run in one world, since they share caps and quarantine; others run
one group after the other, so that memory does not grow with the number of customers. All campaigns run, whichever are asked about: they
share caps, quarantine, goals and each other's events.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, select

from app.flow.compose import Compiled, Link
from app.flow.history import History
from app.flow.world import Compose, Letter, World, writing
from app.models import template
from app.rules.book import Book
from app.rules.definition import MAIL_KINDS
from app.rules.reasons import sentence
from app.rules.timing import zone, zone_for

TOO_CLOSE = timedelta(hours=24)  # two mails to one person
TOO_MANY = 4  # mails to one person within a week
WEEK = timedelta(days=7)
EXAMPLES = 20
STOPS = 50  # times that a run of some accounts says how far it is
SAME_TIME = timedelta(minutes=1)
DONE = ("sent", "unknown")


@dataclass(frozen=True, slots=True)
class Mailing:
    """One message of a simulation. `at` is when it goes, or was to go; `local` the same by the reader's clock."""

    account: str
    account_name: str | None
    contact: str
    address: str | None
    campaign: str
    step: str
    occurrence: int
    kind: str
    topic: str
    subject: str | None
    due_at: datetime
    at: datetime
    local: str
    outcome: str
    reason: str | None
    evidence: Mapping[str, Any]
    person: str | None

    @property
    def place(self) -> tuple[str, str, str, str, int]:
        """What makes it the same message in another run."""
        return self.account, self.contact, self.campaign, self.step, self.occurrence


@dataclass(frozen=True, slots=True)
class Told:
    """An alert, a task or a webhook of a simulation."""

    account: str
    account_name: str | None
    campaign: str
    step: str
    kind: str
    at: datetime
    state: str


@dataclass(slots=True)
class Simulation:
    """What came of a run from `began` until just before `ends`. `silent` are the accounts that got nothing, each with the first reason why.

    Where `chosen` names campaigns, everything is about them alone, but for `beside`: the mails that the others sent.
    """

    began: datetime
    ends: datetime
    zone: ZoneInfo  # of the installation, whose days are counted
    campaigns: dict[str, str]  # key → name
    chosen: frozenset[str] | None = None
    others: dict[str, str] = field(default_factory=dict)  # key → name
    beside: list[Mailing] = field(default_factory=list)
    letters: list[Mailing] = field(default_factory=list)
    effects: list[Told] = field(default_factory=list)
    entered: Counter[str] = field(default_factory=Counter)
    ended: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    silent: list[tuple[str, str | None, str]] = field(default_factory=list)
    accounts: int = 0
    events: int = 0
    asked_again: Counter[tuple[str, str]] = field(default_factory=Counter)  # surveys that quarantine stopped: (which, asked before by)
    capped: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (loser, winner, per whom)

    def about(self, campaign: str | None) -> bool:
        """Whether the campaign is one of those asked about."""
        return self.chosen is None or campaign is None or campaign in self.chosen

    @property
    def sent(self) -> list[Mailing]:
        return [one for one in self.letters if one.outcome in DONE]

    def plain(self) -> dict[str, Any]:
        """Everything as JSON can carry it."""
        return {
            "from": self.began.isoformat(),
            "to": self.ends.isoformat(),
            "timezone": self.zone.key,
            "totals": totals(self),
            "campaigns": by_campaign(self),
            "others": by_others(self),
            "days": by_day(self),
            "reasons": reasons(self),
            "caps": caps(self),
            "collisions": collisions(self),
            "surveys": survey_load(self),
            "busiest": busiest(self),
            "silent": [{"account": key, "name": name, "why": why} for key, name, why in self.silent],
            "effects": [_plain(one) for one in self.effects],
            "messages": [_plain(one) | {"evidence": dict(one.evidence)} for one in self.letters],
        }


def simulate(
    book: Book,
    histories: Iterable[History],
    began: datetime,
    ends: datetime,
    *,
    chosen: Collection[str] | None = None,
    compose: Compose | None = None,
    progress: Callable[[int, datetime], None] = lambda accounts, at: None,
) -> Simulation:
    """Runs the campaigns of `book` over the histories up to `ends`; what happened before `began` builds the state and is not reported.

    With `chosen` all of them run as well, and what these come to is reported, with what the others took from them.
    `compose` writes each mail, so that subjects and holes show; None writes nothing and the subject is the step's. `progress` is told now
    and then how many accounts are done and at which moment those at hand are. Raises nothing for any event; changes nothing.
    """
    names = {key: book.versions[one.version].campaign.name for key, one in book.standings.items() if one.mode in ("live", "shadow")}
    found = Simulation(began, ends, zone(book.lifecycle.timezone), names, frozenset(chosen) if chosen is not None else None)
    found.others = {key: name for key, name in names.items() if not found.about(key)}
    found.campaigns = {key: name for key, name in names.items() if found.about(key)}
    for history in histories:
        world = World(book, feedback=history.feedback, compose=compose)
        history.tell(world)
        history.go_on(world)
        for moment in _way(history, ends):
            world.run(moment)
            progress(found.accounts, moment)
        _collect(found, world, book)
        found.events += sum(one.received_at < ends for one in history.events)
    for letters in (found.letters, found.beside):
        letters.sort(key=lambda one: (one.at, one.place))
    found.effects.sort(key=lambda one: (one.at, one.account, one.campaign, one.step))
    found.silent.sort()
    return found


def _way(history: History, ends: datetime) -> Iterator[datetime]:
    """Moments to stop at on the way to `ends`. Stopping changes nothing."""
    first = min((one.received_at for one in history.events), default=ends)
    yield from (first + (ends - first) * part / STOPS for part in range(1, STOPS) if first < ends)
    yield ends


def published_writing(conn: Connection, book: Book) -> Compose:
    """Writes the mails of the versions that new enrollments enter at present."""
    keys = {one.version: key for key, one in book.standings.items()}
    templates: dict[tuple[str, str], dict[str, Compiled]] = {}
    for row in conn.execute(select(template).where(template.c.version_id.in_(list(keys)))):
        links = tuple(Link(link["url"], link["label"], link["track"]) for link in row.links)
        found = Compiled(row.subject, row.html, row.text, links, frozenset(row.reads))
        templates.setdefault((keys[row.version_id], row.step_id), {})[row.locale] = found
    return writing(templates, book.lifecycle)


def _collect(found: Simulation, world: World, book: Book) -> None:
    accounts = world.accounts
    reached: set[str] = set()
    surveys = {
        (one.person, one.settled_at.isoformat()): f"{one.campaign}/{one.step}"
        for one in world.letters
        if one.kind == "survey" and one.settled_at is not None and one.outcome != "skipped"
    }
    for letter in world.letters:
        at = letter.settled_at or letter.due_at
        if not found.began <= at < found.ends:
            continue
        if letter.reason == "survey_quarantine":
            asked_before = surveys.get((letter.person, letter.evidence.get("asked_at")), "")
            if found.about(letter.campaign):
                found.asked_again[f"{letter.campaign}/{letter.step}", asked_before] += 1
        if not found.about(letter.campaign):
            if letter.outcome in DONE:
                found.beside.append(_mailing(letter, at, accounts[letter.account], book))
            continue
        found.letters.append(_mailing(letter, at, accounts[letter.account], book))
        if letter.outcome in DONE:
            reached.add(letter.account)
    for key, effect in world.effects:
        if found.about(effect.campaign) and found.began <= effect.created_at < found.ends:
            about = (key, accounts[key].name, effect.campaign, effect.step, effect.kind, effect.created_at)
            found.effects.append(Told(*about, "made" if effect.state == "due" else effect.state))
    for _, enrollment in world.enrollments.values():
        if not found.about(enrollment.campaign):
            continue
        found.entered[enrollment.campaign] += found.began <= enrollment.entered_at < found.ends
        if enrollment.ended_at is not None and found.began <= enrollment.ended_at < found.ends:
            found.ended[enrollment.campaign][enrollment.end_reason or enrollment.state] += 1
    for _, one in world.decisions:
        if one.gate == "caps" and one.verdict == "wait" and found.began <= one.at < found.ends:
            lost_to = str(one.evidence.get("lost_to", ""))
            if found.about(one.campaign) or found.about(_campaign_of(lost_to)):
                found.capped[f"{one.campaign}/{one.step}", lost_to, str(one.evidence.get("per", ""))] += 1
    found.accounts += len(accounts)
    why = _first_noes(found, world)
    nothing = f"Nothing happened that starts {'a campaign' if found.chosen is None else 'what you chose'}."
    found.silent += [(key, one.name, why.get(key, nothing)) for key, one in accounts.items() if key not in reached]


def _campaign_of(place: str) -> str:
    """The campaign of a step named by campaign and step."""
    return place.rpartition("/")[0]


def _mailing(letter: Letter, at: datetime, account: Any, book: Book) -> Mailing:
    node = book.versions[letter.version].nodes.get(letter.step) if letter.version in book.versions else None
    where, _ = zone_for(account, account.contacts.get(letter.contact), book.lifecycle.timezone)
    return Mailing(
        account=letter.account,
        account_name=account.name,
        contact=letter.contact,
        address=letter.address,
        campaign=letter.campaign,
        step=letter.step,
        occurrence=letter.occurrence,
        kind=letter.kind,
        topic=letter.topic,
        subject=letter.subject or (node.step.subject if node is not None and node.kind in MAIL_KINDS else None),
        due_at=letter.due_at,
        at=at,
        local=at.astimezone(where).strftime("%a %Y-%m-%d %H:%M"),
        outcome=letter.outcome,
        reason=letter.reason,
        evidence=letter.evidence,
        person=letter.person,
    )


def _first_noes(found: Simulation, world: World) -> dict[str, str]:
    """By account, what first said no within the period."""
    said: dict[str, str] = {}
    for key, decision in world.decisions:
        mine = key is not None and key not in said and decision.verdict == "no" and found.about(decision.campaign)
        if mine and found.began <= decision.at < found.ends:
            where = f"{decision.campaign}: " if decision.campaign else ""
            said[key] = where + sentence(decision.reason, decision.evidence)
    return said


# What it adds up to --------------------------------------------------------------------------------------------------


def totals(found: Simulation) -> dict[str, int]:
    sent = found.sent
    return {
        "accounts": found.accounts,
        "events": found.events,
        "mails": len(sent),
        "surveys": sum(one.kind == "survey" for one in sent),
        "people": len({one.person for one in sent}),
        "accounts_reached": len({one.account for one in sent}),
        "accounts_silent": len(found.silent),
        "not_sent": sum(one.outcome == "skipped" for one in found.letters),
        "waiting": sum(one.outcome == "due" for one in found.letters),
        "held_out": sum(one.outcome == "ghosted" for one in found.letters),
        "in_shadow": sum(one.outcome == "shadow" for one in found.letters),
        "staff": len(found.effects),
    }


def by_campaign(found: Simulation) -> list[dict[str, Any]]:
    """A row per campaign, those without any effect included."""
    rows = []
    for key, name in sorted(found.campaigns.items()):
        mine = [one for one in found.letters if one.campaign == key]
        skipped = Counter(one.reason or "skipped" for one in mine if one.outcome == "skipped")
        rows.append(
            {
                "campaign": key,
                "name": name,
                "entered": found.entered[key],
                "ended": dict(found.ended[key].most_common()),
                "mails": sum(one.outcome in DONE for one in mine),
                "surveys": sum(one.outcome in DONE and one.kind == "survey" for one in mine),
                "people": len({one.person for one in mine if one.outcome in DONE}),
                "not_sent": dict(skipped.most_common()),
                "waiting": sum(one.outcome == "due" for one in mine),
                "held_out": sum(one.outcome == "ghosted" for one in mine),
                "staff": dict(Counter(one.kind for one in found.effects if one.campaign == key)),
            }
        )
    return rows


def by_others(found: Simulation) -> list[dict[str, Any]]:
    """A row per campaign that ran beside the chosen ones: its mails, and how often a chosen one lost to it, or it to a chosen one."""
    mails = Counter(one.campaign for one in found.beside)
    taken, given, asked = Counter[str](), Counter[str](), Counter[str]()
    for (loser, winner, _), count in found.capped.items():
        taken[_campaign_of(winner)] += count if found.about(_campaign_of(loser)) else 0
        given[_campaign_of(loser)] += count if found.about(_campaign_of(winner)) else 0
    for (_, before), count in found.asked_again.items():
        asked[_campaign_of(before)] += count
    return [
        {
            "campaign": key,
            "name": name,
            "mails": mails[key],
            "caps_taken": taken[key],
            "caps_given": given[key],
            "surveys_taken": asked[key],
        }
        for key, name in sorted(found.others.items())
    ]


def by_day(found: Simulation) -> list[dict[str, Any]]:
    """Every day of the period, as the installation's zone has it: how many mails of which campaign."""
    days: dict[date, Counter[str]] = defaultdict(Counter)
    for one in found.sent:
        days[day_of(found, one.at)][one.campaign] += 1
    first, last = day_of(found, found.began), day_of(found, found.ends - timedelta(microseconds=1))
    every = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    return [{"day": day.isoformat(), "mails": sum(days[day].values()), "campaigns": dict(days[day].most_common())} for day in every]


def day_of(found: Simulation, at: datetime) -> date:
    return at.astimezone(found.zone).date()


def reasons(found: Simulation) -> list[dict[str, Any]]:
    """Why messages were not sent, or wait, the commonest first."""
    counted = Counter(one.reason for one in found.letters if one.outcome in ("skipped", "due") and one.reason)
    return [{"reason": reason, "text": sentence(reason), "messages": count} for reason, count in counted.most_common()]


def caps(found: Simulation) -> list[dict[str, Any]]:
    """Who lost to whom under the caps."""
    return [{"message": loser, "lost_to": winner, "per": per, "times": count} for (loser, winner, per), count in found.capped.most_common()]


def collisions(found: Simulation) -> dict[str, Any]:
    """Mails that come close on each other's heels: to one person within a day, and more than a person wants within a week.

    Those of the campaigns that run beside the chosen ones count where one of the chosen is among them.
    """
    by_person: dict[str, list[Mailing]] = defaultdict(list)
    for one in sorted(found.sent + found.beside, key=lambda one: (one.at, one.place)):
        if one.person:
            by_person[one.person].append(one)
    close, crowded = [], []
    for person, mine in sorted(by_person.items()):
        pairs = [(before, after) for before, after in zip(mine, mine[1:], strict=False) if after.at - before.at < TOO_CLOSE]
        close += [(before, after) for before, after in pairs if found.about(before.campaign) or found.about(after.campaign)]
        week = _most_within_a_week(found, mine)
        if week >= TOO_MANY:
            crowded.append({"person": person, "account": mine[0].account, "within_a_week": week})
    pairs = Counter((f"{before.campaign}/{before.step}", f"{after.campaign}/{after.step}") for before, after in close)
    return {
        "within_a_day": len(close),
        "pairs": [{"first": first, "second": second, "times": count} for (first, second), count in pairs.most_common(EXAMPLES)],
        "examples": [
            {
                "person": before.person,
                "account": before.account,
                "first": f"{before.campaign}/{before.step}",
                "second": f"{after.campaign}/{after.step}",
                "at": [before.at.isoformat(), after.at.isoformat()],
            }
            for before, after in close[:EXAMPLES]
        ],
        "crowded": sorted(crowded, key=lambda one: -one["within_a_week"])[:EXAMPLES],
    }


def _most_within_a_week(found: Simulation, mine: Sequence[Mailing]) -> int:
    """The most mails of one person within a week that has one of the chosen campaigns in it."""
    most = first = chosen = 0
    for last, one in enumerate(mine):
        chosen += found.about(one.campaign)
        while mine[first].at <= one.at - WEEK:
            chosen -= found.about(mine[first].campaign)
            first += 1
        if chosen:
            most = max(most, last - first + 1)
    return most


def survey_load(found: Simulation) -> dict[str, Any]:
    """How often people are asked."""
    asked = Counter(one.person for one in found.sent if one.kind == "survey")
    return {
        "asked": sum(asked.values()),
        "people": len(asked),
        "most_per_person": max(asked.values(), default=0),
        "stopped_by_quarantine": found.asked_again.total(),
        "stopped": [
            {"message": which, "asked_before": before, "times": count} for (which, before), count in found.asked_again.most_common()
        ],
    }


def busiest(found: Simulation, number: int = EXAMPLES) -> list[dict[str, Any]]:
    """The accounts that get the most mail."""
    mails, names, people = Counter(), {}, defaultdict(set)
    for one in found.sent:
        mails[one.account] += 1
        names[one.account] = one.account_name
        people[one.account].add(one.person)
    rows = sorted(mails.items(), key=lambda one: (-one[1], one[0]))[:number]
    return [{"account": key, "name": names[key], "mails": count, "people": len(people[key])} for key, count in rows]


# What an edit changes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changes:
    """What another definition changes: mails gained, lost (with why, if a reason is known) and moved (before, after)."""

    gained: Sequence[Mailing]
    lost: Sequence[tuple[Mailing, str]]
    moved: Sequence[tuple[Mailing, Mailing]]
    reworded: Sequence[tuple[Mailing, Mailing]]

    def plain(self) -> dict[str, Any]:
        """As JSON can carry it, with the numbers per campaign."""
        keys = {one.campaign for one in self.gained} | {one.campaign for one, _ in self.lost} | {one.campaign for one, _ in self.moved}
        return {
            "campaigns": [
                {
                    "campaign": key,
                    "gained": sum(one.campaign == key for one in self.gained),
                    "lost": sum(one.campaign == key for one, _ in self.lost),
                    "moved": sum(one.campaign == key for one, _ in self.moved),
                }
                for key in sorted(keys)
            ],
            "gained": [_plain(one) for one in self.gained],
            "lost": [_plain(one) | {"why": why} for one, why in self.lost],
            "moved": [_plain(after) | {"was_at": before.at.isoformat()} for before, after in self.moved],
            "reworded": [_plain(after) | {"was": before.subject} for before, after in self.reworded],
        }


def compare(before: Simulation, after: Simulation) -> Changes:
    """What changes from one simulation to another of the same history."""
    old, new = {one.place: one for one in before.sent}, {one.place: one for one in after.sent}
    unsent = {one.place: one for one in after.letters if one.outcome not in DONE}
    both = sorted(old.keys() & new.keys(), key=lambda place: (new[place].at, place))
    lost = []
    for place in sorted(old.keys() - new.keys(), key=lambda place: (old[place].at, place)):
        now = unsent.get(place)
        lost.append((old[place], sentence(now.reason, now.evidence) if now else "It is not written any more."))
    return Changes(
        gained=[one for one in after.sent if one.place not in old],
        lost=lost,
        moved=[(old[place], new[place]) for place in both if abs(new[place].at - old[place].at) > SAME_TIME],
        reworded=[(old[place], new[place]) for place in both if new[place].subject != old[place].subject],
    )


def _plain(one: Any) -> dict[str, Any]:
    found = {name: getattr(one, name) for name in one.__slots__ if name != "evidence"}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in found.items()}
