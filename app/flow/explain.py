"""Why a contact did or did not get a message: from the ledger where something is stored, recomputed by the same rules where nothing is.

For every account of the contact and every campaign there is one story: how the trigger went, which gates said what, and what became
of each message. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.errors import NotFound
from app.flow import states
from app.flow.publish import including
from app.flow.reading.accounts import find_account
from app.flow.reading.contacts import match_contacts
from app.rules import facts
from app.rules.book import Book, Node, Version
from app.rules.reasons import GATES, gate_name, sentence
from app.rules.steps import recipients
from app.rules.triggers import in_words

LEDGER_LIMIT = 2000  # rows of one account that are looked at
EVENT_LIMIT = 20  # trigger events that are looked at, the latest first


@dataclass(frozen=True, slots=True)
class Line:
    """One gate's answer. `stored` is False where it was recomputed from what is known now."""

    gate: str
    verdict: str
    reason: str
    at: datetime | None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    step: str | None = None
    version: int | None = None
    stored: bool = True

    @property
    def gate_name(self) -> str:
        return gate_name(self.gate)

    @property
    def text(self) -> str:
        return sentence(self.reason, self.evidence)


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail of a campaign to this contact: sent, waiting, not sent, or not even made (`id` None)."""

    step: str
    state: str
    text: str
    subject: str | None = None
    id: str | None = None
    at: datetime | None = None
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """One campaign for one account and contact. `summary` answers in a sentence; `entry` says how the trigger went."""

    contact: str
    account: str
    account_name: str | None
    campaign: str
    campaign_name: str
    mode: str
    tone: str
    summary: str
    entry: tuple[Line, ...] = ()
    letters: tuple[Letter, ...] = ()
    way: tuple[Line, ...] = ()
    step: str | None = None
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """All stories of the contacts that were asked for. `notes` are decisions that belong to no account."""

    contacts: tuple[str, ...]
    stories: tuple[Story, ...]
    notes: tuple[Line, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON can carry it, sentences included; `decisions` are all lines once more in one list."""
        found = asdict(self)
        for line, made in _pairs(self, found):
            made["text"] = line.text
        found["decisions"] = [
            {"account": story["account"], "contact": story["contact"], "campaign": story["campaign"], **line}
            for story in found["stories"]
            for line in (*story["entry"], *story["way"], *(line for letter in story["letters"] for line in letter["lines"]))
        ] + [{"account": None, "contact": None, "campaign": None, **line} for line in found["notes"]]
        return found


def explain(
    conn: Connection, book: Book, wanted: str, *, now: datetime, account: str | None = None, campaign: str | None = None
) -> Explanation:
    """Explains every message that the contact (an external id, or an address) did or did not get; of one account or campaign if named.

    Raises NotFound for an unknown contact, account or campaign, and for an account that the contact does not belong to.
    """
    if campaign is not None and campaign not in book.standings:
        raise NotFound(f"There is no campaign {campaign!r}. There are: {', '.join(sorted(book.standings)) or 'none'}.")
    keys = match_contacts(conn, wanted)
    only = find_account(conn, account).external_id if account is not None else None
    stories: list[Story] = []
    notes: list[Line] = []
    for key in keys:
        homes = _homes(conn, key)
        stories += [
            story for home in homes if only is None or home == only for story in _account_stories(conn, book, home, key, campaign, now)
        ]
        notes += _homeless(conn, book, key)
        if not homes:
            notes.append(Line("account", "no", "no_account", None, stored=False))
    if only is not None and not stories and not any(only in _homes(conn, key) for key in keys):
        raise NotFound(f"The contact {wanted!r} does not belong to the account {account!r}.")
    return Explanation(tuple(keys), tuple(stories), tuple(notes))


def _account_stories(conn: Connection, book: Book, home: str, contact: str, campaign: str | None, now: datetime) -> Iterator[Story]:
    account = states.load(conn, keys=[home], acting=True, metrics=book.schema.metrics, now=now)[home]
    person = account.contacts[contact]
    ledger = _ledger(conn, account.id, person.id)
    enrollments = _many(conn, _ENROLLMENTS, account=account.id, contact=person.id)
    messages = _many(conn, _MESSAGES, account=account.id)
    book = including(conn, book, {row.version_id for row in (*enrollments, *ledger) if row.version_id is not None})
    published = dict(conn.execute(text(_FIRST_PUBLISHED)).all())
    names = dict(conn.execute(text("select key, name from campaign")).all())
    for key in [campaign] if campaign else sorted(book.standings):
        standing = book.standings[key]
        version = book.versions[standing.version]
        story = Story(contact, home, account.name, key, names.get(key, key), standing.mode, "quiet", "")
        inside = [one for one in enrollments if one.campaign == key]
        rows = [row for row in ledger if row.campaign == key]
        entry = tuple(_line(book, row) for row in rows if row.enrollment_id is None)
        if inside:
            yield _inside(book, story, account, person, inside, rows, entry, [one for one in messages if one.campaign == key])
        elif entry:
            yield _said(story, entry)
        else:
            yield _said(story, (_recompute(conn, book, standing, version, account, person, published),))


# Campaigns that were entered -----------------------------------------------------------------------------------------


def _inside(
    book: Book,
    story: Story,
    account: facts.Account,
    person: facts.Contact,
    enrollments: Sequence[Any],
    rows: Sequence[Any],
    entry: tuple[Line, ...],
    messages: Sequence[Any],
) -> Story:
    letters: list[Letter] = []
    way: list[Line] = []
    for one in enrollments:
        version = book.versions[one.version_id]
        own = [row for row in rows if row.enrollment_id == one.id]
        mine = {message.step_id: message for message in messages if message.enrollment_id == one.id and message.contact_id == person.id}
        others = {message.step_id for message in messages if message.enrollment_id == one.id and message.contact_id != person.id}
        for step, node in version.nodes.items():
            if node.kind not in ("email", "survey"):
                continue
            lines = tuple(_line(book, row) for row in own if row.step_id == step and row.contact_id in (None, person.id))
            if step in mine:
                letters.append(_letter(mine[step], node, tuple(line for line in lines if line.gate not in _OF_THE_WAY)))
            else:
                letters.append(_unwritten(version, node, one, account, person, step in others, lines))
        letter_steps = {step for step, node in version.nodes.items() if node.kind in ("email", "survey")}
        way += [_line(book, row) for row in own if row.gate in _OF_THE_WAY or row.step_id not in letter_steps]
    latest = enrollments[0]
    sent = sum(letter.state == "sent" for letter in letters)
    parts = [f"{sent} sent"] if sent else ["nothing sent"]
    waiting = sum(letter.state in ("due", "claimed", "in_dot") for letter in letters)
    unsent = sum(letter.state in ("skipped", "unknown") for letter in letters)
    parts += [f"{waiting} waiting"] if waiting else []
    parts += [f"{unsent} not sent"] if unsent else []
    where = f"now at {latest.step_id}" if latest.state == "active" else sentence(latest.end_reason).rstrip(".").lower()
    tone = "good" if sent else "calm" if latest.state == "active" else "warn"
    summary = f"Entered: {', '.join(parts)}; {where}."
    active = latest.state == "active"
    return replace(
        story,
        tone=tone,
        summary=summary,
        entry=entry,
        letters=tuple(letters),
        way=tuple(way),
        step=latest.step_id if active else None,
        due_at=latest.due_at if active else None,
    )


_OF_THE_WAY = frozenset({"trigger", "goal", "exit", "branch", "wait", "wait_for"})


def _letter(message: Any, node: Node, lines: tuple[Line, ...]) -> Letter:
    said = {
        "sent": sentence("sent"),
        "due": f"Waits to be sent. {sentence(message.reason)}".strip(),
        "claimed": "Is being sent.",
        "in_dot": "Is being sent.",
        "ghosted": sentence("held_out"),
        "shadow": sentence("shadow"),
    }.get(message.state) or sentence(message.reason)
    at = message.due_at if message.state == "due" else message.settled_at or message.created_at
    return Letter(message.step_id, message.state, said, message.subject or node.step.subject, str(message.id), at, lines)


def _unwritten(
    version: Version, node: Node, enrollment: Any, account: facts.Account, person: facts.Contact, to_others: bool, lines: tuple[Line, ...]
) -> Letter:
    """A mail step for which this contact has no message, and why."""
    subject = node.step.subject
    said = [line for line in lines if line.verdict != "yes" and line.gate == "recipient"]
    if said:
        latest = said[-1]
        return Letter(node.id, "waiting" if latest.verdict == "wait" else "skipped", latest.text, subject, at=latest.at, lines=lines)
    if to_others:
        reached, not_reached = recipients(version, account, enrollment, node)
        reason = next((reason for one, reason in not_reached if one.key == person.key), None)
        if reason is None:
            wanted = version.recipients_of(node).roles
            reason = "other_recipient" if not wanted or person.roles.intersection(wanted) else "wrong_role"
        evidence = {"wanted": sorted(version.recipients_of(node).roles), "has": sorted(person.roles)}
        line = Line("recipient", "no", reason, None, evidence, node.id, version.number, stored=False)
        return Letter(node.id, "not_made", line.text, subject, lines=(*lines, line))
    reason = "not_reached" if enrollment.state == "active" else "never_reached"
    line = Line("enrollment", "wait" if enrollment.state == "active" else "no", reason, None, {}, node.id, version.number, stored=False)
    return Letter(node.id, "not_made", line.text, subject, lines=(*lines, line))


# Campaigns that were not entered -------------------------------------------------------------------------------------


def _said(story: Story, entry: tuple[Line, ...]) -> Story:
    latest = entry[-1]
    tone = {"yes": "good", "wait": "warn"}.get(latest.verdict, "bad" if latest.stored else "quiet")
    return replace(story, tone=tone, summary=f"Not entered. {latest.text}", entry=entry)


def _recompute(
    conn: Connection,
    book: Book,
    standing: Any,
    version: Version,
    account: facts.Account,
    person: facts.Contact,
    published: Mapping[str, datetime],
) -> Line:
    """Why nothing is in the ledger: the first gate of entry that says no, by what is known now."""

    def line(gate: str, reason: str, evidence: Mapping[str, Any], at: datetime | None = None) -> Line:
        return Line(gate, "no", reason, at, evidence, version=version.number, stored=False)

    if standing.mode not in ("live", "shadow"):
        return line("campaign", "campaign_not_live", {"mode": standing.mode})
    trigger = {"event": version.trigger_event, **_begins(version)}
    events = _many(conn, _EVENTS, account=account.key, contacts=list(account.contacts), name=version.trigger_event, limit=EVENT_LIMIT)
    if version.campaign.enrolls == "contact":
        events = [event for event in events if event.contact_key == person.key]
    if not events:
        return line("trigger", "never_happened", trigger)
    failed = None
    for row in events:
        event = facts.Event(row.name, row.properties, row.occurred_at, row.received_at, row.message_id, row.kind, row.contact_key, row.mark)
        scope = facts.Scope(account, event.at, account.contacts.get(event.contact or ""), event)
        if version.trigger_where is not None and not version.trigger_where.test(scope):
            seen = version.trigger_where.seen(scope)
            if version.campaign.trigger.event is None:
                continue
            failed = failed or line("trigger", "where_failed", {"where": version.trigger_where.source, **seen}, event.at)
            continue
        if row.pending:
            return line("trigger", "too_soon_to_say", trigger, event.at)
        if row.account_key is None:
            return line("trigger", "account_ambiguous", trigger, event.at)
        if row.mark:
            return line("trigger", row.mark, {**trigger, "occurred_at": row.occurred_at.isoformat()}, event.at)
        if event.at < published[version.key]:
            return line("trigger", "before_published", trigger, event.at)
        return line("trigger", "not_recorded", trigger, event.at)
    return failed or line("trigger", "never_happened", trigger)


def _begins(version: Version) -> dict[str, str]:
    """What the campaign waits for in words, where its event is one of the engine's own."""
    return {} if version.campaign.trigger.event else {"begins": in_words(version.campaign.trigger)}


# Reading -------------------------------------------------------------------------------------------------------------


def _homes(conn: Connection, contact: str) -> list[str]:
    found = text(
        """select a.external_id from contact c join membership m on m.contact_id = c.id join account a on a.id = m.account_id
           where c.external_id = :contact order by m.joined_at, a.external_id limit 50"""
    )
    return list(conn.execute(found, {"contact": contact}).scalars())


def _homeless(conn: Connection, book: Book, contact: str) -> list[Line]:
    wanted = f"{_LEDGER} where d.account_id is null and c.external_id = :contact"
    rows = _many(conn, f"{wanted} order by d.at desc, d.id desc limit 20", contact=contact)
    return [_line(book, row) for row in reversed(rows)]


def _ledger(conn: Connection, account: int, contact: int) -> list[Any]:
    wanted = f"{_LEDGER} where d.account_id = :account and (d.contact_id is null or d.contact_id = :contact)"
    rows = _many(conn, f"{wanted} order by d.at desc, d.id desc limit {LEDGER_LIMIT}", account=account, contact=contact)
    return rows[::-1]


def _line(book: Book, row: Any) -> Line:
    version = book.versions.get(row.version_id)
    return Line(row.gate, row.verdict, row.reason, row.at, row.evidence, row.step_id, version.number if version else None)


def _many(conn: Connection, statement: str, **values: Any) -> list[Any]:
    return list(conn.execute(text(statement), values))


_LEDGER = """select d.at, d.gate, d.verdict, d.reason, d.evidence, d.step_id, d.version_id, d.enrollment_id, d.message_id, d.contact_id,
  k.key as campaign from decision d left join campaign k on k.id = d.campaign_id left join contact c on c.id = d.contact_id"""
_ENROLLMENTS = """select n.id, k.key as campaign, n.version_id, n.state, n.step_id, n.due_at, n.end_reason, n.entered_at, n.position,
  c.external_id as contact from enrollment n join campaign k on k.id = n.campaign_id left join contact c on c.id = n.contact_id
  where n.account_id = :account and (n.contact_id is null or n.contact_id = :contact) order by n.entered_at desc, n.id"""
_MESSAGES = """select m.id, m.enrollment_id, m.step_id, m.state, m.reason, m.subject, m.contact_id, m.due_at, m.created_at, m.settled_at,
  k.key as campaign from message m join campaign k on k.id = m.campaign_id where m.account_id = :account order by m.created_at, m.id"""
_FIRST_PUBLISHED = """select k.key, min(v.published_at) from campaign k join campaign_version v on v.campaign_id = k.id group by k.key"""
_EVENTS = """select e.*, exists(select 1 from event_pending p where p.event_id = e.id) as pending from event e
  where (e.account_key = :account or (e.account_key is null and e.contact_key = any(:contacts))) and e.name = :name
  order by e.received_at desc, e.id desc limit :limit"""


def _pairs(explanation: Explanation, found: dict[str, Any]) -> Iterator[tuple[Line, dict[str, Any]]]:
    yield from zip(explanation.notes, found["notes"], strict=True)
    for story, made in zip(explanation.stories, found["stories"], strict=True):
        yield from zip(story.entry, made["entry"], strict=True)
        yield from zip(story.way, made["way"], strict=True)
        for letter, written in zip(story.letters, made["letters"], strict=True):
            yield from zip(letter.lines, written["lines"], strict=True)


__all__ = ["GATES", "Explanation", "Letter", "Line", "Story", "explain"]
