"""The outbox as it is read: captured mail, taken apart again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage

from sqlalchemy import Connection, Row, text

NEWEST = 500

_SELECT = """
select o.id, o.sender, o.recipient, o.raw, o.captured_at, o.message_id, k.key as campaign, k.name as campaign_name, m.step_id
from outbox o left join message m on m.id = o.message_id left join campaign k on k.id = m.campaign_id"""


@dataclass(frozen=True, slots=True)
class Captured:
    """One captured mail. `sender` and `recipient` are the envelope's; header values are as they stand on the wire, unfolded, with
    encoded words read. `campaign` and `step` are None once the message itself was erased."""

    id: int
    sender: str
    recipient: str
    subject: str
    headers: tuple[tuple[str, str], ...]
    text: str
    html: str
    campaign: str | None
    campaign_name: str | None
    step: str | None
    captured_at: datetime

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


def newest(conn: Connection, limit: int = NEWEST) -> list[Captured]:
    """Captured mail, newest first."""
    return [_captured(row) for row in conn.execute(text(f"{_SELECT} order by o.id desc limit :limit"), {"limit": limit})]


def one(conn: Connection, mail_id: int) -> Captured | None:
    """The captured mail with this number."""
    row = conn.execute(text(f"{_SELECT} where o.id = :id"), {"id": mail_id}).first()
    return _captured(row) if row else None


def neighbours(conn: Connection, mail_id: int) -> tuple[int | None, int | None]:
    """The numbers of the next newer and the next older mail."""
    found = conn.execute(
        text("select (select min(id) from outbox where id > :id), (select max(id) from outbox where id < :id)"), {"id": mail_id}
    ).one()
    return found[0], found[1]


def _captured(row: Row) -> Captured:
    mail: EmailMessage = message_from_bytes(bytes(row.raw), policy=policy.default)
    return Captured(
        id=row.id,
        sender=row.sender,
        recipient=row.recipient,
        subject=str(mail["Subject"] or ""),
        headers=tuple((name, str(value)) for name, value in mail.items()),
        text=_part(mail, "plain"),
        html=_part(mail, "html"),
        campaign=row.campaign,
        campaign_name=row.campaign_name,
        step=row.step_id,
        captured_at=row.captured_at,
    )


def _part(mail: EmailMessage, kind: str) -> str:
    parts: Sequence[EmailMessage] = [part for part in mail.walk() if part.get_content_type() == f"text/{kind}"]
    return parts[0].get_content().replace("\r\n", "\n") if parts else ""
