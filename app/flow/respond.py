"""Responding: what people say back through the links of a message. Unsubscribing, choosing topics, pausing, permitting or refusing
tracking, answering a survey.

Every verb here follows a POST; a GET only reads. All are idempotent: the same said twice changes nothing the second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from app.db import insert_rows
from app.errors import InputError, SurveyClosed, TooOften
from app.flow import consents, holding
from app.flow.closing import Closing, close
from app.flow.consents import CLICK_TRACKING, OPEN_TRACKING, PAUSE, Said
from app.flow.ingest import Own, raise_own
from app.models import delivery_event, hold
from app.rules import tracking
from app.rules.lifecycle import TRANSACTIONAL, Lifecycle
from app.rules.triggers import KINDS, SCALES

ALL = "all"
PAUSED = "paused by the person"
PAUSE_LASTS = timedelta(days=30)
COMMENT_LENGTH = 4000
REVISIONS_PER_HOUR = 12

_WHOLLY = (ALL, "manual")
_FOR_GOOD = ("bounced", "soft_limit", "complained")
_lifecycles: dict[str, Lifecycle] = {}


@dataclass(frozen=True, slots=True)
class Message:
    """What the public pages know of a message. `people` are the normalised addresses a choice counts for: the one it went to and,
    should it have changed since, the contact's present one; of an erased contact the keyed hash that its suppressions stand under.
    `survey` is None where the step asks nothing."""

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
    country: str | None = None
    erased: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """What the people of a message get. `closed` are the topics (or `all`) they opted out of; `barred` is why nothing can be sent to
    them, whatever they choose here (bounced, complained, manual), or None; `paused_until` is the end of the pause they asked for;
    `opens` and `clicks` say whether those may be recorded, None where this installation does not do so at all."""

    closed: frozenset[str]
    barred: str | None
    paused_until: datetime | None
    opens: bool | None
    clicks: bool | None

    def gets(self, topic: str) -> bool:
        return not self.barred and ALL not in self.closed and topic not in self.closed


@dataclass(frozen=True, slots=True)
class Why:
    """Why a message came: the campaign, what started it (the kind of trigger and its name), the account, the contact's roles there, and
    since when."""

    campaign: str
    started_by: tuple[str, str]
    account: str | None
    roles: tuple[str, ...]
    since: datetime | None


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
        country=tracking.country_of(row["country"], row["locale"]),
        erased=row["erased"],
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


def choices(conn: Connection, message: Message, now: datetime) -> Choices:
    """What the people of `message` get at present. Reads only."""
    rows = conn.execute(_SUPPRESSED, {"people": list(message.people)}).all()
    barred = next((row.reason for row in rows if row.reason in _FOR_GOOD or (row.reason != "unsubscribed" and row.scope in _WHOLLY)), None)
    said = consents.last_words(conn, message.people, [OPEN_TRACKING, CLICK_TRACKING])
    until = conn.execute(_PAUSED, {"people": list(message.people), "reason": PAUSED, "now": now}).scalar()
    found = lifecycle_in_force(conn)
    opens = clicks = None
    if found is not None and not message.erased:
        rules = found[1].tracking
        if rules.opens_in.get(message.country or "", rules.opens) != tracking.OFF:
            opens = tracking.opens_kept(rules, message.country, said.get(OPEN_TRACKING)) != tracking.NOTHING
        if rules.clicks != tracking.OFF:
            clicks = tracking.clicks_kept(rules, said.get(CLICK_TRACKING)) != tracking.NOTHING
    return Choices(frozenset(row.scope for row in rows), barred, until, opens, clicks)


def why(conn: Connection, message: Message) -> Why | None:
    """Why the message came; None for one that was erased. Reads only."""
    row = None if message.erased else conn.execute(_WHY, {"id": message.id}).first()
    if row is None:
        return None
    found = lifecycle_in_force(conn)
    roles = found[1].roles if found else {}
    wanted = tuple(roles.get(role) or role.replace("_", " ") for role in sorted(row.roles or ()))
    return Why(row.name, _started_by(row.trigger, found[1] if found else None), row.account_name, wanted, row.entered_at)


def unsubscribe(
    conn: Connection, message: Message, scope: str, now: datetime, *, method: str, network: str | None, said: Said | None = None
) -> bool:
    """Closes `scope` (a topic or `all`) for the people of `message`. False when it was closed already, or cannot be (transactional).

    Writes the suppression, a line of the consent log (P-05) and the delivery event. `method` is one_click, mailto or page; `said` tells
    more of a page.
    """
    if scope == TRANSACTIONAL:
        return False
    evidence = _evidence(message)
    closed = close(conn, [Closing(person, scope, "unsubscribed", {**evidence, "method": method}) for person in message.people], now)
    if not closed:
        return False
    said = said or Said(method, "contact", source=method, network=network)
    consents.note(conn, [one.person for one in closed], {scope: False}, now, replace(said, evidence=evidence))
    event = {
        "message_id": message.id,
        "kind": "unsubscribed",
        "at": now,
        "detail": {"scope": scope, "method": method},
        "key": f"{scope}:{closed[0].id}",
    }
    insert_rows(conn, delivery_event, [event], conflict="(message_id, kind, key) do nothing")
    return True


def subscribe(conn: Connection, message: Message, scopes: Iterable[str], now: datetime, *, said: Said) -> frozenset[str]:
    """Opens `scopes` again that the people of `message` closed themselves. Returns those that were closed.

    Never lifts what a bounce, a complaint or the operator closed (P-04).
    """
    lifted = conn.execute(_LIFT, {"people": list(message.people), "scopes": list(scopes), "now": now}).all()
    for scope in sorted({row.scope for row in lifted}):
        people = sorted({row.person for row in lifted if row.scope == scope})
        consents.note(conn, people, {scope: True}, now, replace(said, evidence=_evidence(message)))
    return frozenset(row.scope for row in lifted)


def choose(conn: Connection, message: Message, wanted: frozenset[str], offered: frozenset[str], now: datetime, *, said: Said) -> None:
    """Takes the topics of the preference page: of the `offered` ones exactly the `wanted`. Wanting any ends an opt-out from everything;
    topics that were not offered are left alone."""
    if wanted:
        subscribe(conn, message, {ALL} | (wanted & offered), now, said=said)
    for scope in sorted(offered - wanted):
        unsubscribe(conn, message, scope, now, method=said.method, network=said.network, said=said)


def permit(conn: Connection, message: Message, opens: bool, clicks: bool, now: datetime, *, said: Said) -> None:
    """Takes whether opens and clicks may be recorded, each for itself (P-06); what does not change is not said again. Counts at once, for
    mail that was sent before too (T-05)."""
    before = choices(conn, message, now)
    purposes = {OPEN_TRACKING: (before.opens, opens), CLICK_TRACKING: (before.clicks, clicks)}
    changed = {purpose: after for purpose, (was, after) in purposes.items() if was is not None and was != after}
    if changed:
        consents.note(conn, message.people, changed, now, replace(said, evidence=_evidence(message)))


def pause(conn: Connection, message: Message, now: datetime, *, said: Said) -> datetime | None:
    """Sends the people of `message` nothing but transactional mail for 30 days; returns when that ends. A pause that runs is left as it
    is. None for a contact that was erased."""
    people = [person for person in message.people if "@" in person]
    until = choices(conn, message, now).paused_until
    if until is not None or not people:
        return until
    until = now + PAUSE_LASTS
    insert_rows(conn, hold, [{"person": person, "reason": PAUSED, "created_at": now, "until": until} for person in people])
    consents.note(conn, people, {PAUSE: True}, now, replace(said, evidence={**_evidence(message), "until": until}))
    return until


def resume(conn: Connection, message: Message, now: datetime, *, said: Said) -> None:
    """Ends the pause of the people of `message`: what waited is due now."""
    running = conn.execute(_PAUSES, {"people": list(message.people), "reason": PAUSED, "now": now}).all()
    for row in running:
        holding.release(conn, row.id, now)
    if running:
        consents.note(conn, sorted({row.person for row in running}), {PAUSE: False}, now, replace(said, evidence=_evidence(message)))


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


def _evidence(message: Message) -> dict[str, str]:
    return {"message": str(message.id), "campaign": message.campaign, "step": message.step}


def _started_by(trigger: Mapping[str, Any], lifecycle: Lifecycle | None) -> tuple[str, str]:
    """The kind of a stored trigger and, of an event or a milestone, its name as people call it. Customers are told no more of the others:
    what their health is thought to be is not for a page that a forwarded mail opens."""
    kind = next((kind for kind in KINDS if trigger.get(kind)), "other")
    if kind not in ("event", "milestone", "milestone_overdue"):
        return kind, ""
    spec = lifecycle.milestones.get(trigger[kind]) if lifecycle and kind != "event" else None
    return kind, (spec and spec.label) or str(trigger[kind]).replace("_", " ")


_MESSAGE = text("""
    select m.id, m.topic, m.subject, m.campaign_id, k.key as campaign, m.version_id, m.step_id as step, m.enrollment_id as enrollment,
           m.account_id, a.external_id as account_key, m.contact_id, c.external_id as contact_key,
           coalesce((select t.person from tombstone t where t.pseudonym = m.person), m.person) as person, c.person as present_person,
           c.locale, c.traits -> 'country' as country, c.erased_at is not null as erased, m.state, m.links, m.values, v.definition,
           coalesce(case when m.state = 'sent' then m.settled_at end, m.dot_at, m.created_at) as sent_at
      from message m
      join campaign k on k.id = m.campaign_id
      join campaign_version v on v.id = m.version_id
      join account a on a.id = m.account_id
      join contact c on c.id = m.contact_id
     where m.id = :id
""")

_SUPPRESSED = text("select scope, reason from suppression where person = any(:people) and lifted_at is null order by id")

_PAUSES = text("""
    select id, person, until from hold
     where person = any(:people) and reason = :reason and released_at is null and until > :now order by until desc
""")

_PAUSED = text("""
    select max(until) from hold where person = any(:people) and reason = :reason and released_at is null and until > :now
""")

_WHY = text("""
    select k.name, v.definition -> 'trigger' as trigger, a.name as account_name, s.roles, n.entered_at
      from message m
      join campaign k on k.id = m.campaign_id
      join campaign_version v on v.id = m.version_id
      join account a on a.id = m.account_id
      join enrollment n on n.id = m.enrollment_id
      left join membership s on s.account_id = m.account_id and s.contact_id = m.contact_id
     where m.id = :id
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
