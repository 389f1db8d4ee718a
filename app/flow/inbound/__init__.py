"""Mail that comes in: kept as bytes first, read in a job later, and each once (I-06, I-07).

    an MTA ──▶ web/inbound ─┐
    IMAP ◀──── poll ────────┴▶ take ▶ [inbound_mail, waiting] ─ work ─▶ parse ▶ sort ▶ hear

Nothing here ever answers a mail.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import InterfaceError, OperationalError

from app.errors import InputError, NotFound
from app.flow.hear import Heard, hear
from app.flow.inbound.parse import Mail, read
from app.flow.inbound.sort import Sorted, sort
from app.models import inbound_mail
from app.queue import Bells
from app.rules.reports import Report, classify

LIMIT = 10 * 1024 * 1024
SOURCE = "mail"
ATTEMPTS = 10  # of reading one mail, each ended by the death of its worker
_ABOUT_OURS = ("bounce", "delay", "delivery", "complaint", "unsubscribe", "reply")

log = logging.getLogger("nurture.inbound")


def take(
    conn: Connection,
    raw: bytes,
    now: datetime,
    *,
    via: str,
    sender: str | None = None,
    recipient: str | None = None,
    place: str | None = None,
    size: int | None = None,
) -> int | None:
    """Keeps a mail to be read soon; returns its id, None if the same bytes came before (I-07).

    `sender` and `recipient` are the envelope's, where they are known ('' is the null sender); `size` that of the whole mail where `raw` is
    only its beginning. Raises InputError for more than 10 MB.
    """
    if len(raw) > LIMIT:
        raise InputError(f"is larger than {LIMIT // 2**20} MB", "mail")
    row = {"hash": hashlib.sha256(raw).digest(), "raw": raw, "size": size or len(raw), "via": via, "place": place}
    row |= {"sender": _envelope(sender), "recipient": _envelope(recipient), "received_at": now}
    return conn.exec_driver_sql(_TAKE, row).scalar()


def work(engine: Engine, clock: Callable[[], datetime], bells: Bells, *, stopping: Callable[[], bool] = lambda: False) -> int:
    """Reads the mails that wait, one by one, until none is left; returns how many. Any number of workers may do so at once.

    What a mail holds never raises: one that cannot be dealt with is `failed`, with the error, and the others go on (invariant 12).
    Raises only when the database goes away.
    """
    done = 0
    while not stopping():
        with engine.begin() as conn:
            picked = conn.exec_driver_sql(_PICK).first()
        if picked is None:
            return done
        with engine.begin() as conn:
            row = conn.exec_driver_sql(_HOLD, {"id": picked.id}).first()
            if row is None:
                continue  # somebody else has it
            heard = _deal(conn, row, clock()) if picked.attempts <= ATTEMPTS else _fail(conn, row, "its reading ended its worker", clock())
        done += 1
        bells.advance(heard.partitions)
        if heard.alerts:
            bells.notify()
    return done


def retry(conn: Connection, mail_id: int | None = None) -> int:
    """Has a mail read again, or (None) all that failed or could not be matched; returns how many. What was heard of it already counts
    once. Raises NotFound."""
    count = conn.exec_driver_sql(_RETRY, {"id": mail_id}).rowcount
    if mail_id is not None and not count:
        raise NotFound(f"There is no inbound mail {mail_id}.")
    return count


def _deal(conn: Connection, row: Row, now: datetime) -> Heard:
    savepoint = conn.begin_nested()
    try:
        heard = _read(conn, row, now)
        savepoint.commit()
        return heard
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:
        savepoint.rollback()
        log.exception("inbound mail %d could not be dealt with", row.id)
        return _fail(conn, row, f"{type(error).__name__}: {error}", now)


def _read(conn: Connection, row: Row, now: datetime) -> Heard:
    mail = read(bytes(row.raw))
    key = f"mail:{row.hash.hex()[:32]}"
    found = sort(mail, row.received_at, key, recipient=row.recipient, sender=row.sender)
    # An answer counts from when campaigns hear of it; a bounce, from when it came.
    reports = [replace(one, at=now) if one.kind == "replied" else one for one in found.reports]
    heard = hear(conn, reports, SOURCE, now)
    message = next((one.message for one in heard.findings if one.message), None)
    values = {
        "state": "done",
        "kind": found.kind,
        "problem": None if message else _problem(found, heard),
        "message_id": message,
        "author": mail.sender[:320] or None,
        "subject": mail.subject[:500] or None,
        "text": found.text[:4000] or None,
        "detail": {"reports": [_shown(one) for one in found.reports], "notes": _notes(mail, row)},
        "processed_at": now,
    }
    conn.execute(inbound_mail.update().where(inbound_mail.c.id == row.id).values(values))
    if any(report.kind == "bounced" and classified == "configuration" for report, classified in _classes(found)):
        log.warning("a receiver refuses our settings: %s (inbound mail %d)", found.text[:300], row.id)
    return heard


def _problem(found: Sorted, heard: Heard) -> str | None:
    """Why a mail that is about a message of ours changed nothing."""
    told = next((one.problem for one in heard.findings if one.problem), None)
    return told or ("no_message" if found.kind in _ABOUT_OURS else None)


def _fail(conn: Connection, row: Row, error: str, now: datetime) -> Heard:
    notes = {"reports": [], "notes": [error[:2000].replace("\x00", "")]}
    conn.execute(inbound_mail.update().where(inbound_mail.c.id == row.id).values(state="failed", detail=notes, processed_at=now))
    return Heard()


def _classes(found: Sorted) -> list[tuple[Report, str]]:
    return [(one, classify(one)) for one in found.reports if one.kind in ("bounced", "deferred")]


def _shown(report: Report) -> dict[str, Any]:
    """A report as it is kept beside the mail: what was read, whether or not it could be matched."""
    shown = {
        "kind": report.kind,
        "sort": classify(report) if report.kind in ("bounced", "deferred") else report.sort,
        "code": report.code,
        "status": report.status,
        "recipient": report.recipient,
        "named_by": "token" if report.token else "message_header" if report.message_header else None,
    }
    return {name: value for name, value in shown.items() if value is not None}


def _notes(mail: Mail, row: Row) -> list[str]:
    cut = [f"only the first {len(row.raw) // 1024} KB of {row.size:,} bytes were fetched"] if row.size > len(row.raw) else []
    return [*cut, *mail.problems]


def _envelope(value: str | None) -> str | None:
    """An address of the envelope as one plain line; None where it was not told."""
    return None if value is None else "".join(letter for letter in value.strip().strip("<>") if " " < letter < "\x7f")[:320]


_TAKE = """
insert into inbound_mail (hash, raw, size, via, place, sender, recipient, received_at, state)
values (%(hash)s, %(raw)s, %(size)s, %(via)s, %(place)s, %(sender)s, %(recipient)s, %(received_at)s, 'waiting')
on conflict (hash) do nothing returning id"""
# Counted before it is read, so that a mail whose reading ends its worker is not tried for ever.
_PICK = """
update inbound_mail set attempts = attempts + 1
where id = (select id from inbound_mail where state = 'waiting' order by attempts, id limit 1 for update skip locked)
returning id, attempts"""
_HOLD = """
select id, hash, raw, size, sender, recipient, received_at from inbound_mail
where id = %(id)s and state = 'waiting' for update skip locked"""
_RETRY = """
update inbound_mail set state = 'waiting', attempts = 0
where (id = %(id)s::bigint) or (%(id)s::bigint is null and state <> 'waiting'
       and (state = 'failed' or problem is not null or kind = 'unreadable'))"""
