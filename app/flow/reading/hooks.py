"""Hooks and what was told at them, as operators read it: the latest first, refused calls too."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import Connection, Row, text

from app.config import Settings
from app.errors import InputError, NotFound
from app.flow.hooks import find_hook
from app.flow.reading.paging import LIMIT, Page, page, read_cursor
from app.flow.seals import Sealed
from app.providers.hooks import NAMES

STATES = ("waiting", "done", "unmatched", "failed", "refused")
COUNTED = timedelta(days=1)

_SELECT = """
select c.id, c.hook_id, h.provider, h.transport, c.kind, c.received_at, c.state, c.reason, c.reports, c.matched, c.message_id,
    c.processed_at, m.subject, m.step_id
from hook_call c join hook h on h.id = c.hook_id left join message m on m.id = c.message_id"""
_UNMATCHED = "c.state = 'done' and c.reports > 0 and c.matched = 0"


def hooks(conn: Connection, settings: Settings, now: datetime) -> list[dict[str, Any]]:
    """Every hook with its address and what came within a day, by provider; never a secret."""
    counts = {row.hook_id: row for row in conn.execute(_COUNTS, {"since": now - COUNTED})}
    ids = conn.execute(text("select id from hook order by provider, created_at, id")).scalars().all()
    return [_hook(conn, settings, now, one, counts.get(one)) for one in ids]


def received(conn: Connection, *, hook: str | None = None, state: str | None = None, cursor: str | None = None, limit: int = LIMIT) -> Page:
    """What was told, the latest first. `state` is one of STATES; `unmatched` is what was heard and found no message of ours."""
    where, values = ["true"], {"limit": limit + 1}
    if state is not None:
        if state not in STATES:
            raise InputError(f"must be one of {', '.join(STATES)}", "state")
        where.append(_UNMATCHED if state == "unmatched" else "c.state = :state")
        values["state"] = state
    if hook is not None:
        where.append("c.hook_id = :hook")
        values["hook"] = hook
    if after := read_cursor(cursor, int):
        where.append("c.id < :after")
        values["after"] = after[0]
    rows = conn.execute(text(f"{_SELECT} where {' and '.join(where)} order by c.id desc limit :limit"), values).all()
    return page(rows, limit, _shape, lambda row: (row.id,))


def call(conn: Connection, call_id: int) -> dict[str, Any]:
    """One call with its JSON as it came. Raises NotFound."""
    found = conn.execute(text(f"{_SELECT.replace('c.processed_at', 'c.processed_at, c.raw')} where c.id = :id"), {"id": call_id}).first()
    if found is None:
        raise NotFound(f"There is no call {call_id}.")
    return {**_shape(found), "raw": found.raw, "pretty": _pretty(found.raw)}


def trouble(conn: Connection, now: datetime) -> Mapping[str, int]:
    """How many calls of the last day were refused, and how many failed."""
    return conn.execute(_TROUBLE, {"since": now - COUNTED}).mappings().one()


def _hook(conn: Connection, settings: Settings, now: datetime, hook_id: str, counted: Row | None) -> dict[str, Any]:
    row = conn.execute(text("select * from hook where id = :id"), {"id": hook_id}).one()
    try:
        secrets = len(find_hook(conn, settings, hook_id).active(now))
        sealed = False
    except Sealed:
        secrets, sealed = 0, True
    return {
        "id": row.id,
        "provider": row.provider,
        "provider_name": NAMES[row.provider],
        "transport": row.transport,
        "address": f"{settings.base_url}/hooks/{row.provider}/{row.id}",
        "topics": row.options.get("topics", []),
        "signature_versions": row.options.get("versions", []),
        "stand_in": row.options.get("stand_in"),
        "secrets": secrets,
        "sealed": sealed,
        "confirms": row.confirm_until is not None and row.confirm_until > now,
        "created_at": row.created_at,
        "last_at": counted.last_at if counted else None,
        **{name: getattr(counted, name) if counted else 0 for name in ("taken", "waiting", "unmatched", "failed", "refused")},
    }


def _shape(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "hook": row.hook_id,
        "provider": row.provider,
        "provider_name": NAMES[row.provider],
        "transport": row.transport,
        "kind": row.kind,
        "received_at": row.received_at,
        "state": row.state,
        "verified": row.state != "refused",
        "reason": row.reason,
        "reports": row.reports,
        "matched": row.matched,
        "message": str(row.message_id) if row.message_id else None,
        "subject": row.subject or row.step_id,
        "processed_at": row.processed_at,
    }


def _pretty(raw: str) -> str:
    """The JSON over several lines, with the JSON that SNS packs into a text unpacked; anything else as it is."""
    try:
        found = from_json(raw)
        if isinstance(found, dict) and isinstance(found.get("Message"), str) and found["Message"].startswith("{"):
            found["Message"] = from_json(found["Message"])
        return to_json(found, indent=2).decode()
    except ValueError:
        return raw


_COUNTS = text(f"""
    select c.hook_id, max(c.received_at) as last_at, count(*) filter (where c.state <> 'refused') as taken,
           count(*) filter (where c.state = 'waiting') as waiting, count(*) filter (where c.state = 'failed') as failed,
           count(*) filter (where c.state = 'refused') as refused, count(*) filter (where {_UNMATCHED}) as unmatched
      from hook_call c where c.received_at > :since group by c.hook_id
""")

_TROUBLE = text("""
    select count(*) filter (where state = 'refused') as refused, count(*) filter (where state = 'failed') as failed
      from hook_call where received_at > :since
""")
