"""Messages: the list, and one message with everything that is known of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from app.errors import InputError, NotFound
from app.flow.reading.paging import LIMIT, Page, clean, page, read_cursor

STATES = ("due", "claimed", "in_dot", "sent", "unknown", "skipped", "ghosted", "shadow")

_FROM = """message m join campaign k on k.id = m.campaign_id join account a on a.id = m.account_id join contact c on c.id = m.contact_id"""
_COLUMNS = """m.id, m.state, m.reason, m.kind, m.topic, m.priority, k.key as campaign, k.name as campaign_name, m.step_id, m.occurrence,
  a.external_id as account, a.name as account_name, c.external_id as contact,
  nullif(concat_ws(' ', c.first_name, c.last_name), '') as contact_name, c.address, m.person, m.subject, m.created_at, m.due_at,
  m.expires_at, m.settled_at, m.attempts, m.enrollment_id,
  case when exists(select 1 from hit h where h.message_id = m.id and h.kind = 'click')
       then exists(select 1 from hit h where h.message_id = m.id and h.kind = 'click' and h.verdict = 'human')
       else exists(select 1 from delivery_event d where d.message_id = m.id and d.kind = 'clicked') end as clicked,
  (select r.score from response r where r.message_id = m.id limit 1) as answer"""


def messages(
    conn: Connection,
    *,
    state: str | None = None,
    campaign: str | None = None,
    account: str | None = None,
    contact: str | None = None,
    topic: str | None = None,
    enrollment: str | None = None,
    step: str | None = None,
    cursor: str | None = None,
    limit: int = LIMIT,
) -> Page:
    """Messages that match every filter, newest first. `state` may also be `waiting` (due, claimed or in_dot)."""
    where, values = [], {}
    if state := clean(state):
        if state not in (*STATES, "waiting"):
            raise InputError(f"must be one of waiting, {', '.join(STATES)}", "state")
        where.append("m.state in ('due', 'claimed', 'in_dot')" if state == "waiting" else "m.state = :state")
        values["state"] = state
    for column, name, value in (
        ("m.topic", "topic", topic),
        ("m.step_id", "step", step),
        ("k.key", "campaign", campaign),
        ("a.external_id", "account", account),
        ("c.external_id", "contact", contact),
    ):
        if value := clean(value):
            where.append(f"{column} = :{name}")
            values[name] = value
    if enrollment := clean(enrollment):
        where.append("m.enrollment_id = :enrollment")
        values["enrollment"] = _uuid(enrollment, "enrollment")
    after = read_cursor(cursor, datetime, UUID)
    if after:
        where.append("(m.created_at, m.id) < (:at, :last)")
        values |= {"at": after[0], "last": after[1]}
    rows = conn.execute(
        text(
            f"""select {_COLUMNS} from {_FROM} where {" and ".join(where) or "true"}
                order by m.created_at desc, m.id desc limit :limit"""
        ),
        values | {"limit": limit + 1},
    ).all()
    return page(rows, limit, _summary, lambda r: (r.created_at, r.id))


def message(conn: Connection, message_id: str) -> dict[str, Any]:
    """All of one message: what it was rendered with, what became of it, who fetched its links, why. Raises NotFound."""
    try:
        found = _uuid(message_id, "message")
    except InputError as error:
        raise NotFound(f"There is no message {message_id!r}.") from error
    row = conn.execute(
        text(
            f"""select {_COLUMNS}, m."values", m.links, m.reply, m.message_header, m.claimed_at, m.dot_at, m.version_id, v.number
                from {_FROM} join campaign_version v on v.id = m.version_id where m.id = :id"""
        ),
        {"id": found},
    ).first()
    if row is None:
        raise NotFound(f"There is no message {message_id!r}.")
    return {
        **_summary(row),
        "version": row.number,
        "message_header": row.message_header,
        "attempts": row.attempts,
        "claimed_at": row.claimed_at,
        "dot_at": row.dot_at,
        "reply": row.reply,
        "values": row.values,
        "links": row.links,
        "delivery_events": _many(conn, "select kind, at, detail from delivery_event where message_id = :id order by at, id", found),
        "hits": _many(
            conn,
            """select kind, link, at, network, user_agent, signals, score, verdict, settled_at from hit
               where message_id = :id order by at, id limit 200""",
            found,
        ),
        "responses": _many(
            conn, "select survey, question, score, comment, answered_at, revision from response where message_id = :id order by id", found
        ),
    }


def _summary(row: Any) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "state": row.state,
        "reason": row.reason,
        "kind": row.kind,
        "topic": row.topic,
        "priority": row.priority,
        "campaign": row.campaign,
        "campaign_name": row.campaign_name,
        "step": row.step_id,
        "occurrence": row.occurrence,
        "enrollment": str(row.enrollment_id),
        "account": row.account,
        "account_name": row.account_name,
        "contact": row.contact,
        "contact_name": row.contact_name,
        "email": row.person or row.address,
        "subject": row.subject,
        "created_at": row.created_at,
        "due_at": row.due_at,
        "expires_at": row.expires_at,
        "settled_at": row.settled_at,
        "clicked": row.clicked,
        "answer": row.answer,
    }


def _many(conn: Connection, statement: str, message_id: UUID) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in conn.execute(text(statement), {"id": message_id})]


def _uuid(value: str, field: str) -> UUID:
    try:
        return UUID(value)
    except ValueError as error:
        raise InputError("is not an id", field) from error
