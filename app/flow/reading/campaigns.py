"""Campaigns: the list with its numbers, one campaign with its steps and who is where, enrollments, decisions, holds."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from app.errors import InputError, NotFound
from app.flow.reading.paging import LIMIT, Page, clean, page, read_cursor
from app.flow.versions import list_versions

STATES = ("active", "finished", "exited")
VERDICTS = ("yes", "no", "wait")


def campaigns(conn: Connection, now: datetime, *, days: int = 30) -> list[dict[str, Any]]:
    """Every campaign by key. The counts of mail are of the last `days` days; those of enrollments are of all time.
    `opened` counts messages that a person or a person's mail provider opened, `machine_opened` those that only machines did (T-02)."""
    rows = conn.execute(
        text(
            """select k.key as id, k.name, k.mode, k.mode_at, v.number as version, v.published_at,
                 coalesce(n.active, 0) as active, coalesce(n.finished, 0) as finished, coalesce(n.exited, 0) as exited,
                 coalesce(n.goals, 0) as goals, coalesce(m.sent, 0) as sent, coalesce(m.waiting, 0) as waiting,
                 coalesce(m.skipped, 0) as skipped, coalesce(m.unknown, 0) as unknown, coalesce(m.clicked, 0) as clicked,
                 coalesce(m.opened, 0) as opened, coalesce(m.machine_opened, 0) as machine_opened,
                 coalesce(r.answered, 0) as answered
               from campaign k left join campaign_version v on v.id = k.version_id
               left join (select campaign_id, count(*) filter (where state = 'active') as active,
                            count(*) filter (where state = 'finished') as finished, count(*) filter (where state = 'exited') as exited,
                            count(goal_at) as goals
                          from enrollment group by 1) n on n.campaign_id = k.id
               left join (select campaign_id, count(*) filter (where state = 'sent') as sent,
                            count(*) filter (where state in ('due', 'claimed', 'in_dot')) as waiting,
                            count(*) filter (where state = 'skipped') as skipped, count(*) filter (where state = 'unknown') as unknown,
                            count(*) filter (where h.clicked) as clicked, count(*) filter (where h.opened) as opened,
                            count(*) filter (where h.by_machine and not h.opened) as machine_opened
                          from message left join (select message_id, bool_or(kind = 'click' and verdict = 'human') as clicked,
                                 bool_or(kind = 'open' and verdict in ('human', 'proxy')) as opened,
                                 bool_or(kind = 'open' and verdict = 'machine') as by_machine
                               from hit where at >= :since group by 1) h on h.message_id = message.id
                          where created_at >= :since group by 1) m on m.campaign_id = k.id
               left join (select campaign_id, count(*) as answered from response where answered_at >= :since group by 1) r
                 on r.campaign_id = k.id
               order by k.mode = 'archived', k.key"""
        ),
        {"since": now - timedelta(days=days)},
    )
    return [dict(row._mapping) for row in rows]


def campaign(conn: Connection, key: str, now: datetime) -> dict[str, Any]:
    """One campaign: numbers, the definition that new enrollments enter, its versions, who is at which step. Raises NotFound."""
    found = next((entry for entry in campaigns(conn, now) if entry["id"] == key), None)
    if found is None:
        raise NotFound(f"There is no campaign {key!r}.")
    definition = conn.execute(
        text("select v.definition from campaign k join campaign_version v on v.id = k.version_id where k.key = :key"), {"key": key}
    ).scalar()
    return {
        **found,
        "definition": definition,
        "versions": list_versions(conn, key),
        "steps": step_counts(conn, key),
    }


def step_counts(conn: Connection, key: str) -> list[dict[str, Any]]:
    """For each step somebody is at or mail was made for: who is there now, and what became of the mail, over all versions."""
    rows = conn.execute(
        text(
            """select step, sum(here)::int as here, sum(sent)::int as sent, sum(waiting)::int as waiting, sum(skipped)::int as skipped,
                 sum(unknown)::int as unknown from (
                 select n.step_id as step, count(*) as here, 0 as sent, 0 as waiting, 0 as skipped, 0 as unknown
                 from enrollment n join campaign k on k.id = n.campaign_id
                 where k.key = :key and n.state = 'active' and n.step_id is not null group by 1
                 union all
                 select m.step_id, 0, count(*) filter (where m.state = 'sent'),
                   count(*) filter (where m.state in ('due', 'claimed', 'in_dot')), count(*) filter (where m.state = 'skipped'),
                   count(*) filter (where m.state = 'unknown')
                 from message m join campaign k on k.id = m.campaign_id where k.key = :key group by 1) s
               group by step order by step"""
        ),
        {"key": key},
    )
    return [dict(row._mapping) for row in rows]


def enrollments(
    conn: Connection,
    *,
    campaign: str | None = None,
    account: str | None = None,
    contact: str | None = None,
    state: str | None = None,
    step: str | None = None,
    cursor: str | None = None,
    limit: int = LIMIT,
) -> Page:
    """Enrollments that match every filter, the latest to enter first."""
    if (state := clean(state)) and state not in STATES:
        raise InputError(f"must be one of {', '.join(STATES)}", "state")
    where, values = [], {}
    for column, name, value in (
        ("n.state", "state", state),
        ("n.step_id", "step", step),
        ("k.key", "campaign", campaign),
        ("a.external_id", "account", account),
        ("c.external_id", "contact", contact),
    ):
        if value := clean(value):
            where.append(f"{column} = :{name}")
            values[name] = value
    after = read_cursor(cursor, datetime, UUID)
    if after:
        where.append("(n.entered_at, n.id) < (:at, :last)")
        values |= {"at": after[0], "last": after[1]}
    rows = conn.execute(
        text(
            f"""select n.id, k.key as campaign, k.name as campaign_name, v.number as version, a.external_id as account,
                  a.name as account_name, c.external_id as contact, nullif(concat_ws(' ', c.first_name, c.last_name), '') as contact_name,
                  n.state, n.step_id as step, n.occurrence, n.shadow, n.held_out, n.entry ->> 'name' as entered_by, n.entered_at, n.due_at,
                  n.goal_at, n.ended_at, n.end_reason
                from enrollment n join campaign k on k.id = n.campaign_id join campaign_version v on v.id = n.version_id
                join account a on a.id = n.account_id left join contact c on c.id = n.contact_id
                where {" and ".join(where) or "true"} order by n.entered_at desc, n.id desc limit :limit"""
        ),
        values | {"limit": limit + 1},
    ).all()
    return page(rows, limit, lambda r: {**r._mapping, "id": str(r.id)}, lambda r: (r.entered_at, r.id))


def decisions(
    conn: Connection,
    *,
    account: str | None = None,
    contact: str | None = None,
    campaign: str | None = None,
    verdict: str | None = None,
    message: str | None = None,
    enrollment: str | None = None,
    cursor: str | None = None,
    limit: int = LIMIT,
) -> Page:
    """The ledger's rows that match every filter, newest first."""
    if (verdict := clean(verdict)) and verdict not in VERDICTS:
        raise InputError(f"must be one of {', '.join(VERDICTS)}", "verdict")
    where, values = [], {}
    for column, name, value in (
        ("d.verdict", "verdict", verdict),
        ("k.key", "campaign", campaign),
        ("a.external_id", "account", account),
        ("c.external_id", "contact", contact),
    ):
        if value := clean(value):
            where.append(f"{column} = :{name}")
            values[name] = value
    for name, value in (("message", message), ("enrollment", enrollment)):
        if value := clean(value):
            where.append(f"d.{name}_id = :{name}")
            try:
                values[name] = UUID(value)
            except ValueError as error:
                raise InputError("is not an id", name) from error
    after = read_cursor(cursor, datetime, int)
    if after:
        where.append("(d.at, d.id) < (:at, :last)")
        values |= {"at": after[0], "last": after[1]}
    rows = conn.execute(
        text(
            f"""select d.id, d.at, d.gate, d.verdict, d.reason, d.evidence, k.key as campaign, k.name as campaign_name,
                  v.number as version, d.step_id as step, d.enrollment_id, d.message_id, a.external_id as account, a.name as account_name,
                  c.external_id as contact
                from decision d left join campaign k on k.id = d.campaign_id left join campaign_version v on v.id = d.version_id
                left join account a on a.id = d.account_id left join contact c on c.id = d.contact_id
                where {" and ".join(where) or "true"} order by d.at desc, d.id desc limit :limit"""
        ),
        values | {"limit": limit + 1},
    ).all()
    return page(rows, limit, _decision, lambda r: (r.at, r.id))


def _decision(row: Any) -> dict[str, Any]:
    values = {name: value for name, value in row._mapping.items() if name not in ("id", "enrollment_id", "message_id")}
    ids = {"enrollment": row.enrollment_id, "message": row.message_id}
    return values | {name: None if value is None else str(value) for name, value in ids.items()}
