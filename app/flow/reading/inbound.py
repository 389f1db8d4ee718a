"""Mail that came in: the list, one mail with what it was taken for, and its bytes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from app.errors import InputError, NotFound
from app.flow.inbound.sort import KINDS
from app.flow.reading.paging import LIMIT, Page, clean, page, read_cursor

STATES = ("waiting", "done", "failed", "aside")
PROBLEMS = {
    "forged": "It came to an address that was not made here, so it was put aside and changed nothing.",
    "no_message": "It is about no message that is known here.",
    "never_sent": "It is about a message that never went out.",
}

_FROM = """inbound_mail i left join message m on m.id = i.message_id left join account a on a.id = m.account_id
  left join contact c on c.id = m.contact_id"""
_COLUMNS = """i.id, i.received_at, i.processed_at, i.state, i.kind, i.problem, i.attempts, i.via, i.place, i.size, i.sender, i.recipient,
  i.author, i.subject, i.text, i.detail, i.message_id, m.subject as message_subject, a.external_id as account, a.name as account_name,
  c.external_id as contact, nullif(concat_ws(' ', c.first_name, c.last_name), '') as contact_name"""


def mails(
    conn: Connection,
    *,
    kind: str | None = None,
    state: str | None = None,
    message: str | None = None,
    cursor: str | None = None,
    limit: int = LIMIT,
) -> Page:
    """Mails that match every filter, newest first. `state` may also be `aside`: what failed, cannot be read, or is about no message of ours
    although it seems to be."""
    where, values = [], {}
    if state := clean(state):
        if state not in STATES:
            raise InputError(f"must be one of {', '.join(STATES)}", "state")
        aside = "(i.state = 'failed' or i.problem is not null or i.kind = 'unreadable')"
        where.append(aside if state == "aside" else "i.state = :state")
        values["state"] = state
    if kind := clean(kind):
        if kind not in KINDS:
            raise InputError(f"must be one of {', '.join(KINDS)}", "kind")
        where.append("i.kind = :kind")
        values["kind"] = kind
    if message := clean(message):
        where.append("i.message_id::text = :message")
        values["message"] = message
    if after := read_cursor(cursor, datetime, int):
        where.append("(i.received_at, i.id) < (:at, :last)")
        values |= {"at": after[0], "last": after[1]}
    rows = conn.execute(
        text(
            f"""select {_COLUMNS} from {_FROM} where {" and ".join(where) or "true"}
                order by i.received_at desc, i.id desc limit :limit"""
        ),
        values | {"limit": limit + 1},
    ).all()
    return page(rows, limit, _shaped, lambda row: (row.received_at, row.id))


def mail(conn: Connection, mail_id: int) -> dict[str, Any]:
    """One mail, without its bytes. Raises NotFound."""
    row = conn.execute(text(f"select {_COLUMNS} from {_FROM} where i.id = :id"), {"id": _number(mail_id)}).first()
    if row is None:
        raise NotFound(f"There is no inbound mail {mail_id}.")
    return _shaped(row)


def raw(conn: Connection, mail_id: int) -> bytes:
    """The mail's bytes as they came. Raises NotFound."""
    found = conn.execute(text("select raw from inbound_mail where id = :id"), {"id": _number(mail_id)}).scalar()
    if found is None:
        raise NotFound(f"There is no inbound mail {mail_id}.")
    return bytes(found)


def _number(mail_id: int) -> int:
    return mail_id if 0 <= mail_id < 2**63 else -1


def _shaped(row: Row) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in row._fields if name not in ("detail", "message_id")}
    return shown | {
        "message": str(row.message_id) if row.message_id else None,
        "reports": row.detail.get("reports", []),
        "notes": row.detail.get("notes", []),
        "why": PROBLEMS.get(row.problem),
    }
