"""Tasks as they are read: open ones by the date they are due, closed ones the latest first."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from app.errors import InputError, NotFound
from app.flow.reading.paging import LIMIT, Page, page, read_cursor

STATES = ("open", "done", "dismissed", "all")
NOBODY = "nobody"

_NEVER = "timestamptz '9999-12-31 00:00:00+00'"
_DUE = f"coalesce(t.due_at, {_NEVER})"
_SELECT = f"""
select t.id, t.title, t.note, t.state, t.outcome, t.assignee, t.assignee_name, t.created_at, t.due_at, t.closed_at, t.step_id,
    t.enrollment_id, {_DUE} as sort_due, a.external_id as account, a.name as account_name, c.external_id as contact,
    nullif(concat_ws(' ', c.first_name, c.last_name), '') as contact_name, k.key as campaign, k.name as campaign_name
from task t join account a on a.id = t.account_id left join contact c on c.id = t.contact_id left join campaign k on k.id = t.campaign_id"""


def tasks(
    conn: Connection,
    now: datetime,
    *,
    state: str | None = None,
    account: str | None = None,
    contact: str | None = None,
    campaign: str | None = None,
    assignee: str | None = None,
    overdue: bool = False,
    cursor: str | None = None,
    limit: int = LIMIT,
) -> Page:
    """Tasks that match every filter, open ones unless `state` says otherwise; those of held-out accounts and of shadows never.

    `assignee` is an address or `nobody`; `overdue` leaves open ones whose date has passed.
    """
    state = state or "open"
    if state not in STATES:
        raise InputError(f"must be one of {', '.join(STATES)}", "state")
    by_due = state == "open"
    where = ["t.state in ('open', 'done', 'dismissed')" if state == "all" else "t.state = :state"]
    values: dict[str, Any] = {"state": state, "limit": limit + 1, "now": now}
    for name, column in (("account", "a.external_id"), ("contact", "c.external_id"), ("campaign", "k.key")):
        value = {"account": account, "contact": contact, "campaign": campaign}[name]
        if value is not None:
            where.append(f"{column} = :{name}")
            values[name] = value
    if assignee is not None:
        where.append("t.assignee is null" if assignee == NOBODY else "lower(t.assignee) = lower(:assignee)")
        values["assignee"] = assignee
    if overdue:
        where.append("t.state = 'open' and t.due_at < :now")
    if after := read_cursor(cursor, datetime, UUID):
        where.append(f"({_DUE}, t.id) > (:at, :id)" if by_due else "(t.created_at, t.id) < (:at, :id)")
        values |= {"at": after[0], "id": after[1]}
    order = f"{_DUE}, t.id" if by_due else "t.created_at desc, t.id desc"
    rows = conn.execute(text(f"{_SELECT} where {' and '.join(where)} order by {order} limit :limit"), values).all()
    return page(rows, limit, lambda row: _shape(row, now), lambda row: (row.sort_due if by_due else row.created_at, row.id))


def task(conn: Connection, task_id: str | UUID, now: datetime) -> dict[str, Any]:
    """One task. Raises NotFound."""
    try:
        wanted = task_id if isinstance(task_id, UUID) else UUID(task_id)
    except ValueError:
        raise NotFound(f"There is no task {task_id!r}.") from None
    statement = text(f"{_SELECT} where t.id = :id and t.state in ('open', 'done', 'dismissed')")
    row = conn.execute(statement, {"id": wanted}).first()
    if row is None:
        raise NotFound(f"There is no task {task_id}.")
    return _shape(row, now)


def counts(conn: Connection, now: datetime) -> dict[str, int]:
    """How many tasks are open, and how many of those overdue."""
    statement = text("select count(*) as open, count(*) filter (where due_at < :now) as overdue from task where state = 'open'")
    return dict(conn.execute(statement, {"now": now}).mappings().one())


def assignees(conn: Connection) -> list[str]:
    """The addresses that have open tasks, at most 200."""
    statement = text("select distinct assignee from task where state = 'open' and assignee is not null order by assignee limit 200")
    return list(conn.execute(statement).scalars())


def _shape(row: Row, now: datetime) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "title": row.title,
        "note": row.note,
        "state": row.state,
        "overdue": row.state == "open" and row.due_at is not None and row.due_at < now,
        "outcome": row.outcome,
        "assignee": row.assignee,
        "assignee_name": row.assignee_name,
        "account": row.account,
        "account_name": row.account_name,
        "contact": row.contact,
        "contact_name": row.contact_name,
        "campaign": row.campaign,
        "campaign_name": row.campaign_name,
        "step": row.step_id,
        "enrollment": str(row.enrollment_id) if row.enrollment_id else None,
        "created_at": row.created_at,
        "due_at": row.due_at,
        "closed_at": row.closed_at,
    }
