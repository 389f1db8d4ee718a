"""Fetching mail out of an IMAP folder. A mail is remembered as fetched in the transaction that keeps it, so a worker that dies in
between has lost nothing: the next one fetches the mail again."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine

from app.config import Settings
from app.errors import MailboxError
from app.flow.inbound import LIMIT, take
from app.providers.imap import Box, Folder, folder_of, open_folder
from app.queue import Bells

EVERY = timedelta(minutes=1)
AFTER_TROUBLE = timedelta(minutes=5)
LEASE = timedelta(minutes=5)  # renewed with every mail; who is silent for longer may be dead
BEGINNING = 256 * 1024  # of a mail over the limit: what it reports stands at its beginning

log = logging.getLogger("nurture.inbound")


def remember(conn: Connection, settings: Settings, now: datetime) -> None:
    """Makes the folder that the settings name, and no other, due for looks."""
    name = folder_of(settings.imap_url).name if settings.imap_url else None
    conn.exec_driver_sql("update mailbox set due_at = null where due_at is not null and name is distinct from %(name)s", {"name": name})
    if name:
        conn.exec_driver_sql(_REMEMBER, {"name": name, "now": now})


def poll(
    engine: Engine,
    settings: Settings,
    clock: Callable[[], datetime],
    bells: Bells,
    *,
    context: ssl.SSLContext | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Takes what is new in the folder, if its look is due and nobody else is at it; returns how many mails were new.

    Each mail is committed by itself. What the server does wrong is noted with the folder and tried again in five minutes; never raises
    for it.
    """
    if not settings.imap_url:
        return 0
    folder = folder_of(settings.imap_url)
    now = clock()
    with engine.begin() as conn:
        row = conn.exec_driver_sql(_LEASE, {"name": folder.name, "now": now, "until": now + LEASE}).first()
    if row is None:
        return 0
    taken, error = 0, None
    try:
        with open_folder(folder, context) as box:
            taken = _empty(engine, box, folder, clock, bells, stopping)
    except MailboxError as problem:
        error = str(problem)
        log.warning("the mailbox cannot be read: %s", error)
    now = clock()
    with engine.begin() as conn:
        due = now + (AFTER_TROUBLE if error else EVERY)
        conn.exec_driver_sql(_RELEASE, {"name": folder.name, "due": due, "error": error, "now": now})
    return taken


def _empty(engine: Engine, box: Box, folder: Folder, clock: Callable[[], datetime], bells: Bells, stopping: Callable[[], bool]) -> int:
    with engine.begin() as conn:
        last = conn.exec_driver_sql(_LAST, {"name": folder.name, "validity": box.uidvalidity}).scalar_one()
    taken = 0
    for uid, size in box.sizes(last):
        if stopping():
            break
        raw = box.fetch(uid, BEGINNING if size > LIMIT else None)
        now = clock()
        with engine.begin() as conn:
            if raw is not None:
                raw, whole = raw[:LIMIT], max(size, len(raw))
                made = take(conn, raw, now, via="imap", place=f"{box.uidvalidity}:{uid}", size=whole)
                taken += made is not None
            conn.exec_driver_sql(_FETCHED, {"name": folder.name, "validity": box.uidvalidity, "uid": uid, "until": now + LEASE})
        if raw is not None:
            bells.inbound()
            if folder.after == "delete":
                box.delete(uid)
    return taken


_REMEMBER = """
insert into mailbox (name, due_at) values (%(name)s, %(now)s)
on conflict (name) do update set due_at = excluded.due_at where mailbox.due_at is null"""
_LEASE = """
update mailbox set leased_until = %(until)s
where name = %(name)s and due_at <= %(now)s and (leased_until is null or leased_until < %(now)s) returning name"""
# Under another UIDVALIDITY all numbers are new: everything is fetched again, and what is known already is known by its hash.
_LAST = """
update mailbox set last_uid = case when uidvalidity = %(validity)s then last_uid else 0 end, uidvalidity = %(validity)s
where name = %(name)s returning last_uid"""
_FETCHED = """
update mailbox set last_uid = greatest(last_uid, %(uid)s), leased_until = %(until)s
where name = %(name)s and uidvalidity = %(validity)s"""
_RELEASE = """
update mailbox set leased_until = null, error = %(error)s, due_at = case when due_at is null then null else %(due)s::timestamptz end,
    read_at = case when %(error)s::text is null then %(now)s::timestamptz else read_at end
where name = %(name)s"""
