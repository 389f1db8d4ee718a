"""Responding: what people say back through the links of a message. Unsubscribing, choosing topics, answering a survey.

Every verb here follows a POST; a GET only reads. All are idempotent: the same said twice changes nothing the second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from app.db import insert_rows
from app.errors import InputError, SurveyClosed, TooOften
from app.flow.closing import Closing, close
from app.flow.ingest import Own, raise_own
from app.models import consent, delivery_event
from app.rules.lifecycle import TRANSACTIONAL, Lifecycle
from app.rules.triggers import SCALES

ALL = "all"
OPEN_TRACKING, CLICK_TRACKING = "open_tracking", "click_tracking"
COMMENT_LENGTH = 4000
REVISIONS_PER_HOUR = 12

_FOR_GOOD = ("bounced", "soft_limit", "complained")
_lifecycles: dict[str, Lifecycle] = {}


@dataclass(frozen=True, slots=True)
class Message:
    """What the public pages know of a message. `people` are the normalised addresses a choice counts for: the one it went to and,
    should it have changed since, the contact's present one. `survey` is None where the step asks nothing."""

    id: UUID
    topic: str
    subject: str | None
    campaign_id: int
    campaign: str
    version_id: int
    step: str
    enrollment: UUID
    account_id: int
    account_key: str
    contact_id: int
    contact_key: str
    people: tuple[str, ...]
    locale: str | None
    sent_at: datetime
    state: str
    links: tuple[str, ...] | None
    values: Mapping[str, Any] | None
    survey: str | None
    question: str | None


@dataclass(frozen=True, slots=True)
class Choices:
    """What the people of a message get. `closed` are the topics (or `all`) they opted out of; `barred` is why nothing can be sent to
    them, whatever they choose here (bounced, complained, manual), or None; `tracking` whether opens and clicks may be recorded."""

    closed: frozenset[str]
    barred: str | None
    tracking: bool

    def gets(self, topic: str) -> bool:
        return not self.barred and ALL not in self.closed and topic not in self.closed


@dataclass(frozen=True, slots=True)
class Answer:
    """The counted answer. `partitions` are to be rung after the commit; empty when nothing changed."""

    score: int
    comment: str | None
    answered_at: datetime
    revision: int
    partitions: frozenset[int] = frozenset()


def find_message(conn: Connection, message_id: UUID) -> Message | None:
    """The message of a token, or None when it is gone (erased)."""
    row = conn.execute(_MESSAGE, {"id": message_id}).mappings().first()
    if row is None:
        return None
    step = find_step(row["definition"], row["step"]) or {}
    kept = ("id", "topic", "subject", "campaign_id", "campaign", "version_id", "step", "enrollment", "account_id", "account_key")
    return Message(
        **{name: row[name] for name in kept},
        contact_id=row["contact_id"],
        contact_key=row["contact_key"],
        people=tuple(dict.fromkeys(person for person in (row["person"], row["present_person"]) if person)),
        locale=row["locale"],
        sent_at=row["sent_at"],
        state=row["state"],
        links=None if row["links"] is None else tuple(row["links"]),
        values=row["values"],
        survey=step.get("survey"),
        question=step.get("question"),
    )


def find_step(definition: Any, step_id: str) -> Mapping[str, Any] | None:
    """The step called `step_id` of a campaign definition as stored, however deep it is nested."""
    if isinstance(definition, Mapping):
        if definition.get("id") == step_id:
            return definition
        definition = list(definition.values())
    if isinstance(definition, list):
        for inner in definition:
            if isinstance(inner, Mapping | list) and (found := find_step(inner, step_id)):
                return found
    return None


def lifecycle_in_force(conn: Connection) -> tuple[str, Lifecycle] | None:
    """The newest published lifecycle and its hash; None before the first was published. Read once per hash and process."""
    row = conn.execute(text("select id, hash from lifecycle_version order by id desc limit 1")).first()
    if row is None:
        return None
    if row.hash not in _lifecycles:
        definition = conn.execute(text("select definition from lifecycle_version where id = :id"), {"id": row.id}).scalar_one()
        while len(_lifecycles) >= 8:
            _lifecycles.pop(next(iter(_lifecycles)), None)
        _lifecycles[row.hash] = Lifecycle.model_validate(definition)
    return row.hash, _lifecycles[row.hash]


def choices(conn: Connection, message: Message) -> Choices:
    """What the people of `message` get at present. Reads only."""
    rows = conn.execute(_SUPPRESSED, {"people": list(message.people)}).all()
    barred = next((row.reason for row in rows if row.reason in _FOR_GOOD or (row.reason != "unsubscribed" and row.scope == ALL)), None)
    permitted = conn.execute(_PERMITTED, {"people": list(message.people), "purposes": [OPEN_TRACKING, CLICK_TRACKING]}).scalar()
    return Choices(frozenset(row.scope for row in rows), barred, permitted is not False)


def unsubscribe(conn: Connection, message: Message, scope: str, now: datetime, *, method: str, network: str | None) -> bool:
    """Closes `scope` (a topic or `all`) for the people of `message`. False when it was closed already, or cannot be (transactional).

    Writes the suppression, a line of the consent log (P-05) and the delivery event. `method` is one_click or page.
    """
    if scope == TRANSACTIONAL:
        return False
    evidence = {"message": str(message.id), "campaign": message.campaign, "step": message.step}
    closings = [Closing(person, scope, "unsubscribed", {**evidence, "method": method}) for person in message.people]
    closed = close(conn, closings, now)
    if not closed:
        return False
    _log(conn, [one.person for one in closed], {scope: False}, now, method, {**evidence, "network": network})
    event = {
        "message_id": message.id,
        "kind": "unsubscribed",
        "at": now,
        "detail": {"scope": scope, "method": method},
        "key": f"{scope}:{closed[0].id}",
    }
    insert_rows(conn, delivery_event, [event], conflict="(message_id, kind, key) do nothing")
    return True


def subscribe(conn: Connection, message: Message, scopes: Iterable[str], now: datetime, *, network: str | None) -> frozenset[str]:
    """Opens `scopes` again that the people of `message` closed themselves. Returns those that were closed.

    Never lifts what a bounce, a complaint or the operator closed (P-04).
    """
    lifted = conn.execute(_LIFT, {"people": list(message.people), "scopes": list(scopes), "now": now}).all()
    evidence = {"message": str(message.id), "campaign": message.campaign, "step": message.step, "network": network}
    for scope in sorted({row.scope for row in lifted}):
        _log(conn, sorted({row.person for row in lifted if row.scope == scope}), {scope: True}, now, "page", evidence)
    return frozenset(row.scope for row in lifted)


def choose(
    conn: Connection,
    message: Message,
    wanted: frozenset[str],
    offered: frozenset[str],
    tracking: bool,
    now: datetime,
    *,
    network: str | None,
) -> None:
    """Takes the form of the preference page: of the `offered` topics exactly the `wanted` ones, and whether opens and clicks may be
    recorded. Wanting any topic ends an opt-out from everything; topics that were not offered are left alone."""
    before = choices(conn, message)
    if wanted:
        subscribe(conn, message, {ALL} | (wanted & offered), now, network=network)
    for scope in sorted(offered - wanted):
        unsubscribe(conn, message, scope, now, method="page", network=network)
    if tracking != before.tracking:
        evidence = {"message": str(message.id), "network": network}
        _log(conn, message.people, {OPEN_TRACKING: tracking, CLICK_TRACKING: tracking}, now, "page", evidence)


def counted(conn: Connection, message: Message) -> Answer | None:
    """The answer of `message` that counts at present."""
    row = conn.execute(_COUNTED, {"message": message.id, "question": message.question}).first()
    return row and Answer(row.score, row.comment, row.answered_at, row.revision)


def answer(
    conn: Connection, message: Message, score: int, comment: str | None, now: datetime, *, closes_after: timedelta, partitions: int
) -> Answer:
    """Takes an answer; the last one before the survey closes counts, earlier ones are kept as revisions (Q-05).

    Raises `nurture.survey_responded` and asks for an assessment of the account, unless the answer says what the counted one says
    already. Raises InputError for a score outside the scale or a comment over 4,000 characters (Q-08), SurveyClosed, and TooOften after 12
    changes within an hour (Q-06).
    """
    low, high = SCALES[message.survey]
    if not low <= score <= high:
        raise InputError(f"must be from {low} to {high}", "score")
    comment = clean(comment)
    if comment and len(comment) > COMMENT_LENGTH:
        raise InputError(f"may have {COMMENT_LENGTH:,} characters; this one has {len(comment):,}", "comment")
    if now >= message.sent_at + closes_after:
        raise SurveyClosed(message.sent_at + closes_after)
    if conn.execute(_RECENT, {"message": message.id, "since": now - timedelta(hours=1)}).scalar_one() >= REVISIONS_PER_HOUR:
        raise TooOften("this answer has been changed very often; please wait an hour")
    given = {"score": score, "comment": comment, "now": now, "message": message.id, "question": message.question, "survey": message.survey}
    where = {"account": message.account_id, "contact": message.contact_id, "campaign": message.campaign_id}
    row = conn.execute(_ANSWER, given | where).first()
    if row is None:
        return counted(conn, message)
    revision = {"response": row.id, "revision": row.revision, "score": score, "comment": comment, "now": now}
    conn.execute(_REVISION, revision)
    previous = conn.execute(_PREVIOUS, {"response": row.id, "revision": row.revision - 1}).scalar()
    conn.execute(_ASSESS, {"account": message.account_id, "now": now})
    rung = raise_own(conn, [_responded(message, score, comment, row.revision, previous, now)], now, partitions)
    return Answer(score, comment, now, row.revision, frozenset(rung))


def clean(comment: str | None) -> str | None:
    """A comment as it is stored: line ends made one, other control characters dropped, None when nothing is left."""
    if comment is None:
        return None
    comment = comment.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(letter for letter in comment if letter in "\n\t" or (letter >= " " and letter != "\x7f")).strip() or None


def _responded(message: Message, score: int, comment: str | None, revision: int, previous: int | None, now: datetime) -> Own:
    properties = {
        "survey": message.survey,
        "question": message.question,
        "score": score,
        "comment": comment,
        "campaign": message.campaign,
        "step": message.step,
        "message": str(message.id),
        "enrollment": str(message.enrollment),
        "revision": revision,
        "previous": previous,
    }
    event_id = f"response:{message.id}:{message.question}:{revision}"
    return Own("nurture.survey_responded", event_id, properties, message.account_key, message.contact_key, now)


def _log(conn: Connection, people: Iterable[str], purposes: Mapping[str, bool], now: datetime, method: str, evidence: dict) -> None:
    rows = [
        {"person": person, "purpose": purpose, "granted": granted, "at": now, "method": method, "evidence": evidence}
        for person in people
        for purpose, granted in purposes.items()
    ]
    insert_rows(conn, consent, rows)


_MESSAGE = text("""
    select m.id, m.topic, m.subject, m.campaign_id, k.key as campaign, m.version_id, m.step_id as step, m.enrollment_id as enrollment,
           m.account_id, a.external_id as account_key, m.contact_id, c.external_id as contact_key, m.person, c.person as present_person,
           c.locale, m.state, m.links, m.values, v.definition,
           coalesce(case when m.state = 'sent' then m.settled_at end, m.dot_at, m.created_at) as sent_at
      from message m
      join campaign k on k.id = m.campaign_id
      join campaign_version v on v.id = m.version_id
      join account a on a.id = m.account_id
      join contact c on c.id = m.contact_id
     where m.id = :id
""")

_SUPPRESSED = text("select scope, reason from suppression where person = any(:people) and lifted_at is null order by id")

_PERMITTED = text("""
    select bool_and(granted) from (
      select distinct on (person, purpose) granted from consent
       where person = any(:people) and purpose = any(:purposes) order by person, purpose, at desc, id desc) as latest
""")

_LIFT = text("""
    update suppression set lifted_at = :now
     where person = any(:people) and scope = any(:scopes) and reason = 'unsubscribed' and lifted_at is null
    returning person, scope
""")

_COUNTED = text("select score, comment, answered_at, revision from response where message_id = :message and question = :question")

_RECENT = text("""
    select count(*) from response_revision v join response r on r.id = v.response_id
     where r.message_id = :message and v.answered_at > :since
""")

# No row comes back when the answer is the same as the one that counts.
_ANSWER = text("""
    insert into response (message_id, account_id, contact_id, campaign_id, survey, question, score, comment, answered_at, revision)
    values (:message, :account, :contact, :campaign, :survey, :question, :score, :comment, :now, 1)
    on conflict (message_id, question) do update
       set score = excluded.score, comment = excluded.comment, answered_at = excluded.answered_at, revision = response.revision + 1
     where (response.score, response.comment) is distinct from (excluded.score, excluded.comment)
    returning id, revision
""")

_REVISION = text("""
    insert into response_revision (response_id, revision, score, comment, answered_at) values (:response, :revision, :score, :comment, :now)
""")

_PREVIOUS = text("select score from response_revision where response_id = :response and revision = :revision")

_ASSESS = text("update account set assess_at = :now where id = :account and (assess_at is null or assess_at > :now)")
