"""Contacts: one person at a customer, and whether mail may reach them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.errors import NotFound
from app.flow.reading.accounts import holds
from app.flow.reading.paging import LIMIT, Page, clean, like, page, read_cursor

NOTHING_GOES = frozenset({"all", "bounced", "complained", "manual"})  # scopes that close everything
_COLUMNS = """c.id, c.external_id, c.address, c.person, c.first_name, c.last_name, c.timezone, c.locale, c.traits, c.created_at,
  c.last_seen_at, c.last_active_at"""


def contacts(
    conn: Connection, *, account: str | None = None, search: str | None = None, cursor: str | None = None, limit: int = LIMIT
) -> Page:
    """Contacts in order of arrival. `search` finds part of an address, name or id."""
    where, values = ["c.erased_at is null"], {}
    if account := clean(account):
        where.append("c.id in (select m.contact_id from membership m join account a on a.id = m.account_id where a.external_id = :account)")
        values["account"] = account
    if search := clean(search):
        where.append("(c.address ilike :search or c.external_id ilike :search or concat_ws(' ', c.first_name, c.last_name) ilike :search)")
        values["search"] = like(search)
    after = read_cursor(cursor, int)
    if after:
        where.append("c.id > :last")
        values["last"] = after[0]
    rows = conn.execute(
        text(f"select {_COLUMNS} from contact c where {' and '.join(where)} order by c.id limit :limit"),
        values | {"limit": limit + 1},
    ).all()
    return page(rows, limit, _summary, lambda r: (r.id,))


def contact(conn: Connection, key: str, now: datetime) -> dict[str, Any]:
    """All of one contact but its lists; `key` is the external id. Raises NotFound."""
    row = find_contact(conn, key)
    memberships = conn.execute(
        text(
            """select a.external_id as account, a.name as account_name, m.roles, m.joined_at from membership m
               join account a on a.id = m.account_id where m.contact_id = :id order by m.joined_at, a.id limit 200"""
        ),
        {"id": row.id},
    )
    closed = conn.execute(
        text("select scope, reason, created_at from suppression where person = :person and lifted_at is null order by created_at, id"),
        {"person": row.person},
    )
    suppressions = [dict(found._mapping) for found in closed]
    held = holds(conn, now, contact_id=row.id, person=row.person)
    return {
        **_summary(row),
        "traits": row.traits,
        "accounts": [{**found._mapping, "roles": sorted(found.roles)} for found in memberships],
        "suppressions": suppressions,
        "holds": held,
        "reachable": bool(row.person) and not held and all(entry["scope"] not in NOTHING_GOES for entry in suppressions),
        "last_active_at": row.last_active_at,
    }


def find_contact(conn: Connection, key: str) -> Any:
    """The row of the contact whose external id is `key`. Raises NotFound."""
    row = conn.execute(text(f"select {_COLUMNS} from contact c where c.external_id = :key"), {"key": key.replace("\x00", "")}).first()
    if row is None:
        raise NotFound(f"There is no contact {key!r}.")
    return row


def match_contacts(conn: Connection, key_or_address: str) -> list[str]:
    """The external ids of the contact of that id, else of all contacts with that address, oldest first. Raises NotFound."""
    wanted = key_or_address.replace("\x00", "").strip()
    keys = conn.execute(text("select external_id from contact where external_id = :wanted"), {"wanted": wanted}).scalars().all()
    if not keys:
        found = text("select external_id from contact where person = lower(:wanted) or address = :wanted order by id limit 20")
        keys = conn.execute(found, {"wanted": wanted}).scalars().all()
    if not keys:
        raise NotFound(f"There is no contact with the id or address {key_or_address!r}.")
    return list(keys)


def _summary(row: Any) -> dict[str, Any]:
    return {
        "id": row.external_id,
        "email": row.address,
        "first_name": row.first_name,
        "last_name": row.last_name,
        "timezone": row.timezone,
        "locale": row.locale,
        "created_at": row.created_at,
        "last_seen_at": row.last_seen_at,
    }
