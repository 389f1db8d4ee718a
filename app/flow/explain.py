"""Why a contact did or did not get a message, at any moment: from the ledger where something is stored, recomputed by the same rules
where nothing is.

For every account of the contact and every campaign there is one story: its gates in order with what they saw and the version whose rule
they are, the first that failed and by how much, and what became of each message. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from app.errors import InputError, NotFound
from app.flow import states
from app.flow.past import Laws, Past, Seen, rebuild
from app.flow.publish import including
from app.flow.reading.accounts import find_account
from app.flow.reading.contacts import match_contacts
from app.rules import consent, facts, gates
from app.rules.book import Book, Node, Standing, Version
from app.rules.consent import WAITED_AT
from app.rules.gates import ORDER, Line, Look, first_failed, ladder
from app.rules.reasons import GATE_OF, GATES, sentence
from app.rules.steps import recipients
from app.rules.timing import zone
from app.rules.triggers import ENROLL_REQUESTED, in_words

LEDGER_LIMIT = 2000  # rows of one account that are looked at
EVENT_LIMIT = 20  # trigger events that are looked at, the latest first
MAIL = ("email", "survey")
LATEST = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail of a campaign: sent, waiting, not sent, or not even made (`id` None). `gates` are all gates in order for this mail."""

    step: str
    state: str
    text: str
    subject: str | None = None
    id: str | None = None
    at: datetime | None = None
    lines: tuple[Line, ...] = ()
    contact: str | None = None
    gates: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """One campaign for one account and contact (None: for the account as a whole).

    `summary` answers in a sentence. `gates` are all gates in order, for the mail in question (`of` is its step) or for entering the
    campaign; `first_failed` is the gate among them that said no or not yet first. `entry` says how the trigger went, `letters` what
    became of each mail, `way` how it went between them. `version` is the one that counted.
    """

    contact: str | None
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
    version: int | None = None
    gates: tuple[Line, ...] = ()
    first_failed: str | None = None
    of: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """All stories of the contacts (or of the account) that were asked for, as of `at`. `notes` are decisions that belong to no account,
    and what can no longer be known."""

    contacts: tuple[str, ...]
    stories: tuple[Story, ...]
    notes: tuple[Line, ...] = ()
    at: datetime | None = None

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
    conn: Connection,
    book: Book,
    wanted: str | None,
    *,
    now: datetime,
    account: str | None = None,
    campaign: str | None = None,
    at: datetime | None = None,
) -> Explanation:
    """Explains every message that the contact (an external id, or an address) did or did not get; of one account or campaign if named.
    Without a contact, explains what became of the account itself in each campaign.

    `at` is a moment of the past: then what was known, recorded and in force at that moment counts, and nothing later. Raises NotFound
    for an unknown contact, account or campaign, and for an account that the contact does not belong to; InputError for a moment that is
    still to come, and where neither a contact nor an account is named.
    """
    if at is not None and at > now:
        raise InputError("is still to come; only the past can be explained", "at")
    if campaign is not None and campaign not in book.standings:
        raise NotFound(f"There is no campaign {campaign!r}. There are: {', '.join(sorted(book.standings)) or 'none'}.")
    if wanted is None and account is None:
        raise InputError("name a contact or an account")
    asking = _Asking(conn, book, campaign, at or now, at is None or at == now)
    only = find_account(conn, account).external_id if account is not None else None
    if wanted is None:
        return Explanation((), tuple(asking.stories(only, None)), tuple(asking.notes), asking.at)
    keys = match_contacts(conn, wanted)
    stories: list[Story] = []
    for key in keys:
        homes = _homes(conn, key, asking.bound)
        stories += [story for home in homes if only is None or home == only for story in asking.stories(home, key)]
        asking.notes += _homeless(conn, key, asking.bound)
        if not homes:
            asking.notes.append(Line("account", "no", "no_account", None, stored=False))
    if only is not None and not stories and not any(only in _homes(conn, key, asking.bound) for key in keys):
        raise NotFound(f"The contact {wanted!r} does not belong to the account {account!r}.")
    return Explanation(tuple(keys), tuple(stories), tuple(asking.notes), asking.at)


def read_moment(value: str | None, book: Book) -> datetime | None:
    """The moment that somebody wrote: ISO 8601, a date alone meaning its first moment; without an offset by the installation's clock.
    Raises InputError."""
    if value is None or not value.strip():
        return None
    try:
        # In a query a plus that was not encoded is a space.
        found = datetime.fromisoformat(value.strip().replace(" ", "+") if "T" in value else value.strip())
        return (found if found.tzinfo else found.replace(tzinfo=zone(book.lifecycle.timezone) or UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InputError("is no time such as 2026-03-02T09:00 or 2026-03-02T09:00:00Z", "at") from error


class _Asking:
    """One call of `explain`: the moment that is asked about, and what was in force then."""

    def __init__(self, conn: Connection, book: Book, campaign: str | None, at: datetime, present: bool):
        self.conn, self.at, self.present = conn, at, present
        # Of the present nothing is left out, whatever the clock says that wrote it.
        self.bound = LATEST if present else at
        self.laws = Laws(conn)
        self.book = book if present else self.laws.book(at)
        self.campaigns = [campaign] if campaign else sorted(book.standings)
        self.names = dict(conn.execute(text("select key, name from campaign")).all())
        self.numbers = dict(conn.execute(text("select id, number from campaign_version")).all())
        self.notes: list[Line] = []

    def line(self, row: Any) -> Line:
        number, stored = self.numbers.get(row.version_id), not isinstance(row, _Again)
        return Line(row.gate, row.verdict, row.reason, row.at, row.evidence, row.step_id, number, stored)

    def stories(self, home: str, contact: str | None) -> Iterator[Story]:
        view = _View(self, home, contact)
        for key in self.campaigns:
            story = Story(contact, home, view.account.name, key, self.names.get(key, key), "", "quiet", "")
            standing = self.book.standings.get(key)
            if standing is None:
                yield _unpublished(view, story)
                continue
            version = view.versions[standing.version]
            story = replace(story, mode=standing.mode, version=version.number)
            inside = [one for one in view.enrollments if one.campaign == key]
            entry = [row for row in view.ledger if row.campaign == key and row.enrollment_id is None and view.concerns(version, row)]
            if inside:
                yield _inside(view, story, inside, tuple(self.line(row) for row in entry))
            elif entry:
                yield _refused(view, story, version, entry)
            else:
                yield _recomputed(view, story, standing, version)


class _View:
    """One account, perhaps with one of its contacts, as of the moment that is asked about: the rows, and the facts at each moment that
    a row speaks of."""

    def __init__(self, asking: _Asking, home: str, contact: str | None):
        conn, at = asking.conn, asking.at
        self.asking, self.at, self.key = asking, at, home
        present = states.load(conn, keys=[home], acting=True, metrics=asking.book.schema.metrics, now=at)[home]
        about = {
            "account": present.id,
            "contact": present.contacts[contact].id if contact else None,
            "at": asking.bound,
            "any": contact is None,
        }
        # How the trigger went is everybody's matter, whoever's event it was, unless the campaign enrolls contacts.
        mine = f"({_MINE.format('d.contact_id')} or d.enrollment_id is null)"
        self.ledger = _many(conn, f"{_LEDGER} where d.account_id = :account and {mine} {_BEFORE}", **about)[::-1]
        self.enrollments = _many(conn, _ENROLLMENTS, **about)
        self.messages = _many(conn, _MESSAGES, **about)
        wanted = {row.version_id for row in (*self.enrollments, *self.ledger) if row.version_id is not None}
        self.versions = including(conn, asking.book, wanted).versions
        moments = {at, *(_moment_of(one, asking) for one in self.messages), *(one.entered_at for one in self.enrollments)}
        moments |= {row.at for row in self.ledger}
        self.past: Past = rebuild(conn, home, present.created_at, moments, max(moments))
        rebuilt = self.past.at(at)
        if rebuilt is None and (not asking.present or self.past.problem == "not_rebuilt"):
            evidence = {"since": self.past.since.isoformat()} if self.past.since else {}
            asking.notes.append(Line("account", "wait", self.past.problem or "no_events", None, evidence, stored=False))
        self.whole = asking.present or rebuilt is not None
        # Rebuilt accounts have other row ids: nothing but the database knows those.
        self.account = present if asking.present or rebuilt is None else replace(rebuilt, id=present.id, name=rebuilt.name or present.name)
        known = self.account.contacts.get(contact) or present.contacts[contact] if contact else None
        self.person = replace(known, id=present.contacts[contact].id) if contact else None
        self.ids = {one.id: one.key for one in present.contacts.values()}

    def concerns(self, version: Version, row: Any) -> bool:
        """Whether a line about entering concerns the contact that is asked about."""
        everybody = self.person is None or version.campaign.enrolls == "account"
        return everybody or row.contact_id in (None, self.person.id)

    def known(self, moment: datetime) -> facts.Account | None:
        """The account as it was at a moment of the past; None where that is not known any more."""
        return self.account if moment == self.at and self.whole else self.past.at(moment)

    def contact_at(self, moment: datetime, key: str | None) -> facts.Contact | None:
        account = self.known(moment)
        return account.contacts.get(key or "") if account else None


def _moment_of(message: Any, asking: _Asking) -> datetime:
    """When what is known of the message was decided."""
    if message.settled_at is not None and message.settled_at <= asking.bound:
        return message.dot_at or message.settled_at
    return asking.at


def _unpublished(view: _View, story: Story) -> Story:
    published = view.asking.laws.published_at(story.campaign)
    evidence = {"published_at": published.isoformat()} if published else {}
    line = Line("campaign", "no", "not_published", None, evidence, stored=False)
    asked = tuple(line if gate == "campaign" else Line(gate, gates.NOT_ASKED, "not_asked", None, stored=False) for gate in ORDER)
    return replace(story, mode="draft", summary=f"Not entered. {line.text}", entry=(line,), gates=asked, first_failed="campaign")


# Campaigns that were entered -----------------------------------------------------------------------------------------


def _inside(view: _View, story: Story, enrollments: Sequence[Any], entry: tuple[Line, ...]) -> Story:
    letters: list[Letter] = []
    way: list[Line] = []
    for row in enrollments:
        trip = _Trip(view, row)
        letters += trip.letters()
        way += trip.way()
    latest = _Trip(view, enrollments[0])
    sent = sum(letter.state == "sent" for letter in letters)
    parts = [f"{sent} sent"] if sent else ["nothing sent"]
    waiting = sum(letter.state in ("due", "claimed", "in_dot") for letter in letters)
    unsent = sum(letter.state in ("skipped", "unknown") for letter in letters)
    parts += [f"{waiting} waiting"] if waiting else []
    parts += [f"{unsent} not sent"] if unsent else []
    active = latest.enrollment.state == "active"
    where = f"now at {latest.enrollment.step}" if active else sentence(latest.enrollment.end_reason).rstrip(".").lower()
    question = _in_question(letters)
    asked = question.gates if question else latest.entered()
    shut = first_failed(asked)
    summary = f"Entered: {', '.join(parts)}; {where}."
    open_still = question is not None and question.state in ("sent", "not_made")
    if shut is not None and not open_still and shut.reason != "in_line" and (question is not None or shut.evidence.get("because")):
        summary += f" {shut.text}"
    return replace(
        story,
        tone="good" if sent else "calm" if active else "warn",
        summary=summary,
        entry=entry,
        letters=tuple(letters),
        way=tuple(way),
        step=latest.enrollment.step if active else None,
        due_at=latest.enrollment.due_at if active else None,
        version=latest.version.number,
        gates=asked,
        first_failed=shut.gate if shut else None,
        of=question.step if question else None,
    )


def _in_question(letters: Sequence[Letter]) -> Letter | None:
    """The mail that somebody asks about: what waits or was not sent, the latest first; else what went to others; else what was sent."""

    def rank(letter: Letter) -> tuple[int, datetime]:
        kind = 0 if letter.state in ("skipped", "unknown", "waiting", "due", "claimed", "in_dot") else 1
        if letter.state == "not_made":
            recipient = letter.lines and letter.lines[-1].gate == "recipient"
            kind = 1 if recipient else 3
        elif kind:
            kind = 2
        return -kind, letter.at or datetime.min.replace(tzinfo=UTC)

    return max(letters, key=rank, default=None)


class _Trip:
    """One enrollment as of the moment that is asked about, with its messages and its lines of the ledger."""

    def __init__(self, view: _View, row: Any):
        self.view, self.row = view, row
        self.version: Version = view.versions[row.version_id]
        self.enrollment = _enrollment(view, row)
        self.rows = self._remembered([one for one in view.ledger if one.enrollment_id == row.id])
        self.messages = [one for one in view.messages if one.enrollment_id == row.id]

    def _remembered(self, rows: list[Any]) -> list[Any]:
        """The lines of the ledger; before them those that it has lost, decided again. The ledger loses the oldest first."""
        if any(row.gate == "trigger" and row.verdict == "yes" for row in rows):
            return rows
        oldest = rows[0].at if rows else LATEST
        people = {key: ident for ident, key in self.view.ids.items()}
        lost = [
            _Again(
                one.at, one.gate, one.verdict, one.reason, one.evidence, one.step, one.version, people.get(one.contact or ""), one.message
            )
            for one in self.view.past.decisions
            if one.enrollment == self.row.id and one.at < oldest
        ]
        mine = self.view.person.id if self.view.person else None
        return [one for one in lost if mine is None or one.contact_id in (None, mine)] + rows

    def way(self) -> list[Line]:
        """What happened between the mails."""
        mails = {step for step, node in self.version.nodes.items() if node.kind in MAIL}
        return [self.view.asking.line(row) for row in self.rows if row.gate in _OF_THE_WAY or row.step_id not in mails]

    def letters(self) -> Iterator[Letter]:
        person = self.view.person
        for step, node in self.version.nodes.items():
            if node.kind not in MAIL:
                continue
            made = [one for one in self.messages if one.step_id == step]
            mine = [one for one in made if person is None or one.contact_id == person.id]
            for message in mine:
                yield self._letter(message, node)
            if not mine:
                yield self._unwritten(node, bool(made))

    def entered(self) -> tuple[Line, ...]:
        """The gates of a campaign that has no mail for this contact, or none at all."""
        failed = [self._ended()] if self.enrollment.state != "active" else []
        return ladder(self._look(self.view.at, None, None), failed, [self._entry()], until="audience")

    def _lines(self, step: str, contact: int | None) -> tuple[Line, ...]:
        rows = [row for row in self.rows if row.step_id == step and (contact is None or row.contact_id in (None, contact))]
        return tuple(self.view.asking.line(row) for row in rows if row.gate not in _OF_THE_WAY)

    def _look(self, at: datetime, node: Node | None, contact: facts.Contact | None, surveyed_at: datetime | None = None) -> Look:
        view = self.view
        return Look(view.asking.book, self.version, at, view.known(at), contact, self.enrollment.entry, self.enrollment, node, surveyed_at)

    def _entry(self) -> Line:
        """The trigger's yes: from the ledger, or from the enrollment, which remembers what it entered by."""
        for row in self.rows:
            if row.gate == "trigger" and row.verdict == "yes":
                return self.view.asking.line(row)
        evidence = {"event": self.row.entry.get("name"), "message_id": self.row.entry.get("message_id")}
        return Line("trigger", "yes", "enrolled", self.row.entered_at, evidence, None, self.version.number)

    def _ended(self) -> Line:
        """The gate that is shut as the enrollment has ended, with why it has."""
        found = next((row for row in reversed(self.rows) if row.gate in ("exit", "goal") and row.evidence.get("because")), None)
        evidence = {"reason": self.enrollment.end_reason, **({"because": found.evidence["because"]} if found else {})}
        return Line("enrollment", "no", "enrollment_ended", self.enrollment.ended_at, evidence, None, self.version.number)

    def _letter(self, message: Any, node: Node) -> Letter:
        view = self.view
        lines = tuple(view.asking.line(row) for row in self.rows if row.message_id == message.id and row.gate not in _OF_THE_WAY)
        lines = lines or self._lines(node.id, message.contact_id)
        state, reason, at = _as_of(message, view.asking.bound, lines)
        said = {
            "sent": sentence("sent"),
            "due": f"Waits to be sent. {sentence(reason)}".strip(),
            "claimed": "Is being sent.",
            "in_dot": "Is being sent.",
            "ghosted": sentence("held_out"),
            "shadow": sentence("shadow"),
        }.get(state)
        shut = [line for line in lines if line.verdict in gates.FAILED]
        said = said or (shut[-1].text if shut and shut[-1].reason == reason else sentence(reason))
        asked = self._gates(message, node, state, reason, at, lines)
        return Letter(node.id, state, said, message.subject or node.step.subject, str(message.id), at, lines, message.contact, asked)

    def _gates(self, message: Any, node: Node, state: str, reason: str | None, at: datetime, lines: tuple[Line, ...]) -> tuple[Line, ...]:
        view, number = self.view, self.version.number
        moment = _moment_of(message, view.asking)
        contact = view.contact_at(moment, message.contact)
        look = self._look(moment, node, contact, _surveyed(view, message.id, moment) if node.kind == "survey" else None)
        shut = [line for line in lines if line.verdict in gates.FAILED]
        failed: list[Line] = []
        if state in ("ghosted", "shadow"):
            gate, why = ("holdout", "held_out") if state == "ghosted" else ("campaign", "shadow")
            line = next((line for line in reversed(shut) if line.gate == gate), None)
            failed = [line or Line(gate, "no", why, moment, {}, node.id, number)]
        elif state in ("skipped", "unknown"):
            last = shut[-1] if shut and shut[-1].reason == reason else None
            expired = message.settled_at and message.expires_at <= message.settled_at and reason in (*WAITED_AT, "expired")
            evidence = {"expires_at": message.expires_at.isoformat()} if expired else {}
            failed = [last or Line(GATE_OF.get(reason or "", "send"), "no", reason or "expired", moment, evidence, node.id, number)]
        elif state != "sent":
            failed = [self._waits(message, node, reason, shut, look)]
        done = [Line("send", "yes", "sent", at, {}, node.id, number)] if state == "sent" else []
        return ladder(look, failed, [self._entry(), *done])

    def _waits(self, message: Any, node: Node, reason: str | None, shut: Sequence[Line], look: Look) -> Line:
        """What a message that is not sent yet waits for."""
        if shut and (reason is None or shut[-1].reason == reason) and (reason is not None or message.due_at > self.view.at):
            return shut[-1]
        said = self._asked_now(node, look)
        evidence = {"until": message.due_at.isoformat()}
        return said or Line("send", "wait", reason or "in_line", None, evidence, node.id, self.version.number, stored=False)

    def _asked_now(self, node: Node, look: Look) -> Line | None:
        """What the gates of sending would say at the moment that is asked about."""
        if look.account is None or look.contact is None:
            return None
        about = (look.book, look.account, self.enrollment, self.version, node, look.contact, look.at, look.surveyed_at)
        said = consent.gate(*about)
        return said and Line(said.gate, said.verdict, said.reason, said.at, said.evidence, said.step, self.version.number, stored=False)

    def _unwritten(self, node: Node, to_others: bool) -> Letter:
        """A mail step for which this contact has no message, and why."""
        person, active = self.view.person, self.enrollment.state == "active"
        number, subject = self.version.number, node.step.subject
        lines = self._lines(node.id, person.id if person else None)
        look = self._look(self.view.at, node, person)
        said = [line for line in lines if line.verdict != "yes" and line.gate == "recipient"]
        if said:
            last = said[-1]
            state = "waiting" if last.verdict == "wait" else "skipped"
            asked = ladder(look, [last], [self._entry()])
            return Letter(node.id, state, last.text, subject, at=last.at, lines=lines, contact=person.key if person else None, gates=asked)
        if to_others and person is not None:
            line = self._passed_over(node, person)
        elif active:
            evidence = {"here": self.enrollment.step, "due_at": self.enrollment.due_at.isoformat() if self.enrollment.due_at else None}
            line = Line("enrollment", "wait", "not_reached", None, evidence, node.id, number, stored=False)
        else:
            evidence = {"reason": self.enrollment.end_reason}
            line = Line("enrollment", "no", "never_reached", self.enrollment.ended_at, evidence, node.id, number, stored=False)
        asked = ladder(look, [line], [self._entry()])
        contact = person.key if person else None
        return Letter(node.id, "not_made", line.text, subject, lines=(*lines, line), contact=contact, gates=asked)

    def _passed_over(self, node: Node, person: facts.Contact) -> Line:
        wanted = self.version.recipients_of(node).roles
        _, not_reached = recipients(self.version, self.view.account, self.enrollment, node)
        reason = next((reason for one, reason in not_reached if one.key == person.key), None)
        if reason is None:
            reason = "other_recipient" if not wanted or person.roles.intersection(wanted) else "wrong_role"
        evidence = {"wanted": sorted(wanted), "has": sorted(person.roles)}
        return Line("recipient", "no", reason, None, evidence, node.id, self.version.number, stored=False)


@dataclass(frozen=True, slots=True)
class _Again:
    """A line that the ledger has lost, as its row was."""

    at: datetime
    gate: str
    verdict: str
    reason: str
    evidence: Mapping[str, Any]
    step_id: str | None
    version_id: int | None
    contact_id: int | None
    message_id: Any


_OF_THE_WAY = frozenset({"trigger", "goal", "exit", "branch", "wait", "wait_for"})


def _as_of(message: Any, at: datetime, lines: Sequence[Line]) -> tuple[str, str | None, datetime]:
    """The message's state, reason and time as they were at the moment."""
    if message.settled_at is None or message.settled_at <= at:
        return message.state, message.reason, message.due_at if message.state == "due" else message.settled_at or message.created_at
    waits = [line for line in lines if line.verdict == "wait"]
    until = waits[-1].evidence.get("until") if waits else None
    return "due", waits[-1].reason if waits else None, datetime.fromisoformat(until) if until else message.created_at


def _enrollment(view: _View, row: Any) -> facts.Enrollment:
    """The enrollment as it was at the moment that is asked about."""
    made = facts.Enrollment(
        id=row.id,
        campaign=row.campaign,
        version=row.version_id,
        contact=row.contact,
        shadow=row.shadow,
        held_out=row.held_out,
        step=row.step_id,
        occurrence=row.occurrence,
        position=row.position,
        entry=row.entry,
        entered_at=row.entered_at,
        due_at=row.due_at,
        goal_at=row.goal_at,
        state=row.state,
        ended_at=row.ended_at,
        end_reason=row.end_reason,
    )
    if view.asking.present:
        return made
    then = next((one for one in view.account.enrollments if one.id == row.id), None)
    if then is not None:
        return then
    if row.ended_at is not None and row.ended_at > view.asking.bound:
        last = next((one.step_id for one in reversed(view.ledger) if one.enrollment_id == row.id and one.step_id), None)
        return replace(made, state="active", ended_at=None, end_reason=None, step=last)
    return made


# Campaigns that were not entered -------------------------------------------------------------------------------------


def _refused(view: _View, story: Story, version: Version, rows: Sequence[Any]) -> Story:
    """The ledger knows of a trigger that matched."""
    lines = tuple(view.asking.line(row) for row in rows)
    latest = rows[-1]
    seen = view.past.of_event(latest.evidence.get("message_id") or "")
    decided_by = view.versions.get(latest.version_id, version)
    contact = view.ids.get(latest.contact_id)
    return _said(view, story, lines, _entry_look(view, decided_by, latest.at, contact, seen, latest.evidence))


def _recomputed(view: _View, story: Story, standing: Standing, version: Version) -> Story:
    """Nothing is in the ledger: the first gate of entry that says no."""
    line, look = _why_never(view, standing, version)
    return _said(view, story, (line,), look)


def _said(view: _View, story: Story, entry: tuple[Line, ...], look: Look) -> Story:
    latest = entry[-1]
    tone = {"yes": "good", "wait": "warn"}.get(latest.verdict, "bad" if latest.stored else "quiet")
    # A campaign that is not live does not even listen, and who has no contact is turned away before anything else is asked.
    early = latest.gate in ("campaign", "recipient") or latest.gate not in ORDER
    asked = ladder(look, [latest] if latest.gate in ORDER else [], early=early)
    if latest.gate == "campaign":
        asked = tuple(
            Line("trigger", gates.NOT_ASKED, "not_asked", None, version=line.version) if line.gate == "trigger" else line for line in asked
        )
    shut = first_failed(asked)
    summary = f"Not entered. {latest.text}"
    return replace(story, tone=tone, summary=summary, entry=entry, gates=asked, first_failed=shut.gate if shut else None)


def _entry_look(
    view: _View, version: Version, at: datetime, contact: str | None, seen: Seen | None, event: Mapping[str, Any] | None
) -> Look:
    """What was known when the trigger came."""
    account = seen.after if seen else view.known(at)
    about = seen.event if seen else {"name": event.get("event"), "message_id": event.get("message_id")} if event else None
    who = account.contacts.get((seen.event.contact if seen else contact) or "") if account else None
    return Look(seen.book if seen else view.asking.book, version, at, account, who, about)


def _why_never(view: _View, standing: Standing, version: Version) -> tuple[Line, Look]:
    """The first gate of entry that says no, decided again from the stored events; by what is known now where those are pruned."""
    look = Look(view.asking.book, version, view.at, view.account, view.person)

    def line(
        gate: str, reason: str, evidence: Mapping[str, Any], at: datetime | None = None, verdict: str = "no", of: Version = version
    ) -> Line:
        return Line(gate, verdict, reason, at, evidence, version=of.number, stored=False)

    if standing.mode not in ("live", "shadow"):
        return line("campaign", "campaign_not_live", {"mode": standing.mode}), look
    trigger = {"event": version.trigger_event, **_begins(version)}
    failed: tuple[Line, Look] | None = None
    for row in _trigger_events(view, version):
        event = facts.Event(row.name, row.properties, row.occurred_at, row.received_at, row.message_id, row.kind, row.contact_key, row.mark)
        seen = view.past.of_event(event.message_id)
        then = seen.book.standings.get(version.key) if seen else standing
        was = version if then is None or then.version == version.id else seen.book.versions[then.version]
        there = _entry_look(view, was, event.at, event.contact, seen, None)
        there = there if there.account is not None else replace(there, account=view.account)
        there = replace(there, event=event, contact=there.account.contacts.get(event.contact or ""))
        if was.trigger_where is not None and row.name != ENROLL_REQUESTED and not was.trigger_where.test(there.scope):
            evidence = was.trigger_where.evidence(there.scope)
            if _near_miss(was, evidence["because"]) and failed is None:
                failed = line("trigger", "where_failed", {"where": was.trigger_where.source, **evidence}, event.at, of=was), there
            continue
        if row.pending:
            return line("trigger", "too_soon_to_say", trigger, event.at, "wait"), there
        if row.account_key is None:
            return line("trigger", "account_ambiguous", trigger, event.at), there
        if row.mark:
            return line("trigger", row.mark, {**trigger, "occurred_at": row.occurred_at.isoformat()}, event.at), there
        if event.at < view.asking.laws.published_at(version.key):
            return line("trigger", "before_published", trigger, event.at), there
        if then is None or then.mode not in ("live", "shadow"):
            return line("campaign", "campaign_not_live", {"mode": then.mode if then else "draft"}, event.at), there
        for said in seen.decisions if seen else ():
            if said.campaign == version.key and said.evidence.get("message_id") == event.message_id and said.verdict != "yes":
                return line(said.gate, said.reason, said.evidence, said.at, said.verdict, of=was), there
        return line("trigger", "not_recorded", trigger, event.at), there
    if failed:
        return failed
    because = gates.nearness(version.campaign.trigger, look)
    pruned = {"since": view.past.since.isoformat()} if view.past.problem == "events_pruned" and view.past.since else {}
    return line("trigger", "never_happened", {**trigger, **pruned, **({"because": because} if because else {})}), look


def _trigger_events(view: _View, version: Version) -> list[Any]:
    """The account's latest events that the campaign listens to, and requests to enroll it, the latest first."""
    about = {"account": view.key, "contacts": list(view.account.contacts), "name": version.trigger_event, "at": view.asking.bound}
    about |= {"request": ENROLL_REQUESTED, "campaign": version.key}
    if version.campaign.enrolls == "account" or view.person is None:
        return _many(view.asking.conn, _EVENTS, **about, limit=EVENT_LIMIT)
    events = _many(view.asking.conn, _EVENTS, **about, limit=10 * EVENT_LIMIT)
    return [event for event in events if event.contact_key == view.person.key or _nobodys(view, event)][:EVENT_LIMIT]


def _nobodys(view: _View, event: Any) -> bool:
    """Whether the event named no contact that was known then: the ledger tells everybody of it."""
    seen = view.past.of_event(event.message_id)
    return event.contact_key not in (seen.after if seen else view.account).contacts


# What tells one own event from another of the same name: which milestone, which stage, which watch.
_TELLING = frozenset(f"event.properties.{name}" for name in ("milestone", "stage", "watch", "survey", "campaign", "roles"))


def _near_miss(version: Version, because: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the event is the one that the trigger waits for, so that its condition is worth naming."""
    if version.campaign.trigger.event is not None:
        return True
    return not any(one.get("what") in _TELLING or "any" in one for one in because)


def _begins(version: Version) -> dict[str, str]:
    """What the campaign waits for in words, where its event is one of the engine's own."""
    return {} if version.campaign.trigger.event else {"begins": in_words(version.campaign.trigger)}


# Reading -------------------------------------------------------------------------------------------------------------


def _homes(conn: Connection, contact: str, at: datetime) -> list[str]:
    found = text(
        """select a.external_id from contact c join membership m on m.contact_id = c.id join account a on a.id = m.account_id
           where c.external_id = :contact and m.joined_at <= :at order by m.joined_at, a.external_id limit 50"""
    )
    return list(conn.execute(found, {"contact": contact, "at": at}).scalars())


def _homeless(conn: Connection, contact: str, at: datetime) -> list[Line]:
    wanted = f"{_LEDGER} where d.account_id is null and c.external_id = :contact and d.at <= :at"
    rows = _many(conn, f"{wanted} order by d.at desc, d.id desc limit 20", contact=contact, at=at)
    return [Line(row.gate, row.verdict, row.reason, row.at, row.evidence, row.step_id) for row in reversed(rows)]


def _surveyed(view: _View, message_id: Any, at: datetime) -> datetime | None:
    """When the person behind the message was asked last, before that message."""
    return view.asking.conn.execute(text(_SURVEYED), {"message": message_id, "at": at}).scalar()


def _many(conn: Connection, statement: str, **values: Any) -> list[Any]:
    return list(conn.execute(text(statement), values))


_MINE = "(:any or {0} is null or {0} = :contact)"
_BEFORE = f"and d.at <= :at order by d.at desc, d.id desc limit {LEDGER_LIMIT}"
_LEDGER = """select d.at, d.gate, d.verdict, d.reason, d.evidence, d.step_id, d.version_id, d.enrollment_id, d.message_id, d.contact_id,
  k.key as campaign from decision d left join campaign k on k.id = d.campaign_id left join contact c on c.id = d.contact_id"""
_ENROLLMENTS = f"""select n.id, k.key as campaign, n.version_id, n.state, n.step_id, n.due_at, n.end_reason, n.entered_at, n.ended_at,
  n.goal_at, n.shadow, n.held_out, n.occurrence, n.position, n.entry, c.external_id as contact
  from enrollment n join campaign k on k.id = n.campaign_id left join contact c on c.id = n.contact_id
  where n.account_id = :account and {_MINE.format("n.contact_id")} and n.entered_at <= :at order by n.entered_at desc, n.id"""
_MESSAGES = """select m.id, m.enrollment_id, m.step_id, m.state, m.reason, m.subject, m.contact_id, m.due_at, m.created_at, m.settled_at,
  m.dot_at, m.expires_at, k.key as campaign, c.external_id as contact
  from message m join campaign k on k.id = m.campaign_id join contact c on c.id = m.contact_id
  where m.account_id = :account and m.created_at <= :at order by m.created_at, m.id"""
_EVENTS = """select e.*, exists(select 1 from event_pending p where p.event_id = e.id) as pending from event e
  where (e.account_key = :account or (e.account_key is null and e.contact_key = any(:contacts)))
    and ((e.name = :name and e.name <> :request) or (e.name = :request and e.properties ->> 'campaign' = :campaign))
    and e.received_at <= :at order by e.received_at desc, e.id desc limit :limit"""
_SURVEYED = """select max(coalesce(m.settled_at, m.dot_at)) from message m join contact c on c.id = m.contact_id
  where m.kind = 'survey' and m.state in ('in_dot', 'sent', 'unknown', 'ghosted') and m.id <> :message
    and coalesce(m.settled_at, m.dot_at) <= :at
    and c.person = (select o.person from message x join contact o on o.id = x.contact_id where x.id = :message)"""


def _pairs(explanation: Explanation, found: dict[str, Any]) -> Iterator[tuple[Line, dict[str, Any]]]:
    yield from zip(explanation.notes, found["notes"], strict=True)
    for story, made in zip(explanation.stories, found["stories"], strict=True):
        yield from zip(story.entry, made["entry"], strict=True)
        yield from zip(story.way, made["way"], strict=True)
        yield from zip(story.gates, made["gates"], strict=True)
        for letter, written in zip(story.letters, made["letters"], strict=True):
            yield from zip(letter.lines, written["lines"], strict=True)
            yield from zip(letter.gates, written["gates"], strict=True)


__all__ = ["GATES", "Explanation", "Letter", "Line", "Story", "explain", "read_moment"]
