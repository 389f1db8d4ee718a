"""What became of a message is written down: its state, the delivery event, the ledger, the suppression, and the event that campaigns
wait for. One transaction for any number of messages, and writing it twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import Connection, Row, select

from app.db import insert_rows
from app.errors import NotFound
from app.flow import publish, reservations
from app.flow.closing import Closing, close, give_up
from app.flow.ingest import Own, raise_own
from app.models import decision, delivery_event, installation
from app.rules.delivery import Ending
from app.rules.lifecycle import DEFAULT, Sending


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one claim ended.

    `claimed` is the row that `claims.claim` gave. `ending.event` is None where no attempt was made (a gate said no, the relay was away):
    then it is not counted. `gate` names the gate of the ledger line, `send` if it was none; `evidence` is what it saw; `reply` the
    relay's words. `filled_by` are the messages whose places it would have needed. `address` is where it went, over `transport`, where an
    attempt was made.
    """

    claimed: Row
    ending: Ending
    at: datetime
    gate: str = "send"
    verdict: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    reply: str | None = None
    person: str | None = None
    filled_by: Sequence[UUID] = ()
    transport: str = DEFAULT
    address: str | None = None


# A result counts while the token is the claim's. A message that was declared unknown meanwhile may still learn the truth, but it is
# settled: what would be tried again is skipped instead, as its campaign has gone on.
_SETTLE = """
with done as (
    update message m set
        state = case when m.state = 'unknown' and r.state = 'due' then 'skipped' else r.state end,
        reason = case when r.state = 'due' then coalesce(r.reason, m.reason) else r.reason end,
        due_at = coalesce(r.due_at, m.due_at),
        claim = case when r.state = 'due' and m.state <> 'unknown' then null else m.claim end,
        worker_id = case when r.state = 'due' and m.state <> 'unknown' then null else m.worker_id end,
        attempts = r.attempts,
        reply = coalesce(r.reply, m.reply),
        tried_at = coalesce(m.tried_at, r.tried_at),
        unknown_until = coalesce(r.unknown_until, m.unknown_until),
        person = coalesce(r.person, m.person),
        settled_at = case when r.state = 'due' and m.state <> 'unknown' then null else r.at end
    from jsonb_to_recordset(%(rows)s::jsonb)
        as r(id uuid, claim uuid, state text, reason text, due_at timestamptz, attempts int, reply text, person text, at timestamptz,
             tried_at timestamptz, unknown_until timestamptz)
    where m.id = r.id and m.claim = r.claim and (m.state in ('claimed', 'in_dot') or (m.state = 'unknown' and r.state <> 'unknown'))
    returning m.id, m.state, m.enrollment_id, m.campaign_id, m.account_id, m.contact_id, m.step_id, m.occurrence
)"""
_STILL_OPEN = """
select m.id
from unnest(%(ids)s::uuid[], %(claims)s::uuid[], %(states)s::text[]) as r(id, claim, state)
join message m on m.id = r.id and m.claim = r.claim
where m.state in ('claimed', 'in_dot') or (m.state = 'unknown' and r.state <> 'unknown')"""
_UNKNOWN = """
with done as (
    update message m set state = 'unknown', reason = 'worker_died', settled_at = %(now)s, attempts = attempts + 1, unknown_until = %(until)s
    where m.id = any(%(ids)s) and m.state = 'in_dot'
    returning m.id, m.state, m.enrollment_id, m.campaign_id, m.account_id, m.contact_id, m.step_id, m.occurrence, m.attempts, m.version_id
)"""
# What shows that a message arrived: a report of it, or somebody or something that fetched one of its links. Of a message `m`.
PROOF = """coalesce(
        (select d.kind from delivery_event d
          where d.message_id = m.id and (d.detail ? 'source' or d.kind in ('opened', 'clicked', 'unsubscribed')) order by d.id limit 1),
        (select h.kind from hit h where h.message_id = m.id order by h.id limit 1))"""
_PROVED = f"""
select m.id, {PROOF} as proof from message m where m.id = any(%(ids)s) and m.state = 'unknown' and {PROOF} is not null"""
# What an unknown message turns out to be. `due` sends it once more, under its Message-ID; whoever held the old token is fenced off.
_RESOLVE = """
update message m set state = r.state, reason = r.reason, unknown_until = null,
    due_at = case when r.state = 'due' then %(now)s else m.due_at end,
    resends = m.resends + (r.state = 'due')::int,
    claim = case when r.state = 'due' then null else m.claim end,
    worker_id = case when r.state = 'due' then null else m.worker_id end,
    tried_at = case when r.state = 'due' then null else m.tried_at end,
    settled_at = case when r.state = 'due' then null else m.settled_at end
from jsonb_to_recordset(%(rows)s::jsonb) as r(id uuid, state text, reason text, evidence jsonb)
where m.id = r.id and m.state = 'unknown'
returning m.id, m.state, m.reason, m.enrollment_id, m.campaign_id, m.account_id, m.contact_id, m.step_id, m.version_id, r.evidence"""
_SKIP = """
with done as (
    update message m set state = 'skipped', reason = %(reason)s, settled_at = %(now)s, claim = null, worker_id = null
    where m.state in ('due', 'claimed') and m.id = any(array(
        select id from message where campaign_id = %(campaign)s
          and (state = 'claimed' or (state = 'due' and (%(every)s or due_at <= %(now)s or reason = 'campaign_paused')))
        order by id for update))
    returning m.id, m.state, m.enrollment_id, m.campaign_id, m.account_id, m.contact_id, m.step_id, m.occurrence, m.version_id
)"""
_NAMED = """
select done.*, k.key as campaign, a.external_id as account_key, c.external_id as contact_key
from done join campaign k on k.id = done.campaign_id join account a on a.id = done.account_id join contact c on c.id = done.contact_id"""


def settle(conn: Connection, outcomes: Sequence[Outcome], now: datetime, partitions: int) -> set[int]:
    """Writes how claims ended; returns the partitions to ring after the commit.

    Outcomes whose token no longer matches change nothing: another worker has the message. May be repeated after a commit whose answer
    was lost. Never sends, never claims.
    """
    rows = [_row(one) for one in outcomes]
    done = {row.id: row for row in conn.exec_driver_sql(_SETTLE + _NAMED, {"rows": to_json(rows).decode()})}
    ours = [one for one in outcomes if one.claimed.id in done]
    insert_rows(conn, delivery_event, [_event(one) for one in ours if one.ending.event], conflict="do nothing")
    insert_rows(conn, decision, [_decision(one) for one in ours if _is_news(one)])
    close(conn, [_closing(one) for one in ours if one.ending.suppress and one.person], now)
    doubtful = {one.person: [one.claimed.contact_id] for one in ours if one.person and _is_doubtful(one.ending)}
    give_up(conn, doubtful, now)
    resolve(conn, [row.id for row in done.values() if row.state == "unknown"], now)
    # What the relay has wait keeps its place: it came before others, and is still to be sent. What a gate has wait does not.
    tried = {one.claimed.id for one in ours if one.gate == "send"}
    free = [row.id for row in done.values() if row.state == "skipped" or (row.state == "due" and row.id not in tried)]
    reservations.give_back(conn, free, now)
    reservations.look_again(conn, [(one.claimed.id, other) for one in ours for other in one.filled_by], now)
    return raise_own(conn, [_settled(row, now) for row in done.values() if row.state != "due"], now, partitions)


def still_open(conn: Connection, outcomes: Sequence[Outcome]) -> set[UUID]:
    """Of messages whose outcomes were settled, those that have none: a crash of the database took it with it."""
    about = {
        "ids": [one.claimed.id for one in outcomes],
        "claims": [one.claimed.claim for one in outcomes],
        "states": [one.ending.state for one in outcomes],
    }
    return set(conn.exec_driver_sql(_STILL_OPEN, about).scalars())


def settle_unknown(conn: Connection, message_ids: Sequence[UUID], now: datetime) -> set[int]:
    """Messages whose worker died at the final dot: `unknown`, said to their campaigns. Returns the partitions to ring."""
    if not message_ids:
        return set()
    until = now + _sending(conn).unknown
    done = conn.exec_driver_sql(_UNKNOWN + _NAMED, {"ids": list(message_ids), "now": now, "until": until}).all()
    insert_rows(
        conn,
        delivery_event,
        [
            {"message_id": r.id, "kind": "unknown", "at": now, "detail": {"cause": "worker_died"}, "key": f"attempt:{r.attempts}"}
            for r in done
        ],
        conflict="do nothing",
    )
    insert_rows(conn, decision, [ledger(row, now, "send", "no", "worker_died", {}) for row in done])
    resolve(conn, [row.id for row in done], now)
    partitions = conn.execute(select(installation.c.partitions)).scalar_one()
    return raise_own(conn, [_settled(row, now) for row in done], now, partitions)


def resolve(conn: Connection, message_ids: Sequence[UUID], now: datetime) -> int:
    """Of these, the messages whose fate nobody knew and of which something has come back since are `sent` (S-05): a report, an answer, or
    somebody or something that fetched one of their links. Mail that bounced later was taken by the relay, too. Returns how many. Their
    campaigns went on when they became unknown."""
    if not message_ids:
        return 0
    proved = conn.exec_driver_sql(_PROVED, {"ids": list(message_ids)}).all()
    return len(decide(conn, [Verdict(row.id, "sent", "proved_sent", {"by": row.proof}) for row in proved], now))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an unknown message: `sent`, or `due`, to be sent once more."""

    message: UUID
    state: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


def decide(conn: Connection, verdicts: Sequence[Verdict], now: datetime) -> list[UUID]:
    """Of these, the messages that are unknown become what their verdicts say. Returns those. Their campaigns heard of them when they
    became unknown, and have gone on."""
    if not verdicts:
        return []
    rows = [{"id": one.message, "state": one.state, "reason": one.reason, "evidence": one.evidence} for one in verdicts]
    done = conn.exec_driver_sql(_RESOLVE, {"rows": to_json(rows).decode(), "now": now}).all()
    said = {"sent": "yes", "due": "wait"}
    insert_rows(conn, decision, [ledger(row, now, "send", said[row.state], row.reason, row.evidence) for row in done])
    return [row.id for row in done]


def skip_due(
    conn: Connection, campaign_id: int, reason: str, now: datetime, partitions: int, *, every: bool = False
) -> tuple[int, set[int]]:
    """Messages of the campaign that are not at their dot yet, and that are due or held up by a pause (`every`: all of them), are skipped
    with that reason, said to their campaigns. A worker that has claimed one finds its token void. Returns how many, and the partitions
    to ring."""
    about = {"campaign": campaign_id, "now": now, "reason": reason, "every": every}
    done = conn.exec_driver_sql(_SKIP + _NAMED, about).all()
    insert_rows(conn, decision, [ledger(row, now, "campaign", "no", reason, {}) for row in done])
    reservations.give_back(conn, [row.id for row in done], now)
    return len(done), raise_own(conn, [_settled(row, now) for row in done], now, partitions)


def _sending(conn: Connection) -> Sending:
    try:
        return publish.book(conn).lifecycle.sending
    except NotFound:
        return Sending()


def _row(one: Outcome) -> dict[str, Any]:
    return {
        "id": one.claimed.id,
        "claim": one.claimed.claim,
        "state": one.ending.state,
        "reason": one.ending.reason,
        "due_at": one.ending.due_at if one.ending.state == "due" else None,
        "unknown_until": one.ending.due_at if one.ending.state == "unknown" else None,
        "tried_at": one.at if one.ending.event == "deferred" else None,
        "attempts": _attempt(one),
        "reply": one.reply,
        "person": one.person,
        "at": one.at,
    }


def _attempt(one: Outcome) -> int:
    return one.claimed.attempts + (1 if one.ending.event else 0)


def _event(one: Outcome) -> dict[str, Any]:
    detail = {"reply": one.reply, "enhanced": one.ending.enhanced, "sort": one.ending.sort, **one.evidence}
    return {
        "message_id": one.claimed.id,
        "kind": one.ending.event,
        "at": one.at,
        "detail": {name: value for name, value in detail.items() if value is not None},
        "key": f"attempt:{_attempt(one)}",
    }


def _is_news(one: Outcome) -> bool:
    """The ledger keeps every no, and a wait only when its reason is another than last time."""
    return one.ending.reason is not None and (one.ending.state != "due" or one.ending.reason != one.claimed.reason)


def _decision(one: Outcome) -> dict[str, Any]:
    verdict = one.verdict or ("wait" if one.ending.state == "due" else "no")
    evidence = {"reply": one.reply, **one.evidence} if one.reply else dict(one.evidence)
    return ledger(one.claimed, one.at, one.gate, verdict, one.ending.reason, evidence)


def ledger(row: Row, at: datetime, gate: str, verdict: str, reason: str, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The line of the ledger about a message; `row` has its ids."""
    return {
        "at": at,
        "account_id": row.account_id,
        "contact_id": row.contact_id,
        "campaign_id": row.campaign_id,
        "version_id": row.version_id,
        "enrollment_id": row.enrollment_id,
        "message_id": row.id,
        "step_id": row.step_id,
        "gate": gate,
        "verdict": verdict,
        "reason": reason,
        "evidence": evidence,
    }


def _closing(one: Outcome) -> Closing:
    return Closing(one.person, "bounced", "bounced", {"message": str(one.claimed.id), "reply": one.reply})


def _is_doubtful(ending: Ending) -> bool:
    """Whether the message ended in a way that says something of the address, if it is not the only one."""
    return ending.state == "skipped" and ending.sort in ("host", "soft", "full")


def _settled(row: Row, now: datetime) -> Own:
    return Own(
        "nurture.message_settled",
        f"settled:{row.id}",
        {
            "message": str(row.id),
            "campaign": row.campaign,
            "step": row.step_id,
            "occurrence": row.occurrence,
            "enrollment": str(row.enrollment_id),
            "outcome": row.state,
        },
        row.account_key,
        row.contact_key,
        now,
    )
