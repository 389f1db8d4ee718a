"""Where worlds get their past from: the events and the feedback that a database has stored, or a file of events.

Reads only. What follows from events is not read but left to the rules: memberships, milestones, stages, enrollments, messages. Read are
the facts that no rule can know: what was posted, what the health was found to be, what staff did by hand, and how relays and recipients
answered.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from pydantic_core import from_json, to_json
from sqlalchemy import Connection

from app.errors import EventError, InputError, NotFound
from app.flow.items import ITEM_BYTES, read_items
from app.flow.world import Letter, Posted, Reply, World
from app.rules.facts import TRIGGER_MAX_AGE

# Own events that no rule derives: assessments, what staff asked for by hand, what came back of mails.
FACTS = (
    "nurture.health_changed",
    "nurture.enroll_requested",
    "nurture.enrollment_steered",
    "nurture.email_bounced",
    "nurture.email_complained",
)
CHUNK = 200  # accounts read at once
LINE_BYTES = 4 * ITEM_BYTES  # what is larger is not even looked at
LINES = 500  # of a file read at once
SAME_MOMENT = timedelta(minutes=1)
_GZIP = b"\x1f\x8b"
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_FAR = datetime(9999, 1, 1, tzinfo=UTC)  # when lines of a file are "received", so that no time in them is in the future


@dataclass(frozen=True, slots=True)
class Held:
    """A hold as it was: of an account or of a contact; `released` is when somebody ended it before its time."""

    account: str | None
    contact: str | None
    reason: str
    since: datetime
    until: datetime | None
    released: datetime | None


@dataclass(frozen=True, slots=True)
class Closed:
    """A suppression as it was."""

    person: str
    scope: str
    since: datetime
    lifted: datetime | None


@dataclass(frozen=True, slots=True)
class Assessed:
    """What the health of an account was found to be, news or not."""

    account: str
    score: float | None
    band: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Unassessed:
    """From when on nobody has assessed the health of an account; `last` is the row of the last assessment, None where there was none."""

    account: str
    since: datetime
    last: Mapping[str, Any] | None = None


@dataclass(slots=True)
class History:
    """What happened to some accounts, in the order it was received, and around them."""

    accounts: tuple[str, ...] = ()
    events: list[Posted] = field(default_factory=list)
    holds: list[Held] = field(default_factory=list)
    suppressions: list[Closed] = field(default_factory=list)
    assessments: list[Assessed] = field(default_factory=list)
    unassessed: list[Unassessed] = field(default_factory=list)
    feedback: Recorded = field(default_factory=lambda: Recorded())

    def tell(self, world: World) -> None:
        """Puts everything but the feedback before `world`, which takes that when it is made."""
        world.post(self.events)
        for one in self.holds:
            world.hold(account=one.account, contact=one.contact, reason=one.reason, since=one.since, until=one.until, released=one.released)
        for one in self.suppressions:
            world.suppress(one.person, one.scope, one.since)
            if one.lifted is not None:
                world.lift(one.person, one.scope, one.lifted)
        for one in self.assessments:
            world.assess(one.account, one.score, one.band, one.at)

    def go_on(self, world: World) -> None:
        """Has `world` assess health from where what was recorded ends; without this it believes what was recorded, and no more."""
        for one in self.unassessed:
            world.assess_from(one.account, one.since, one.last)


@dataclass(slots=True)
class _Fate:
    """What became of one message: what the relay said (None: it was never asked), and what its reader did."""

    said: str | None
    settled_at: datetime | None
    replies: list[tuple[datetime, Reply]] = field(default_factory=list)


class Recorded:
    """Feedback as it was recorded: of the same message; else of the same step of the campaign for the same account and contact, with
    the same delays; else every letter is taken, but for addresses that are known not to exist, and nobody answers."""

    def __init__(self) -> None:
        self._by_id: dict[UUID, _Fate] = {}
        self._by_place: dict[tuple[str, str, str, str], _Fate] = {}
        self._gone: set[str] = set()

    def outcome(self, letter: Letter) -> str:
        fate = self._fate(letter)
        if fate is not None and fate.said is not None:
            return fate.said
        return "rejected" if letter.person in self._gone else "sent"

    def after(self, letter: Letter) -> list[tuple[timedelta | datetime, Reply]]:
        fate = self._fate(letter)
        if fate is None or fate.settled_at is None:
            return []
        if letter.id in self._by_id and abs(letter.settled_at - fate.settled_at) <= SAME_MOMENT:
            return [(max(moment, letter.settled_at), reply) for moment, reply in fate.replies]
        return [(max(moment - fate.settled_at, timedelta(0)), reply) for moment, reply in fate.replies]

    def note(self, row: Mapping[str, Any]) -> None:
        """A message with its account, campaign, step, contact, state, reason, person, settled_at, whether it was ever unknown and,
        where the relay refused it, sort."""
        said = row["state"] if row["state"] in ("sent", "unknown") else None
        said = "unknown" if said and row["unknown"] else said
        if row["state"] == "skipped" and row["reason"] == "rejected":
            said = "rejected" if row["sort"] == "hard" else "refused"
        if said == "rejected" and row["person"]:
            self._gone.add(row["person"])
        fate = self._by_id[row["id"]] = _Fate(said, row["settled_at"])
        self._by_place[row["account"], row["campaign"], row["step"], row["contact"]] = fate

    def reply(self, message_id: UUID, moment: datetime, reply: Reply) -> None:
        """Something the reader of a message that was noted did."""
        if (fate := self._by_id.get(message_id)) is not None:
            fate.replies.append((moment, reply))

    def _fate(self, letter: Letter) -> _Fate | None:
        return self._by_id.get(letter.id) or self._by_place.get((letter.account, letter.campaign, letter.step, letter.contact))


# From the database ---------------------------------------------------------------------------------------------------


def of_database(conn: Connection, *, accounts: Iterable[str] | None = None, until: datetime, chunk: int = CHUNK) -> Iterator[History]:
    """The histories of all accounts, or of those named, up to and including `until`, by about `chunk` accounts at a time.

    Accounts that share a contact or a person are in the same history, those not named included: they share caps, quarantine and
    suppressions. So each history may run in a world of its own. Raises NotFound for an account that does not exist.
    """
    if accounts is not None:
        keys = list(dict.fromkeys(accounts))
        known = {
            key for (key,) in conn.exec_driver_sql("select external_id from account where external_id = any(%(keys)s)", {"keys": keys})
        }
        if missing := [key for key in keys if key not in known]:
            raise NotFound(f"There is no account {missing[0]!r}.")
    else:
        keys = list(conn.exec_driver_sql("select external_id from account where erased_at is null order by external_id").scalars())
    told: set[str] = set()
    waiting = iter(keys)
    while some := list(islice((key for key in waiting if key not in told), chunk)):
        together = _with_kin(conn, [key for key in dict.fromkeys(some) if key not in told])
        told.update(together)
        yield _history(conn, together, until)


def _with_kin(conn: Connection, accounts: Sequence[str]) -> list[str]:
    """The accounts, and all others that share people with them."""
    found = dict.fromkeys(accounts)
    fresh = list(accounts)
    while fresh:
        kin = conn.exec_driver_sql(_KIN, {"accounts": fresh}).scalars()
        fresh = [key for key in kin if key not in found]
        found.update(dict.fromkeys(fresh))
    return list(found)


def _history(conn: Connection, accounts: Sequence[str], until: datetime) -> History:
    history = History(accounts=tuple(accounts))
    given = {"accounts": list(accounts), "until": until, "facts": list(FACTS)}
    rows = conn.exec_driver_sql(_EVENTS, given)
    history.events = [Posted(*row) for row in rows]
    history.holds = [Held(*row) for row in conn.exec_driver_sql(_HOLDS, given)]
    history.suppressions = [Closed(*row) for row in conn.exec_driver_sql(_SUPPRESSIONS, given)]
    history.assessments = [Assessed(*row) for row in conn.exec_driver_sql(_ASSESSMENTS, given)]
    for account, since, last in conn.exec_driver_sql(_UNASSESSED, given):
        if last is None:
            history.unassessed.append(Unassessed(account, _LONG_AGO))
        elif since is not None:
            history.unassessed.append(Unassessed(account, since, last))
    for row in conn.exec_driver_sql(_MESSAGES, given).mappings():
        history.feedback.note(row)
    for message_id, moment, detail in conn.exec_driver_sql(_CLICKS, given):
        clicked = Reply("clicked", link=detail.get("link") or 0, url=detail.get("url"), label=detail.get("label"))
        history.feedback.reply(message_id, moment, clicked)
    for message_id, moment in conn.exec_driver_sql(_PROOFS, given):
        history.feedback.reply(message_id, moment, Reply("proved"))
    for message_id, moment, key, detail in conn.exec_driver_sql(_REPLIES, given):
        history.feedback.reply(message_id, moment, Reply("replied", comment=detail.get("text"), key=key))
    for message_id, moment, score, comment in conn.exec_driver_sql(_ANSWERS, given):
        history.feedback.reply(message_id, moment, Reply("answered", score=score, comment=comment))
    return history


_KIN = """
select distinct b.external_id
from account a join membership m on m.account_id = a.id join contact c on c.id = m.contact_id
join contact d on d.id = c.id or (c.person is not null and d.person = c.person)
join membership n on n.contact_id = d.id join account b on b.id = n.account_id
where a.external_id = any(%(accounts)s) order by 1"""
# The people of these accounts, by every id they have had.
_PEOPLE = """
    select c.external_id as key, c.person from account a join membership m on m.account_id = a.id join contact c on c.id = m.contact_id
    where a.external_id = any(%(accounts)s)"""
_EVENTS = f"""
with people as ({_PEOPLE}), names as (
    select key from people union select previous_key from contact_alias where contact_key in (select key from people)
), found as (
    select id from event where account_key = any(%(accounts)s) and received_at <= %(until)s
    union
    select id from event where account_key is null and contact_key in (select key from names) and received_at <= %(until)s
)
select message_id, kind, name, account_key, contact_key, properties, occurred_at, received_at, source_id, mark
from event where id in (select id from found) and (source_id <> 0 or (depth = 0 and name = any(%(facts)s)))
order by received_at, id"""
_HOLDS = f"""
with people as ({_PEOPLE})
select a.external_id, c.external_id, h.reason, h.created_at, h.until, h.released_at
from hold h left join account a on a.id = h.account_id left join contact c on c.id = h.contact_id or c.person = h.person
where h.created_at <= %(until)s and (a.external_id = any(%(accounts)s) or c.external_id in (select key from people))
order by h.created_at, h.id"""
# What a relay refused follows from the message it refused; everything else that closes an address is a fact.
_SUPPRESSIONS = f"""
with people as ({_PEOPLE})
select person, scope, created_at, lifted_at from suppression s
where person in (select person from people) and created_at <= %(until)s
  and not exists (select from delivery_event d
                  where d.kind = 'rejected' and d.key like 'attempt:%%' and s.reason = 'bounced'
                    and d.message_id::text = s.evidence ->> 'message')
order by created_at, id"""
_ASSESSMENTS = """
select a.external_id, h.score, h.band, h.at from health_score h join account a on a.id = h.account_id
where a.external_id = any(%(accounts)s) and h.at <= %(until)s order by h.at, h.id"""
# An account that was never assessed is from the beginning; another when that is due next.
_UNASSESSED = """
select a.external_id, a.assess_at, to_jsonb(h) from account a left join lateral (
    select score, band, coverage, contributions, known from health_score where account_id = a.id order by at desc, id desc limit 1
) h on true where a.external_id = any(%(accounts)s) order by a.external_id"""
_OF = "from message m join account a on a.id = m.account_id"
_MESSAGES = f"""
select m.id, a.external_id as account, k.key as campaign, m.step_id as step, c.external_id as contact, m.state, m.reason, m.person,
       exists (select from delivery_event d where d.message_id = m.id and d.kind = 'unknown') as unknown,
       m.settled_at, (select d.detail ->> 'sort' from delivery_event d
                      where d.message_id = m.id and d.kind = 'rejected' order by d.id desc limit 1) as sort
{_OF} join campaign k on k.id = m.campaign_id join contact c on c.id = m.contact_id
where a.external_id = any(%(accounts)s) and m.settled_at <= %(until)s order by m.created_at, m.id"""
_CLICKS = f"""
select d.message_id, d.at, d.detail {_OF} join delivery_event d on d.message_id = m.id
where a.external_id = any(%(accounts)s) and d.kind = 'clicked' and d.at <= %(until)s order by d.at, d.id"""
_PROOFS = f"""
select d.message_id, d.at {_OF} join decision d on d.message_id = m.id
where a.external_id = any(%(accounts)s) and d.reason = 'proved_sent' and d.at <= %(until)s order by d.at, d.id"""
_REPLIES = f"""
select d.message_id, d.at, d.key, d.detail {_OF} join delivery_event d on d.message_id = m.id
where a.external_id = any(%(accounts)s) and d.kind = 'replied' and d.at <= %(until)s order by d.at, d.id"""
_ANSWERS = f"""
select m.id, v.answered_at, v.score, v.comment
{_OF} join response r on r.message_id = m.id join response_revision v on v.response_id = r.id
where a.external_id = any(%(accounts)s) and v.answered_at <= %(until)s order by v.answered_at, v.revision"""


# From a file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LineProblem:
    """What is wrong with one line, counted from 1; `field` is the JSON path, if it is about one."""

    line: int
    field: str | None
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.field}: {self.problem}" if self.field else f"line {self.line}: {self.problem}"


def of_file(path: Path) -> tuple[History, list[LineProblem]]:
    """The history that a file tells: one call of Segment's API a line (`type`, `timestamp`, …), plain or gzipped.

    An event counts as received at its `receivedAt`, or when it happened; `sentAt` is not looked at, as nobody knows when the file was
    filled. A line that cannot be taken is named with its number, and the rest is kept. Raises InputError when the file cannot be read.
    """
    history, problems = History(), []
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as lines:
            numbered = enumerate(_bounded(lines), 1)
            while some := list(islice(numbered, LINES)):
                history.events += _read_lines(some, problems)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be read: {error}", path.name) from error
    history.accounts = tuple(dict.fromkeys(one.account for one in history.events if one.account is not None))
    history.unassessed = [Unassessed(account, _LONG_AGO) for account in history.accounts]
    return history, problems


def _bounded(lines: BinaryIO) -> Iterator[bytes]:
    """The lines; of one that is too long as much as shows that it is."""
    while line := lines.readline(LINE_BYTES + 1):
        yield line
        while len(line) > LINE_BYTES and not line.endswith(b"\n"):
            line = lines.readline(LINE_BYTES + 1)


def _read_lines(lines: Sequence[tuple[int, bytes]], problems: list[LineProblem]) -> list[Posted]:
    found = []
    for number, line in lines:
        if not line.strip():
            continue
        try:
            found.append(_read_line(number, line))
        except EventError as error:
            problems.append(LineProblem(number, error.field, error.problem))
    return found


def _read_line(number: int, line: bytes) -> Posted:
    if len(line) > LINE_BYTES:
        raise EventError(f"is larger than {ITEM_BYTES // 1024} KB")
    try:
        raw = from_json(line.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise EventError(f"is no JSON that can be read: {error}") from error
    if not isinstance(raw, dict):
        raise EventError("must be an object")
    received = raw.pop("receivedAt", None)
    at = raw.pop("originalTimestamp", None)
    raw.setdefault("timestamp", at)
    raw.pop("sentAt", None)
    if raw["timestamp"] is None:
        raise EventError("must say when it happened", "timestamp")
    raw["messageId"] = raw.get("messageId") or f"line:{number}"
    items, wrong = read_items(to_json({"batch": [raw]}), _FAR)
    if wrong:
        raise EventError(wrong[0].problem, wrong[0].field)
    item = items[0]
    received_at = max(_received(received), item.occurred_at) if received is not None else item.occurred_at
    mark = "too_old" if item.occurred_at < received_at - TRIGGER_MAX_AGE else None
    who = (item.account_key, item.contact_key)
    return Posted(item.message_id, item.kind, item.name, *who, item.properties, item.occurred_at, received_at, mark=mark)


def _received(value: Any) -> datetime:
    try:
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise EventError("is no time such as 2026-03-02T09:00:00Z", "receivedAt") from error
