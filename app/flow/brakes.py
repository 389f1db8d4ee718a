"""Stopping by itself: too many complaints pause a domain's mail, too many bounces pause a campaign (email-standards 1.1).

    count ─▶ judge ─▶ brake, pause ─▶ tell the operators          a few aggregate queries now and then, none per message

A domain's brake is read with the book, by the gates (`rules.consent`); a campaign is paused like by hand. Both last until somebody
releases them; a warning ends when its rate falls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Row

from app.config import PRODUCT, Settings
from app.db import insert_rows
from app.errors import CallError, InputError, NotFound, RenderSkip, SendError
from app.flow import publish
from app.flow.channels import Sealed, find_channels
from app.flow.deliver import transport_for
from app.flow.dkim import signers_now
from app.flow.notify import Words, send_now
from app.flow.steering import find_campaign, set_mode
from app.models import brake
from app.providers import Transport
from app.providers.outgoing import Caller
from app.queue import Bells
from app.rules import braking
from app.rules.braking import WINDOWS, Count, Finding
from app.rules.delivery import Limits
from app.rules.facts import hash_id
from app.rules.lifecycle import Brakes

LOOK_EVERY = timedelta(minutes=1)
AT_MOST_A_FIFTIETH = 50  # of one database connection's time, however much there is to count
TELL_FOR = timedelta(hours=24)

log = logging.getLogger("nurture.brakes")


def run(
    engine: Engine,
    settings: Settings,
    clock: Callable[[], datetime],
    bells: Bells,
    *,
    caller: Caller | None = None,
    transport: Transport | None = None,
) -> list[int]:
    """Looks once, if nobody else has within the last minute, and tells the operators; returns the brakes that were set."""
    with engine.begin() as conn:
        if not conn.exec_driver_sql(_TURN, {"now": clock(), "next": clock() + LOOK_EVERY}).rowcount:
            return []
    began = time.monotonic()
    with engine.begin() as conn:
        made, partitions = look(conn, clock())
        took = timedelta(seconds=time.monotonic() - began)
        conn.exec_driver_sql("update installation set brakes_at = %(next)s", {"next": clock() + max(LOOK_EVERY, took * AT_MOST_A_FIFTIETH)})
    bells.advance(partitions)
    tell(engine, settings, clock, caller=caller, transport=transport)
    return made


def look(conn: Connection, now: datetime) -> tuple[list[int], frozenset[int]]:
    """Counts, and sets the brakes that are due; returns them and the partitions to ring. Does nothing before anything is published."""
    try:
        limits = publish.book(conn).lifecycle.brakes
    except NotFound:
        return [], frozenset()
    made = _domains(conn, limits, now)
    campaigns, partitions = _campaigns(conn, limits, now)
    return made + campaigns, partitions


def list_brakes(conn: Connection, *, every: bool = False) -> list[dict[str, Any]]:
    """The brakes and warnings in force, the newest first; with `every` the released ones as well."""
    return [dict(row._mapping) for row in conn.exec_driver_sql(_LIST, {"every": every})]


def release(conn: Connection, ident: int, now: datetime, *, choice: str | None = None, by: str = "hand") -> dict[str, Any]:
    """Takes a brake off: a domain's mail goes on at once, and only what happens from now on counts; a campaign's pause ends, which
    `choice` (send, skip or exit) answers for what fell due meanwhile, as in `steering.set_mode`. Raises NotFound and InputError."""
    row = conn.exec_driver_sql(_ONE, {"id": ident}).one_or_none()
    if row is None:
        raise NotFound(f"there is no brake {ident} in force: nurture brakes list")
    partitions: frozenset[int] = frozenset()
    if row.key is not None and find_campaign(conn, row.key, lock=True).mode == "paused":
        partitions = set_mode(conn, row.key, "live", now, choice=choice).partitions
    elif choice is not None:
        raise InputError("only what a paused campaign held up can be overdue", "overdue")
    conn.exec_driver_sql(_RELEASE, {"id": ident, "now": now, "by": by})
    freed = conn.exec_driver_sql(_FREE, {"now": now}).rowcount if row.domain is not None and row.action == "pause" else 0
    log.warning("brake %d released by %s: %s", ident, by, row.domain or row.key)
    return {"released": ident, "domain": row.domain, "campaign": row.key, "messages": freed, "partitions": sorted(partitions)}


def tell(
    engine: Engine,
    settings: Settings,
    clock: Callable[[], datetime],
    *,
    caller: Caller | None = None,
    transport: Transport | None = None,
) -> int:
    """Tells the operators of what was set within the last day and they have not heard of; returns how many times.

    Each at most once: it counts as told before the wire, and is tried again only where the other side surely took nothing. Without a
    channel in `lifecycle.yaml`, or one without an address here, `nurture doctor` and the log have to do.
    """
    now = clock()
    with engine.connect() as conn:
        waiting = conn.exec_driver_sql(_UNTOLD, {"since": now - TELL_FOR}).all()
        if not waiting:
            return 0
        lifecycle = publish.book(conn).lifecycle
        name = lifecycle.brakes.tell
        try:
            channel = find_channels(conn, settings, [name]).get(name) if name else None
        except Sealed as error:
            log.warning("the operators are not told: %s", error)
            channel = None
        signers = signers_now(conn, settings)
    if channel is None:
        return 0
    told = 0
    for row in waiting:
        with engine.begin() as conn:
            if not conn.exec_driver_sql(_TELLING, {"id": row.id, "now": now}).rowcount:
                continue
        words, data = _words(row, settings), {"type": f"brake.{row.action}", "timestamp": row.set_at.isoformat(), "data": _data(row)}
        post = caller or Caller(settings.allow_hosts)
        mailbox = transport or transport_for(settings, engine, clock, Limits(connections=1))
        try:
            said = send_now(channel, words, data, _ident(row), lifecycle, signers, mailbox, now, post)
            log.info("brake %d told by %s: %s", row.id, channel.name, said)
            told += 1
        except (CallError, SendError, RenderSkip) as error:
            log.warning("brake %d could not be told by %s: %s", row.id, channel.name, error)
            if getattr(error, "outcome", None) == "temp" or isinstance(error, CallError):
                with engine.begin() as conn:
                    conn.exec_driver_sql("update brake set told_at = null where id = %(id)s", {"id": row.id})
    return told


def sentence(row: Any) -> str:
    """A brake in words, with its numbers."""
    numbers = row["numbers"] if isinstance(row, dict) else row.numbers
    get = row.get if isinstance(row, dict) else lambda name: getattr(row, name)
    rate = f"{numbers['rate']:.2%}, limit {numbers['limit']:.2%}"
    if get("campaign"):
        return f"Campaign {get('campaign')} is paused: {numbers['bounced']} of its first {numbers['sent']} mails bounced for good ({rate})."
    at = f" at {numbers['provider']}" if numbers.get("provider") else ""
    counted = (
        f"{numbers['complained']} complaints{at} about {numbers['delivered']} mails delivered within {numbers['hours']} hours ({rate})"
    )
    return f"Mail from {get('domain')} is paused: {counted}." if get("action") == "pause" else f"Mail from {get('domain')}: {counted}."


# Domains ---------------------------------------------------------------------------------------------------------------


def _domains(conn: Connection, limits: Brakes, now: datetime) -> list[int]:
    counts = braking.together(_counts(conn, now))
    findings = braking.complaints(counts, limits.complaints)
    for row in conn.exec_driver_sql(_WARNINGS).all():
        if braking.is_over(counts, row.domain, row.provider, limits.complaints):
            conn.exec_driver_sql(_RELEASE, {"id": row.id, "now": now, "by": "rate"})
    return _set(conn, "complaints", findings, now)


def _counts(conn: Connection, now: datetime) -> list[Count]:
    """By sending domain, recipients' domain and window. Only domains that anybody complained about are counted in full: without a
    complaint there is no rate. Nothing of before a domain's last release counts."""
    windows = {window: now - window for window in WINDOWS}
    longest = min(windows.values())
    released = dict(map(tuple, conn.exec_driver_sql(_RELEASED, {"since": longest})))
    domains = conn.exec_driver_sql(_COMPLAINED_ABOUT, {"since": longest}).scalars().all()
    found = []
    for window, since in windows.items():
        starts = [max(released.get(domain, since), since) for domain in domains]
        about = {"domains": list(domains), "since": starts}
        complained = {(row.domain, row.at): row.count for row in conn.exec_driver_sql(_BAD, {**about, "kind": "complained"})}
        bounced = {(row.domain, row.at): row.count for row in conn.exec_driver_sql(_BAD, {**about, "kind": "bounced"})}
        sent = {(row.domain, row.at): row.count for row in conn.exec_driver_sql(_SENT, about)} if complained else {}
        begins = dict(zip(domains, starts, strict=True))
        for domain, at in sent.keys() | complained.keys():
            delivered = max(sent.get((domain, at), 0) - bounced.get((domain, at), 0), 0)
            found.append(Count(domain, at, window, begins[domain], delivered, complained.get((domain, at), 0)))
    return found


def _campaigns(conn: Connection, limits: Brakes, now: datetime) -> tuple[list[int], frozenset[int]]:
    """Campaigns that bounce. One that was braked is never braked again: its first mails are behind it."""
    made, partitions = [], set()
    about = {"since": now - WINDOWS[-1], "first": limits.bounces.first}
    for row in conn.exec_driver_sql(_FIRST, about).all():
        numbers = braking.bounces(row.sent, row.bounced, limits.bounces)
        if numbers is None:
            continue
        partitions |= set_mode(conn, row.key, "paused", now).partitions
        made += _set(conn, "bounces", [Finding("pause", None, None, numbers)], now, row.id)
    return made, frozenset(partitions)


def _set(conn: Connection, kind: str, findings: Iterable[Finding], now: datetime, campaign_id: int | None = None) -> list[int]:
    """Writes the brakes that are not on yet."""
    rows = [
        {
            "kind": kind,
            "action": one.action,
            "domain": one.domain,
            "provider": one.provider,
            "campaign_id": campaign_id,
            "numbers": dict(one.numbers),
            "set_at": now,
        }
        for one in findings
    ]
    made = [row.id for row in insert_rows(conn, brake, rows, conflict="do nothing", returning=["id"])] if rows else []
    for row in conn.exec_driver_sql(_THESE, {"ids": made}).all() if made else ():
        log.warning("brake %d: %s", row.id, sentence(row))
    return made


# Telling ---------------------------------------------------------------------------------------------------------------


def _words(row: Row, settings: Settings) -> Words:
    subject = f"{PRODUCT}: {'paused' if row.action == 'pause' else 'warning'}: {row.domain or row.campaign}"
    what = f"Release it when you have looked into it: nurture brakes release {row.id}" if row.action == "pause" else "Nothing was stopped."
    return Words(subject, f"{sentence(row)}\n{what}", "", f"{settings.base_url}/console/")


def _data(row: Row) -> dict[str, Any]:
    return {"brake": row.id, "kind": row.kind, "domain": row.domain, "provider": row.provider, "campaign": row.campaign, **row.numbers}


def _ident(row: Row) -> UUID:
    return hash_id("brake", row.id)


_TURN = "update installation set brakes_at = %(next)s where brakes_at is null or brakes_at <= %(now)s"
_COLUMNS = """b.id, b.kind, b.action, b.domain, b.provider, k.key as campaign, b.numbers, b.set_at, b.told_at, b.released_at, b.released_by
from brake b left join campaign k on k.id = b.campaign_id"""
_LIST = f"select {_COLUMNS} where %(every)s or b.released_at is null order by b.set_at desc, b.id desc"
_THESE = f"select {_COLUMNS} where b.id = any(%(ids)s)"
_UNTOLD = f"select {_COLUMNS} where b.told_at is null and b.released_at is null and b.set_at > %(since)s order by b.id"
_TELLING = "update brake set told_at = %(now)s where id = %(id)s and told_at is null and released_at is null"
_ONE = """
select b.id, b.domain, b.action, k.key from brake b left join campaign k on k.id = b.campaign_id
where b.id = %(id)s and b.released_at is null for update of b"""
_RELEASE = "update brake set released_at = %(now)s, released_by = %(by)s where id = %(id)s and released_at is null"
_FREE = "update message set due_at = %(now)s where state = 'due' and reason = 'braked' and due_at > %(now)s"
_WARNINGS = "select id, domain, provider from brake where kind = 'complaints' and action = 'warn' and released_at is null"
_RELEASED = """
select domain, max(released_at) from brake
where kind = 'complaints' and action = 'pause' and released_at > %(since)s group by domain"""

# The domain that a message came from stands in its Message-ID; the person's address ends in that of the recipient.
_FROM = "split_part(rtrim(m.message_header, '>'), '@', 2)"
_TO = "split_part(coalesce(m.person, ''), '@', 2)"
_COMPLAINED_ABOUT = f"""
select distinct {_FROM} from delivery_event e join message m on m.id = e.message_id
where e.kind in ('bounced', 'complained', 'rejected') and e.kind = 'complained' and e.at > %(since)s and m.message_header is not null"""
_BAD = f"""
select d.domain, {_TO} as at, count(distinct m.id)
from delivery_event e join message m on m.id = e.message_id
join unnest(%(domains)s::text[], %(since)s::timestamptz[]) as d (domain, since) on d.domain = {_FROM}
where e.kind in ('bounced', 'complained', 'rejected') and e.kind = %(kind)s and e.at > d.since group by 1, 2"""
# By when it was made, which has an index; no message waits for as long as a month.
_SENT = f"""
select d.domain, {_TO} as at, count(*) from message m
join unnest(%(domains)s::text[], %(since)s::timestamptz[]) as d (domain, since) on d.domain = {_FROM}
where m.state = 'sent' and m.settled_at > d.since
  and m.created_at > (select min(since) from unnest(%(since)s::timestamptz[]) as since) - interval '30 days'
group by 1, 2"""
_BOUNCED = "e.kind in ('bounced', 'rejected') and e.detail ->> 'sort' = 'hard'"
_FIRST = f"""
with bad as (
    select distinct m.campaign_id as id from delivery_event e join message m on m.id = e.message_id
    where e.kind in ('bounced', 'complained', 'rejected') and {_BOUNCED} and e.at > %(since)s
)
select k.id, k.key, f.sent, f.bounced from bad join campaign k on k.id = bad.id and k.mode = 'live'
    and not exists (select from brake b where b.campaign_id = k.id)
cross join lateral (
    select count(*) as sent,
        count(*) filter (where exists (select from delivery_event e where e.message_id = first.id and {_BOUNCED})) as bounced
    from (
        select m.id from message m
        where m.campaign_id = k.id and (m.state in ('sent', 'unknown') or (m.state = 'skipped' and m.reason = 'rejected'))
        order by coalesce(m.dot_at, m.settled_at), m.id limit %(first)s
    ) first
) f"""
