"""Accounts: the list, and one account with stage, milestones, health, contacts and holds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from app.errors import InputError, NotFound
from app.flow.reading.paging import LIMIT, Page, clean, like, page, read_cursor
from app.rules.book import Book

BANDS = ("green", "yellow", "red")

# order by, the columns of the cursor (all not null), their types
_SORTS: dict[str, tuple[str, tuple[str, ...], tuple[type, ...]]] = {
    "id": ("a.id", ("a.id",), (int,)),
    "name": ("sort_name, a.id", ("lower(coalesce(a.name, a.external_id))", "a.id"), (str, int)),
    "health": ("sort_health, a.id", ("coalesce(a.health_score, 1000)", "a.id"), (float, int)),
}

_COLUMNS = """a.id, a.external_id, a.name, a.touch, a.stage, a.stage_entered_at, a.health_score, a.health_band, a.health_at,
  a.owner_name, a.owner_email, a.timezone, a.seats, a.renewal_date, a.created_at,
  greatest(a.last_event_at, (select u.last_event_at from unassessed u where u.account_id = a.id)) as last_event_at,
  lower(coalesce(a.name, a.external_id)) as sort_name, coalesce(a.health_score, 1000) as sort_health"""


def accounts(
    conn: Connection,
    *,
    search: str | None = None,
    stage: str | None = None,
    band: str | None = None,
    touch: str | None = None,
    owner: str | None = None,
    sort: str = "id",
    cursor: str | None = None,
    limit: int = LIMIT,
) -> Page:
    """Accounts that match every filter. `search` finds part of a name or id, or a whole address of a contact.

    `sort` is `id` (order of arrival), `name` or `health` (lowest first, unknown last). `band` may be `unknown`.
    """
    if sort not in _SORTS:
        raise InputError(f"must be one of {', '.join(_SORTS)}", "sort")
    order, columns, types = _SORTS[sort]
    where, values = _filters(search, stage, band, touch, owner)
    after = read_cursor(cursor, *types)
    if after:
        marks = ", ".join(f":after{n}" for n in range(len(columns)))
        where.append(f"({', '.join(columns)}) > ({marks})")
        values |= {f"after{n}": value for n, value in enumerate(after)}
    condition = " and ".join(where) or "true"
    rows = conn.execute(
        text(
            f"""select s.*, (select count(*) from membership m where m.account_id = s.id) as contacts
                from (select {_COLUMNS} from account a where {condition} order by {order} limit :limit) s
                order by {order.replace("a.id", "s.id")}"""
        ),
        values | {"limit": limit + 1},
    ).all()
    place = {"id": lambda r: (r.id,), "name": lambda r: (r.sort_name, r.id), "health": lambda r: (r.sort_health, r.id)}[sort]
    return page(rows, limit, _summary, place)


def count_accounts(conn: Connection, **filters: str | None) -> int:
    """How many accounts match; takes the filters of `accounts`."""
    where, values = _filters(*(filters.get(name) for name in ("search", "stage", "band", "touch", "owner")))
    return conn.execute(text(f"select count(*) from account a where {' and '.join(where) or 'true'}"), values).scalar_one()


def account(conn: Connection, key: str, now: datetime) -> dict[str, Any]:
    """All of one account but its lists. Raises NotFound."""
    row = find_account(conn, key)
    return {
        **_summary(row),
        "owner": {"name": row.owner_name, "email": row.owner_email} if row.owner_name or row.owner_email else None,
        "customer_since": row.customer_since,
        "revenue": row.revenue,
        "traits": row.traits,
        "stage_history": stage_history(conn, row.id),
        "milestones": milestones(conn, row.id),
        "health": health(conn, row),
        "contacts": members(conn, row.id, now),
        "holds": holds(conn, now, account_id=row.id),
    }


def find_account(conn: Connection, key: str) -> Any:
    """The row of the account whose external id is `key`. Raises NotFound."""
    row = conn.execute(
        text(f"select {_COLUMNS}, a.customer_since, a.revenue, a.traits, a.partition from account a where a.external_id = :key"),
        {"key": key.replace("\x00", "")},
    ).first()
    if row is None:
        raise NotFound(f"There is no account {key!r}.")
    return row


def stage_history(conn: Connection, account_id: int) -> list[dict[str, Any]]:
    rows = conn.execute(
        text("select stage, entered_at, left_at, reason from stage_history where account_id = :id order by entered_at desc, id desc"),
        {"id": account_id},
    )
    return [dict(row._mapping) for row in rows]


def milestones(conn: Connection, account_id: int) -> list[dict[str, Any]]:
    """The stored milestones: reached, or overdue, or overdue and reached later. Those still expected are known to the lifecycle only."""
    rows = conn.execute(
        text("select name, reached_at, overdue_at from milestone where account_id = :id order by coalesce(reached_at, overdue_at), name"),
        {"id": account_id},
    )
    return [dict(row._mapping) for row in rows]


def milestones_of(book: Book, account: Mapping[str, Any], now: datetime) -> list[dict[str, Any]]:
    """Every milestone of the lifecycle for an `account` of this module, in the lifecycle's order, then those of an earlier one.

    Each has a `state`: reached, late (reached, but overdue before), overdue, expected (by `expected_at`) or open (no time is set).
    """
    stored = {one["name"]: one for one in account["milestones"]}
    listed = []
    for name, spec in book.lifecycle.milestones.items():
        found = stored.pop(name, {"name": name, "reached_at": None, "overdue_at": None})
        expected = account["created_at"] + spec.expected_within if spec.expected_within else None
        listed.append({**found, "label": spec.label or name, "expected_at": expected, "state": _milestone_state(found, expected, now)})
    for name, found in stored.items():
        listed.append({**found, "label": name, "expected_at": None, "state": _milestone_state(found, None, now)})
    return listed


def health(conn: Connection, row: Any) -> dict[str, Any]:
    """The account's present health with the contributions that sum to its score; all None when it was never assessed."""
    latest = conn.execute(
        text(
            """select score, band, coverage, contributions, at, cause, model from health_score
               where account_id = :id order by at desc, id desc limit 1"""
        ),
        {"id": row.id},
    ).first()
    if latest is None:
        return {"score": None, "band": None, "coverage": None, "contributions": [], "at": None, "cause": None, "model": None}
    return {**latest._mapping, "band": row.health_band or latest.band}


def health_history(conn: Connection, key: str, *, cursor: str | None = None, limit: int = LIMIT, since: datetime | None = None) -> Page:
    """Every assessment of the account, newest first. Raises NotFound."""
    row = find_account(conn, key)
    after = read_cursor(cursor, datetime, int)
    values = {"id": row.id, "limit": limit + 1, "at": after and after[0], "last": after and after[1], "since": since}
    rows = conn.execute(
        text(
            f"""select id, at, score, band, coverage, contributions, cause, model from health_score where account_id = :id
                {"and (at, id) < (:at, :last)" if after else ""} {"and at >= :since" if since else ""}
                order by at desc, id desc limit :limit"""
        ),
        values,
    ).all()
    return page(rows, limit, lambda r: {k: v for k, v in r._mapping.items() if k != "id"}, lambda r: (r.at, r.id))


def members(conn: Connection, account_id: int, now: datetime) -> list[dict[str, Any]]:
    """The account's contacts (200 at most) with their roles and whether mail may reach them."""
    rows = conn.execute(
        text(
            """select c.external_id, c.address, c.person, c.first_name, c.last_name, c.last_seen_at, m.roles, m.joined_at,
                 coalesce((select array_agg(s.scope order by s.scope) from suppression s
                           where s.person = c.person and s.lifted_at is null), '{}') as closed,
                 (select h.reason from hold h where (h.contact_id = c.id or h.person = c.person) and h.released_at is null
                  and (h.until is null or h.until > :now) limit 1) as held
               from membership m join contact c on c.id = m.contact_id
               where m.account_id = :id order by m.joined_at, c.id limit 200"""
        ),
        {"id": account_id, "now": now},
    )
    return [
        {
            "id": row.external_id,
            "email": row.address,
            "first_name": row.first_name,
            "last_name": row.last_name,
            "roles": sorted(row.roles),
            "joined_at": row.joined_at,
            "last_seen_at": row.last_seen_at,
            "reachable": bool(row.person) and "all" not in row.closed and row.held is None,
            "suppressed": list(row.closed),
            "held": row.held,
        }
        for row in rows
    ]


def holds(
    conn: Connection, now: datetime, *, account_id: int | None = None, contact_id: int | None = None, person: str | None = None
) -> list[dict[str, Any]]:
    """The holds in force of one account, or of one contact and the person behind it."""
    rows = conn.execute(
        text(
            """select id, reason, created_at, until from hold
               where (account_id = :account or contact_id = :contact or person = :person) and released_at is null
                 and (until is null or until > :now)
               order by created_at, id"""
        ),
        {"account": account_id, "contact": contact_id, "person": person, "now": now},
    )
    return [dict(row._mapping) for row in rows]


def attention(conn: Connection, now: datetime, *, limit: int = 10) -> list[dict[str, Any]]:
    """Accounts in red, or 10 points and more below their score of a week ago: worst fall first, then lowest score."""
    rows = conn.execute(
        text(
            f"""select * from (
                  select {_COLUMNS}, a.health_score - (
                      select h.score from health_score h where h.account_id = a.id and h.at <= :before and h.score is not null
                      order by h.at desc, h.id desc limit 1) as change
                  from account a where a.health_score is not null and (a.health_band = 'red' or a.health_at > :before)
                  order by a.health_score limit 2000) s
                where s.health_band = 'red' or s.change <= -10
                order by least(coalesce(s.change, 0), 0), s.health_score, s.id limit :limit"""
        ),
        {"before": now - timedelta(days=7), "limit": limit},
    )
    return [{**_summary(row), "change": row.change} for row in rows]


def _milestone_state(found: Mapping[str, Any], expected: datetime | None, now: datetime) -> str:
    if found["reached_at"]:
        return "late" if found["overdue_at"] else "reached"
    if found["overdue_at"] or (expected and expected <= now):
        return "overdue"
    return "expected" if expected else "open"


def _summary(row: Any) -> dict[str, Any]:
    return {
        "id": row.external_id,
        "name": row.name,
        "touch": row.touch,
        "stage": row.stage,
        "stage_entered_at": row.stage_entered_at,
        "health": {"score": row.health_score, "band": row.health_band, "at": row.health_at},
        "owner": {"name": row.owner_name, "email": row.owner_email} if row.owner_name or row.owner_email else None,
        "timezone": row.timezone,
        "seats": row.seats,
        "renewal_date": row.renewal_date,
        "created_at": row.created_at,
        "last_event_at": row.last_event_at,
        **({"contacts": row.contacts} if "contacts" in row._mapping else {}),
    }


def _filters(
    search: str | None, stage: str | None, band: str | None, touch: str | None, owner: str | None
) -> tuple[list[str], dict[str, Any]]:
    where, values = ["a.erased_at is null"], {}
    for column, value in (("stage", stage), ("touch", touch), ("owner_email", owner)):
        if value := clean(value):
            where.append(f"a.{column} = :{column}")
            values[column] = value
    if band := clean(band):
        if band not in (*BANDS, "unknown"):
            raise InputError(f"must be one of {', '.join(BANDS)}, unknown", "band")
        where.append("a.health_band is null" if band == "unknown" else "a.health_band = :band")
        values["band"] = band
    if search := clean(search):
        where.append(
            """(a.name ilike :search or a.external_id ilike :search or a.id in (select m.account_id from contact c
                join membership m on m.contact_id = c.id where c.person = lower(:address) or c.external_id = :address))"""
        )
        values |= {"search": like(search), "address": search}
    return where, values
