"""Transports: the relays that carry mail, each with limits of its own, and how they stand with the providers of the recipients.

`lifecycle.yaml` says what goes over which; an installation gives them their addresses, sealed (X-44). Limits and pauses are rows, so that
every worker and every command sees the same; what is counted from one second to the next is in Redis (`app.pacing`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, delete, select, update
from sqlalchemy.dialects.postgresql import insert

from app.config import Settings, is_loopback, smtp_problem
from app.errors import InputError, NotFound
from app.flow.seals import Sealed, seal, unseal
from app.models import lane, transport
from app.providers.smtp import MAIL_PORTS, Smtp, Timeouts
from app.rules.lanes import AFTER_PAUSE, PAUSED_FOR, SLOW, SLOW_FOR, STRIKES, Pace, Providers, strikes
from app.rules.lifecycle import DEFAULT, Lifecycle

CONFIGURATION_PAUSE = timedelta(minutes=15)  # then one more attempt: somebody may have put right what was wrong at the relay
TIMEOUTS = {"connect": 300, "command": 300, "mail": 300, "rcpt": 300, "data": 300, "body": 600, "dot": 3600}  # the longest, in seconds
DOT_AT_LEAST = 600  # a false alarm there would leave mail that nobody knows about (S-02)

log = logging.getLogger("nurture.deliver")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9-]+(\.[a-z0-9-]+)+")
_PURPOSE = "transports"


@dataclass(frozen=True, slots=True)
class Way:
    """A transport as it stands: its limits, and why it takes nothing just now (`closed`), if so. `url` None is the outbox or, with
    `problem`, a transport whose URL cannot be opened."""

    name: str
    url: str | None
    pace: Pace
    letters: int = 100
    idle: float = 60.0
    size: int = 10_000_000
    reset: bool = True
    timeouts: Timeouts = field(default_factory=Timeouts)
    providers: Providers = field(default_factory=Providers)
    closed: str | None = None
    problem: str | None = None
    strikes: int = 0
    recovering: bool = False  # open again after a pause for its setting, which nothing has put right yet

    def relay(self, settings: Settings, hello: str, connections: int | None = None) -> Smtp:
        """Its relay. Raises SettingError."""
        # What the operator wrote into the environment is listed by that.
        listed = None if self.name == DEFAULT else settings.allow_hosts
        most = connections or self.pace.connections
        how = {"letters": self.letters, "idle": self.idle, "size": self.size, "reset": self.reset, "timeouts": self.timeouts}
        return Smtp(self.url, connections=most, hello=hello, listed=listed, **how)


@dataclass(frozen=True, slots=True)
class Lane:
    """How a transport stands with one provider."""

    strikes: int = 0
    slow_until: datetime | None = None
    paused_until: datetime | None = None

    def slow(self, now: datetime) -> bool:
        return self.slow_until is not None and self.slow_until > now

    def paused(self, now: datetime) -> bool:
        return self.paused_until is not None and self.paused_until > now


def ways(conn: Connection, settings: Settings, now: datetime) -> dict[str, Way]:
    """Every transport of the installation by name. Without SMTP_URL and without any other, `default` is the outbox (`url` None)."""
    rows = {row.name: row for row in conn.execute(select(transport))}
    found = {name: _way(settings, row, now) for name, row in rows.items()}
    if DEFAULT not in found:
        found[DEFAULT] = Way(DEFAULT, settings.smtp_url, Pace(100.0, 10) if settings.smtp_url else Pace())
    return found


def exists(conn: Connection, name: str) -> bool:
    """Whether the installation has a transport of that name."""
    return name == DEFAULT or conn.execute(select(transport.c.name).where(transport.c.name == name.replace("\0", ""))).first() is not None


def lanes(conn: Connection, name: str, now: datetime) -> dict[str, Lane]:
    """What is unusual between a transport and its providers, by provider."""
    rows = conn.execute(select(lane).where(lane.c.transport == name))
    found = {row.provider: Lane(row.strikes, row.slow_until, row.paused_until) for row in rows}
    return {provider: one for provider, one in found.items() if one.strikes or one.slow(now) or one.paused(now)}


def workers(conn: Connection) -> int:
    """How many workers send."""
    return max(1, conn.exec_driver_sql(_WORKERS).scalar_one())


def pace_of(way: Way, found: Mapping[str, Lane], provider: str, now: datetime) -> Pace:
    """How fast mail may go to the provider now (S-15)."""
    pace = way.providers.pace(provider)
    return pace.at_most(SLOW) if (one := found.get(provider)) and one.slow(now) else pace


# What becomes of a transport and its lanes ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What one attempt said about a lane: taken, or refused because of us (`ours`), or put off because of us (`slows`)."""

    transport: str
    provider: str
    ours: bool = False
    slows: bool = False
    sender: bool = False  # refused as a sender, whoever the recipient is
    taken: bool = False
    reply: str | None = None


def note(conn: Connection, seen: Sequence[Seen], known: Mapping[tuple[str, str], Lane], struck: Collection[str], now: datetime) -> None:
    """Remembers what attempts said, in their order: slows a lane, pauses one after three refusals of us in a row, and the transport after
    three of us as a sender (S-15, S-19). Never touches a contact.

    `known` are the lanes that stood differently at the last look, `struck` the transports that had refusals: for others a message that was
    taken is no news.
    """
    by_lane: dict[tuple[str, str], list[Seen]] = {}
    by_transport: dict[str, list[Seen]] = {}
    for one in seen:
        by_lane.setdefault((one.transport, one.provider), []).append(one)
        by_transport.setdefault(one.transport, []).append(one)
    # In one order everywhere, so that nobody waits for somebody who waits for him.
    for place, ones in sorted(by_lane.items()):
        if any(one.ours or one.slows for one in ones) or (place in known and known[place].strikes):
            _note_lane(conn, *place, ones, now)
    for name, ones in sorted(by_transport.items()):
        if any(one.sender for one in ones) or name in struck:
            _note_sender(conn, name, ones, now)


def _note_lane(conn: Connection, name: str, provider: str, ones: Sequence[Seen], now: datetime) -> None:
    key = {"transport": name, "provider": provider}
    conn.execute(insert(lane).values(**key, changed_at=now).on_conflict_do_nothing())
    held = conn.execute(select(lane).where(lane.c.transport == name, lane.c.provider == provider).with_for_update()).one()
    count = strikes(held.strikes, [one.ours for one in ones if one.ours or one.taken])
    values: dict[str, Any] = {"strikes": count, "changed_at": now}
    if slow := [one for one in ones if one.slows]:
        values |= {"slow_until": now + SLOW_FOR, "cause": "reputation", "reply": slow[-1].reply}
        values["untold"] = held.untold or not (held.slow_until and held.slow_until > now)
        log.warning("%s wants less mail over %s: one a minute for 90 minutes: %s", provider, name, slow[-1].reply)
    if count >= STRIKES and not (held.paused_until and held.paused_until > now):
        said = next(one.reply for one in reversed(ones) if one.ours)
        values |= {"paused_until": now + PAUSED_FOR, "strikes": AFTER_PAUSE, "cause": "refused", "reply": said, "untold": True}
        log.error("%s refuses us over %s: no mail to it for an hour: %s", provider, name, said)
    conn.execute(update(lane).where(lane.c.transport == name, lane.c.provider == provider).values(**values))


def _note_sender(conn: Connection, name: str, ones: Sequence[Seen], now: datetime) -> None:
    _keep_row(conn, name, now)
    held = conn.execute(select(transport).where(transport.c.name == name).with_for_update()).one()
    count = strikes(held.strikes, [one.sender for one in ones if one.sender or one.taken])
    conn.execute(update(transport).where(transport.c.name == name).values(strikes=0 if count >= STRIKES else count))
    if count >= STRIKES:
        said = next(one.reply for one in reversed(ones) if one.sender)
        pause_for_setting(conn, name, f"the relay refuses the sender: {said}", now)


def pause_for_setting(conn: Connection, name: str, detail: str, now: datetime) -> None:
    """Pauses the transport because only another setting can help: a certificate, a password, a sender (2.1). Looked at again after a
    while."""
    _keep_row(conn, name, now)
    values = {"paused_at": now, "paused_until": now + CONFIGURATION_PAUSE, "paused_reason": "configuration", "paused_detail": detail[:500]}
    open_ = (transport.c.paused_at.is_(None)) | (transport.c.paused_until <= now)
    # The same trouble after the pause is no news.
    untold = transport.c.untold | transport.c.paused_detail.is_distinct_from(detail[:500])
    changed = conn.execute(update(transport).where(transport.c.name == name, open_).values(**values, untold=untold)).rowcount
    if changed:
        log.error("transport %s is paused, its setting is wrong: %s", name, detail)


def works(conn: Connection, name: str) -> None:
    """The relay has taken mail: what was wrong with its setting is put right."""
    over = {"paused_at": None, "paused_until": None, "paused_reason": None, "paused_detail": None, "untold": False}
    conn.execute(update(transport).where(transport.c.name == name, transport.c.paused_reason == "configuration").values(**over))


# What an operator does -----------------------------------------------------------------------------------------------


def add(conn: Connection, settings: Settings, name: str, url: str, now: datetime, **limits: Any) -> Way:
    """A new transport. Raises InputError, also for one that exists; connects to nobody."""
    if not _NAME.fullmatch(name):
        raise InputError("must be small letters, digits and _, a letter first", "name")
    if name == DEFAULT:
        raise InputError("is the transport of SMTP_URL: nurture transports edit default sets its limits", "name")
    values = {"name": name, **_address(settings, url), **_limits(limits), "created_at": now}
    if not conn.execute(insert(transport).values(**values).on_conflict_do_nothing()).rowcount:
        raise InputError(f"{name} exists already: nurture transports edit {name} changes it", "name")
    return ways(conn, settings, now)[name]


def edit(conn: Connection, settings: Settings, name: str, now: datetime, *, url: str | None = None, **limits: Any) -> Way:
    """Changes what is named and leaves the rest. `providers` maps a provider to {rate, connections, domains}, or to None to forget it.
    Raises NotFound, InputError."""
    row = _found(conn, name, now)
    values = _limits(limits, row)
    if url is not None:
        if name == DEFAULT:
            raise InputError("is set by SMTP_URL", "url")
        values |= _address(settings, url)
        if row.paused_reason == "configuration":
            values |= {"paused_at": None, "paused_until": None, "paused_reason": None, "paused_detail": None, "untold": False}
    if values:
        conn.execute(update(transport).where(transport.c.name == name).values(**values))
    return ways(conn, settings, now)[name]


def pause(conn: Connection, name: str, now: datetime, *, until: datetime | None = None, detail: str = "") -> None:
    """Nothing goes over it until `until`, or until it is resumed; its mail waits. Raises NotFound."""
    _found(conn, name, now)
    values = {"paused_at": now, "paused_until": until, "paused_reason": "operator", "paused_detail": detail[:500] or None, "untold": False}
    conn.execute(update(transport).where(transport.c.name == name).values(**values))


def resume(conn: Connection, name: str, now: datetime, *, provider: str | None = None) -> None:
    """Ends the pause of a transport and of all its lanes, or of one lane. Raises NotFound."""
    _found(conn, name, now)
    where = [lane.c.transport == name]
    if provider is None:
        over = {"paused_at": None, "paused_until": None, "paused_reason": None, "paused_detail": None, "untold": False, "strikes": 0}
        conn.execute(update(transport).where(transport.c.name == name).values(**over))
    else:
        where.append(lane.c.provider == provider)
    gone = conn.execute(delete(lane).where(*where)).rowcount
    if provider is not None and not gone:
        raise NotFound(f"{name} stands as usual with {provider}: nurture transports list")
    # What was put off to the end of a pause goes now.
    conn.exec_driver_sql(_AGAIN, {"name": name, "now": now})


def remove(conn: Connection, name: str) -> int:
    """Forgets a transport; its mail goes over `default` from now on. Returns how many messages that are. Raises NotFound, InputError."""
    if name == DEFAULT:
        raise InputError("is the transport of SMTP_URL and cannot be removed", "name")
    if not conn.execute(delete(transport).where(transport.c.name == name)).rowcount:
        raise NotFound(f"There is no transport {name}: nurture transports list")
    conn.execute(delete(lane).where(lane.c.transport == name))
    return conn.exec_driver_sql(_TO_DEFAULT, {"name": name}).rowcount


def listed(conn: Connection, settings: Settings, lifecycle: Lifecycle | None, now: datetime) -> list[dict[str, Any]]:
    """Every transport that exists or that `lifecycle.yaml` names, by name: never a password."""
    rows = {row.name: row for row in conn.execute(select(transport))}
    found, named = ways(conn, settings, now), lifecycle.transports if lifecycle else frozenset()
    open_lanes = {name: lanes(conn, name, now) for name in found}
    waiting = {row.transport: row.count for row in conn.exec_driver_sql(_DUE, {"now": now})}
    lane_rows = {(row.transport, row.provider): row for row in conn.execute(select(lane))}
    done = []
    for name in sorted({*found, *named}, key=lambda one: (one != DEFAULT, one)):
        way, row = found.get(name), rows.get(name)
        if way is None:
            done.append({"name": name, "state": "missing", "detail": "lifecycle.yaml names it; its mail goes over default", "named": True})
            continue
        state = "disabled" if row is not None and not row.enabled else "paused" if way.closed else "problem" if way.problem else "open"
        paused = way.closed is not None and row is not None and row.paused_at is not None
        done.append(
            {
                "name": name,
                "state": state,
                "detail": way.problem or (row.paused_detail if paused else None),
                "reason": row.paused_reason if paused else None,
                "until": row.paused_until if paused else None,
                "named": name in named,
                "to": _shown(way.url) if way.url else None if way.problem else "outbox",
                "connections": way.pace.connections,
                "rate": way.pace.rate,
                "letters": way.letters,
                "idle": way.idle,
                "size": way.size,
                "reset": way.reset,
                "timeouts": {name: way.timeouts.of(name) for name in TIMEOUTS},
                "providers": dict(row.providers) if row is not None else {},
                "due": waiting.get(name, 0),
                "lanes": [
                    {
                        "provider": provider,
                        "state": "paused" if one.paused(now) else "slow" if one.slow(now) else "open",
                        "until": one.paused_until if one.paused(now) else one.slow_until if one.slow(now) else None,
                        "strikes": one.strikes,
                        "cause": lane_rows[name, provider].cause,
                        "reply": lane_rows[name, provider].reply,
                    }
                    for provider, one in sorted(open_lanes[name].items())
                ],
            }
        )
    return done


# How it is done ------------------------------------------------------------------------------------------------------


def _way(settings: Settings, row: Row, now: datetime) -> Way:
    url, problem = settings.smtp_url, None
    if row.name != DEFAULT:
        try:
            url = unseal(settings, _PURPOSE, row.url, f"transport {row.name}", f"nurture transports edit {row.name} --url …")
        except Sealed as error:
            url, problem = None, error.problem
    closed = None
    if not row.enabled:
        closed = "disabled"
    elif row.paused_at is not None and (row.paused_until is None or row.paused_until > now):
        closed = row.paused_reason
    return Way(
        row.name,
        url,
        Pace(row.rate, row.connections) if row.name != DEFAULT or url else Pace(),
        row.letters,
        row.idle,
        row.size,
        row.reset,
        Timeouts(**row.timeouts),
        _providers(row.providers),
        closed,
        problem,
        row.strikes,
        closed is None and row.paused_reason == "configuration",
    )


def _providers(kept: Mapping[str, Mapping[str, Any]]) -> Providers:
    paces = {name: Pace(one.get("rate"), one.get("connections")) for name, one in kept.items()}
    domains = {domain: name for name, one in kept.items() for domain in one.get("domains", ())}
    return Providers(paces, domains)


def _found(conn: Connection, name: str, now: datetime) -> Row:
    if name == DEFAULT:
        _keep_row(conn, name, now)
    row = conn.execute(select(transport).where(transport.c.name == name).with_for_update()).first()
    if row is None:
        raise NotFound(f"There is no transport {name}: nurture transports list")
    return row


def _keep_row(conn: Connection, name: str, now: datetime) -> None:
    """`default` needs no row until there is something to remember of it."""
    if name == DEFAULT:
        conn.execute(insert(transport).values(name=DEFAULT, created_at=now).on_conflict_do_nothing())


def _address(settings: Settings, url: str) -> dict[str, Any]:
    if problem := smtp_problem(url):
        raise InputError(problem, "url")
    relay = Smtp(url)
    place = ("smtps" if relay.tls == "implicit" else "smtp", relay.host, relay.port)
    if relay.port not in MAIL_PORTS and not is_loopback(relay.host) and place not in settings.allow_hosts:
        ports = ", ".join(map(str, MAIL_PORTS))
        raise InputError(f"must use one of the ports {ports}, unless NURTURE_ALLOW_HOSTS has {place[0]}://{place[1]}:{place[2]}", "url")
    return {"url": seal(settings, _PURPOSE, url), "host": _shown(url)}


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") + (f"?{parts.query}" if parts.query else "")


# option: type, least, most
_NUMBERS: Mapping[str, tuple[type, float, float]] = {
    "connections": (int, 1, 200),
    "rate": (float, 1 / 3600, 10_000),
    "letters": (int, 1, 100),
    "idle": (float, 1, 600),
    "size": (int, 10_000, 50_000_000),
}


def _limits(limits: Mapping[str, Any], row: Row | None = None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in limits.items():
        if value is None:
            continue
        if name in _NUMBERS:
            values[name] = _number(name, value)
        elif name in ("reset", "enabled"):
            values[name] = bool(value)
        elif name == "timeouts":
            values[name] = {**(row.timeouts if row is not None else {}), **_timeouts(value)}
        else:
            merged = {**(row.providers if row is not None else {}), **{one: _provider(one, how) for one, how in value.items()}}
            values[name] = {one: how for one, how in merged.items() if how is not None}
            _no_domain_twice(values[name])
    return values


def _number(name: str, value: Any) -> float:
    kind, least, most = _NUMBERS[name]
    if not least <= value <= most or (kind is int and value != int(value)):
        raise InputError(f"must be a number from {least:g} to {most:g}", name)
    return kind(value)


def _timeouts(given: Mapping[str, float]) -> dict[str, float]:
    for name, seconds in given.items():
        if name not in TIMEOUTS:
            raise InputError(f"{name} is not one of {', '.join(TIMEOUTS)}", "timeout")
        least = DOT_AT_LEAST if name == "dot" else 1
        if not least <= seconds <= TIMEOUTS[name]:
            raise InputError(f"{name} must be {least:g} to {TIMEOUTS[name]:g} seconds", "timeout")
    return dict(given)


def _provider(name: str, how: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if how is None:
        return None
    if not _NAME.fullmatch(name) and not _DOMAIN.fullmatch(name):
        raise InputError(f"{name} must be a name such as google, or a domain", "provider")
    kept: dict[str, Any] = {option: _number(option, how[option]) for option in ("rate", "connections") if how.get(option) is not None}
    domains = sorted({one.lower().rstrip(".") for one in how.get("domains", ())})
    if bad := [one for one in domains if not _DOMAIN.fullmatch(one)]:
        raise InputError(f"{bad[0]} is not a domain", "provider")
    return kept | ({"domains": domains} if domains else {})


def _no_domain_twice(providers: Mapping[str, Mapping[str, Any]]) -> None:
    whose: dict[str, str] = {}
    for name, one in providers.items():
        for domain in one.get("domains", ()):
            if whose.setdefault(domain, name) != name:
                raise InputError(f"{domain} is given to {whose[domain]} and to {name}", "provider")


def untold(conn: Connection) -> list[str]:
    """What operators have not been told yet, as sentences; from now on they count as told."""
    paused = conn.execute(update(transport).where(transport.c.untold).values(untold=False).returning(transport)).all()
    slowed = conn.execute(update(lane).where(lane.c.untold).values(untold=False).returning(lane)).all()
    return [*map(_about_transport, paused), *map(_about_lane, slowed)]


def _about_transport(row: Row) -> str:
    minutes = CONFIGURATION_PAUSE.total_seconds() / 60
    return (
        f"The transport {row.name} is paused, as its setting is wrong: {row.paused_detail}. Its mail waits. "
        f"It is tried again every {minutes:.0f} minutes; `nurture transports resume {row.name}` does it at once."
    )


def _about_lane(row: Row) -> str:
    if row.cause == "refused":
        what = f"refused {STRIKES} messages in a row because of us, so no mail goes there until {row.paused_until:%Y-%m-%d %H:%M} UTC"
    else:
        what = f"takes less mail from us for our reputation, so it gets one a minute until {row.slow_until:%Y-%m-%d %H:%M} UTC"
    return f"{row.provider} {what} (transport {row.transport}): {row.reply}"


def names_of(found: Iterable[str], lifecycle: Lifecycle | None) -> tuple[str, ...]:
    """What the default transport carries: its own mail, and that of names which no transport has."""
    return (DEFAULT, *sorted((lifecycle.transports if lifecycle else frozenset()) - set(found)))


_AGAIN = """
update message set due_at = %(now)s
where state = 'due' and transport = %(name)s and reason in ('lane_paused', 'throttled') and due_at > %(now)s"""
_TO_DEFAULT = "update message set transport = 'default' where transport = %(name)s and state in ('due', 'claimed', 'in_dot', 'unknown')"
_DUE = "select transport, count(*) from message where state = 'due' and due_at <= %(now)s group by transport"
_WORKERS = "select count(*) from worker where stopped_at is null and heartbeat_at > clock_timestamp() - interval '30 seconds'"
