"""Enrolling by hand: an account, a contact, or everybody who matches a campaign now. Listed first, done only when told to.

Who would enter, and by which gate not, is not guessed: the rules are asked what they would do with the very event that is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from app.errors import InputError, NotFound
from app.flow.ingest import Own, raise_own
from app.flow.moving import AT_ONCE, whole
from app.flow.publish import book
from app.flow.steering import RAISED_AT_ONCE, find_campaign
from app.models import installation
from app.rules import journey
from app.rules.book import Book, Version
from app.rules.facts import Account, Event
from app.rules.modes import ENTERED
from app.rules.reasons import sentence
from app.rules.triggers import ENROLL_REQUESTED

LISTED = 1000  # of those who would enter, and of those who would not, as JSON


@dataclass(frozen=True, slots=True)
class FirstMail:
    """A mail that an enrollment begins with: its step, who gets it, and when it is due."""

    step: str
    contact: str
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """What the rules say to one request. `verdict` is yes, no or wait; `step` is where whoever enters would be then, until `due_at`."""

    account: str
    contact: str | None
    verdict: str
    gate: str
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
    held_out: bool = False
    step: str | None = None
    due_at: datetime | None = None
    mails: tuple[FirstMail, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON can carry it, with the reason in words."""
        names = ("account", "contact", "verdict", "gate", "reason", "evidence", "held_out", "step", "due_at")
        mails = [{"step": one.step, "contact": one.contact, "due_at": one.due_at} for one in self.mails]
        return {**{name: getattr(self, name) for name in names}, "text": sentence(self.reason, self.evidence), "mails": mails}


@dataclass(frozen=True, slots=True)
class Preview:
    """Who would be enrolled and who not. `named` says that somebody was named, whose every no belongs into the ledger."""

    campaign: str
    version: int
    mode: str
    answers: tuple[Answer, ...]
    named: bool

    @property
    def entering(self) -> list[Answer]:
        return [one for one in self.answers if one.verdict == "yes"]

    @property
    def refused(self) -> list[Answer]:
        return [one for one in self.answers if one.verdict != "yes"]

    def plain(self) -> dict[str, Any]:
        """As JSON can carry it; long lists are cut, the counts are whole."""
        entering, refused = self.entering, self.refused
        return {
            "campaign": self.campaign,
            "version": self.version,
            "mode": self.mode,
            "entering": len(entering),
            "refused": len(refused),
            "mails": sum(len(one.mails) for one in entering),
            "reasons": reasons_of(refused),
            "answers": [one.plain() for one in (*entering[:LISTED], *refused[:LISTED])],
        }


def reasons_of(refused: Sequence[Answer]) -> list[dict[str, Any]]:
    """How often which gate said no, the most frequent first."""
    counts: dict[tuple[str, str], int] = {}
    for one in refused:
        counts[one.gate, one.reason] = counts.get((one.gate, one.reason), 0) + 1
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return [{"gate": gate, "reason": reason, "text": sentence(reason), "count": count} for (gate, reason), count in ordered]


def preview(
    conn: Connection,
    key: str,
    now: datetime,
    *,
    accounts: Sequence[str] = (),
    contacts: Sequence[str] = (),
    everybody: bool = False,
    by: str = "hand",
) -> Preview:
    """What would become of enrolling these accounts or contacts (external ids), or everybody, now. Changes nothing.

    An account of a campaign that enrolls contacts stands for all its contacts; a contact of one that enrolls accounts, for its account.
    Raises NotFound for a campaign, account or contact that is not there, and InputError when nobody is named, or a contact that belongs to
    several accounts.
    """
    row = find_campaign(conn, key)
    known = book(conn)
    version = known.versions[row.version_id]
    if everybody and (accounts or contacts):
        raise InputError("name accounts or contacts, or take everybody, not both")
    if not (everybody or accounts or contacts):
        raise InputError("name an account or a contact, or take everybody")
    whom = _everybody(conn, version) if everybody else _named(conn, version, accounts, contacts)
    answers: list[Answer] = []
    for start in range(0, len(whom), AT_ONCE):
        chunk = whom[start : start + AT_ONCE]
        loaded = whole(conn, known, {account for account, _ in chunk}, now)
        answers += [_ask(known, version, row.mode, loaded[account], contact, by, now) for account, contact in chunk]
    return Preview(key, version.number, row.mode, tuple(answers), not everybody)


def request(conn: Connection, wanted: Preview, by: str, now: datetime) -> tuple[int, set[int]]:
    """Raises the event that enrolls for each who would enter, and for each who was named: the rules decide, and the ledger keeps every no.

    Returns how many, and the partitions to ring after the commit. Whoever has been asked for already, and waits to be looked at, is not
    asked for twice. Raises InputError when the campaign takes nobody in its mode.
    """
    row = find_campaign(conn, wanted.campaign, lock=True)
    if row.mode not in ENTERED:
        raise InputError(f"the campaign is {row.mode}, and takes new enrollments only when it is {' or '.join(ENTERED)}", "mode")
    partitions = conn.execute(select(installation.c.partitions)).scalar_one()
    asked = {tuple(one) for one in conn.exec_driver_sql(_ASKED, {"name": ENROLL_REQUESTED, "campaign": wanted.campaign})}
    chosen = [one for one in (wanted.answers if wanted.named else wanted.entering) if (one.account, one.contact) not in asked]
    ring: set[int] = set()
    for start in range(0, len(chosen), RAISED_AT_ONCE):
        events = [
            Own(
                ENROLL_REQUESTED,
                _message_id(wanted.campaign, one.account, one.contact, now),
                {"campaign": wanted.campaign, "contact": one.contact, "by": by},
                one.account,
                one.contact,
                now,
            )
            for one in chosen[start : start + RAISED_AT_ONCE]
        ]
        ring |= raise_own(conn, events, now, partitions)
    return len(chosen), ring


def _ask(known: Book, version: Version, mode: str, account: Account, contact: str | None, by: str, now: datetime) -> Answer:
    if mode not in ENTERED:
        return Answer(account.key, contact, "no", "campaign", "campaign_not_live", {"mode": mode})
    said = {"campaign": version.key, "contact": contact, "by": by}
    event = Event(ENROLL_REQUESTED, said, now, now, _message_id(version.key, account.key, contact, now), contact=contact)
    reaction = journey.react(known, account, event)
    entered = next(
        (one for one in reaction.enrollments if one.campaign == version.key and one.entry.get("message_id") == event.message_id), None
    )
    if entered is not None:
        mails = tuple(
            FirstMail(one.step, one.contact, one.due_at)
            for one in reaction.messages
            if one.enrollment == entered.id and one.state != "ghosted"
        )
        return Answer(account.key, contact, "yes", "trigger", "enrolled", {}, entered.held_out, entered.step, entered.due_at, mails)
    no = next(one for one in reaction.decisions if one.campaign == version.key and one.verdict != "yes")
    return Answer(account.key, contact, no.verdict, no.gate, no.reason, dict(no.evidence))


def _message_id(campaign: str, account: str, contact: str | None, now: datetime) -> str:
    """The same for the preview as for the event, so that what follows by a hash of it is the same, too."""
    return f"enroll:{campaign}:{account}:{contact or ''}:{now.isoformat()}"


def _everybody(conn: Connection, version: Version) -> list[tuple[str, str | None]]:
    if version.campaign.enrolls == "contact":
        return [tuple(one) for one in conn.exec_driver_sql(f"{_MEMBERS} order by a.external_id, c.external_id")]
    return [
        (key, None)
        for key in conn.exec_driver_sql("select external_id from account where erased_at is null order by external_id").scalars()
    ]


def _named(conn: Connection, version: Version, accounts: Sequence[str], contacts: Sequence[str]) -> list[tuple[str, str | None]]:
    of_contacts = version.campaign.enrolls == "contact"
    found: dict[tuple[str, str | None], None] = {}
    there = set(
        conn.exec_driver_sql("select external_id from account where external_id = any(%(keys)s)", {"keys": _clean(accounts)}).scalars()
    )
    if missing := [key for key in accounts if key not in there]:
        raise NotFound(f"There is no account {missing[0]!r}.")
    members = conn.exec_driver_sql(
        f"{_MEMBERS} where a.external_id = any(%(accounts)s) or c.external_id = any(%(contacts)s) order by a.external_id, c.external_id",
        {"accounts": _clean(accounts), "contacts": _clean(contacts)},
    ).all()
    for key in accounts:
        found |= {(key, contact): None for home, contact in members if home == key} if of_contacts else {(key, None): None}
    for key in contacts:
        homes = [home for home, contact in members if contact == key]
        if not homes:
            raise NotFound(f"There is no contact {key!r} that belongs to an account.")
        if len(homes) > 1 and not of_contacts:
            raise InputError(f"{key!r} belongs to several accounts ({', '.join(homes)}): name the account", "contact")
        found |= {(home, key if of_contacts else None): None for home in homes}
    return list(found)


def _clean(keys: Iterable[str]) -> list[str]:
    return [key.replace("\x00", "") for key in keys]


_MEMBERS = """
select a.external_id, c.external_id from membership m join account a on a.id = m.account_id join contact c on c.id = m.contact_id"""
_ASKED = """
select e.account_key, e.properties ->> 'contact' from event_pending p join event e on e.id = p.event_id
where e.name = %(name)s and e.properties ->> 'campaign' = %(campaign)s"""
