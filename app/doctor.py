"""`nurture doctor`: looks whether everything is well, and lets parked occurrences be tried again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import redis
from sqlalchemy import Connection, Engine, text

from app import mail_doctor
from app.config import Settings, is_loopback
from app.errors import InputError, NotFound, SettingError
from app.finding import Finding
from app.flow import mime, publish, transports
from app.flow.brakes import list_brakes
from app.flow.brakes import sentence as sentence_of
from app.flow.channels import find_disabled
from app.flow.dkim import list_keys, signers_now
from app.flow.reading.hooks import trouble as hooks_trouble
from app.flow.transports import Way
from app.providers.dns import Dns
from app.providers.smtp import Timeouts
from app.rules.lifecycle import DEFAULT, Lifecycle
from app.rules.reasons import sentence

WAITS_TOO_LONG = timedelta(minutes=5)
CLOCKS_APART = timedelta(seconds=5)
FREE_AT_LEAST = 2**30
PATIENCE = Timeouts(connect=5, command=5)  # whoever asks the doctor wants an answer


def examine(settings: Settings, engine: Engine, now: datetime, dns: Dns | None = None) -> list[Finding]:
    """Looks at everything. Changes nothing, sends nothing. `now` is this machine's time; `dns` asks other servers than this machine's."""
    with engine.connect() as conn:
        signing = list(_signing(conn, settings))
        return [*_database(conn, now), *_work(conn, now), _bells(settings), _disk(settings), *signing, *_way_out(conn, settings, now, dns)]


def retry(conn: Connection, which: str, now: datetime) -> int:
    """Releases the parked occurrence of that id, or `all` of them, for another try. Returns how many. Raises NotFound, InputError."""
    release = "update parked set released_at = :now, retries = retries + 1 where released_at is null"
    if which == "all":
        return conn.execute(text(release), {"now": now}).rowcount
    if not which.isdigit() or int(which) >= 2**63:
        raise InputError("must be the number that `nurture doctor` shows, or all", "--retry")
    if not conn.execute(text(release + " and id = :id"), {"now": now, "id": int(which)}).rowcount:
        raise NotFound(f"there is no parked occurrence {which}")
    return 1


def _database(conn: Connection, now: datetime) -> Iterator[Finding]:
    version, theirs, revision = conn.execute(
        text("select current_setting('server_version'), clock_timestamp(), (select version_num from alembic_version)")
    ).one()
    yield Finding("database", True, f"PostgreSQL {version}, tables at revision {revision}")
    apart = abs(theirs - now)
    hint = "" if apart < CLOCKS_APART else "; let both machines keep time by NTP"
    yield Finding("clocks", apart < CLOCKS_APART, f"{apart.total_seconds():.1f} s between this machine and the database{hint}")


def _work(conn: Connection, now: datetime) -> Iterator[Finding]:
    yield _oldest(conn, "pending events", "select min(received_at) from event_pending e where not exists (" + _BEHIND_PARKED + ")", now)
    yield _oldest(conn, "due messages", "select min(due_at) from message where state = 'due' and due_at <= :now", now)
    count = conn.execute(text("select count(*) from message where state = 'unknown'")).scalar_one()
    hint = "; whether they arrived is not known. Evidence is waited for: nurture unknown list" if count else ""
    yield Finding("unknown outcomes", not count, f"{count} messages{hint}")
    yield from _effects(conn, now)
    yield from _inbound(conn, now)
    yield from _hooks(conn, now)
    on = list_brakes(conn)
    for one in on:
        yield Finding("brakes", False, f"{sentence_of(one)} (nurture brakes release {one['id']})")
    if not on:
        yield Finding("brakes", True, "none is on")
    parked = conn.execute(
        text("select id, coalesce(account_key, contact_key) as who, error from parked where released_at is null order by id limit 20")
    ).all()
    if not parked:
        yield Finding("parked", True, "no occurrence waits for a retry")
    for row in parked:
        yield Finding("parked", False, f"{row.id}: {row.who} waits: {row.error[:120]} (nurture doctor --retry {row.id})")


def _effects(conn: Connection, now: datetime) -> Iterator[Finding]:
    yield _oldest(conn, "alerts, webhooks", "select min(due_at) from effect where state = 'due' and due_at <= :now", now)
    failed = conn.execute(
        text(
            """select payload ->> 'to' as to, reason, count(*) as n from effect
               where state in ('failed', 'unknown') and settled_at > :since group by 1, 2 order by n desc, 1, 2 limit 20"""
        ),
        {"since": now - timedelta(1)},
    ).all()
    for row in failed:
        yield Finding("alerts, webhooks", False, f"{row.n} to {row.to} in the last day: {sentence(row.reason)}")
    for name, off in find_disabled(conn).items():
        hint = f"nurture channels enable {name}, or nurture channels set {name} with its new address"
        yield Finding("channels", False, f"{name} is disabled since {off['at'][:16]}, when it answered {off['why']} ({hint})")


def _inbound(conn: Connection, now: datetime) -> Iterator[Finding]:
    yield _oldest(conn, "inbound mail", "select min(received_at) from inbound_mail where state = 'waiting'", now)
    since = {"since": now - timedelta(1)}
    failed = conn.execute(text("select count(*) from inbound_mail where state = 'failed' and processed_at > :since"), since).scalar_one()
    if failed:
        yield Finding("inbound mail", False, f"{failed} could not be dealt with in the last day (nurture inbound list --state failed)")
    refused = conn.execute(
        text("""select count(*) as n, max(coalesce(detail ->> 'text', detail ->> 'reply')) as said from delivery_event
                where at > :since and detail ->> 'sort' = 'configuration'"""),
        since,
    ).one()
    if refused.n:
        said = f"{refused.n} messages were refused in the last day for our sender or settings: {(refused.said or '')[:200]}"
        yield Finding("sender settings", False, said)
    for name, error in conn.execute(text("select name, error from mailbox where due_at is not null")):
        yield Finding("mailbox", error is None, f"{name}: {error}" if error else f"{name} is read")


def _hooks(conn: Connection, now: datetime) -> Iterator[Finding]:
    yield _oldest(conn, "provider webhooks", "select min(received_at) from hook_call where state = 'waiting'", now)
    found = hooks_trouble(conn, now)
    if any(found.values()):
        said = (
            f"{found['refused']} refused and {found['failed']} failed in the last day: nurture hooks received --state refused (or failed)"
        )
        yield Finding("provider webhooks", False, said)


_BEHIND_PARKED = """
    select from parked k where k.partition = e.partition and k.released_at is null
    and (k.account_key = e.account_key or (k.account_key is null and e.account_key is null and k.contact_key = e.contact_key))"""


def _oldest(conn: Connection, what: str, query: str, now: datetime) -> Finding:
    oldest = conn.execute(text(query), {"now": now}).scalar()
    if oldest is None:
        return Finding(what, True, "nothing waits")
    late = now - oldest
    hint = "" if late < WAITS_TOO_LONG else ". Do the workers run? See logs/ in the home"
    return Finding(what, late < WAITS_TOO_LONG, f"the oldest has waited for {max(late.total_seconds(), 0):.0f} s{hint}")


def _bells(settings: Settings) -> Finding:
    if not settings.redis_url:
        return Finding("redis", True, "none is running here; the engine works without, a second slower")
    try:
        with redis.Redis.from_url(settings.redis_url, socket_connect_timeout=2, socket_timeout=2) as client:
            return Finding("redis", True, f"Redis {client.info('server')['redis_version']}")
    except redis.RedisError as error:
        return Finding("redis", False, f"does not answer: {error}. Work goes on, up to a second slower")


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.home).free
    return Finding("disk", free >= FREE_AT_LEAST, f"{free / 2**30:.1f} GB free at {settings.home}")


def _way_out(conn: Connection, settings: Settings, now: datetime, dns: Dns | None) -> Iterator[Finding]:
    """What carries mail, and the domains that it comes from. Their records matter once mail leaves this machine, or when `dns` is given."""
    try:
        lifecycle = publish.book(conn).lifecycle
    except NotFound:
        lifecycle = None
    found = transports.ways(conn, settings, now)
    for row in transports.listed(conn, settings, lifecycle, now):
        yield from _transport(settings, row, found.get(row["name"]))
    leaves = any(way.url and not is_loopback(urlsplit(way.url).hostname) for way in found.values())
    dns = dns or (Dns() if leaves else None)
    if dns is None:
        return
    keys = list_keys(conn)
    for domain in _sender_domains(lifecycle):
        yield from mail_doctor.domain(dns, domain, [key for key in keys if key["domain"] == domain])


def _signing(conn: Connection, settings: Settings) -> Iterator[Finding]:
    signers = signers_now(conn, settings)
    for problem in signers.shut.values():
        yield Finding("dkim", False, f"{problem}. Mail of that domain waits")
    if not signers.shut:
        yield Finding("dkim", True, f"signs for {', '.join(sorted(signers.of))}" if signers.of else "no key is active, so the relay signs")


def _transport(settings: Settings, row: Mapping[str, Any], way: Way | None) -> Iterator[Finding]:
    """Whether it may carry mail, and whether it can be reached and signed in to, as sending does."""
    what = "relay" if row["name"] == DEFAULT else f"relay {row['name']}"[:18]
    if row["state"] != "open":
        until = f" until {row['until']:%Y-%m-%d %H:%M} UTC" if row.get("until") else ""
        yield Finding(what, False, f"{row['state']}{until}: {row['detail'] or row.get('reason') or 'switched off'}")
        return
    for lane in row["lanes"]:
        if lane["state"] != "open":
            yield Finding(what, False, f"{lane['provider']} is {lane['state']} until {lane['until']:%H:%M} UTC: {lane['reply']}")
    if way.url is None:
        yield Finding(what, True, "no SMTP_URL: mail goes to the outbox")
        return
    try:
        setting = "SMTP_URL" if way.name == DEFAULT else f"nurture transports edit {way.name}"
        yield mail_doctor.relay(replace(way, timeouts=PATIENCE).relay(settings, "localhost", 1), what, setting)
    except SettingError as error:
        yield Finding(what, False, f"{error}")


def _sender_domains(lifecycle: Lifecycle | None) -> list[str]:
    """Of all senders; a CSM's own address is used only at one of them."""
    senders = lifecycle.senders.values() if lifecycle else ()
    return sorted({mime.address(one.email, "From").rpartition("@")[2].lower() for one in senders})
