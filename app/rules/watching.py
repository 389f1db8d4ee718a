"""What nobody posts: dates that come, usage that falls, seats that fill, people who go silent, roles that fall vacant.

Watches are what the triggers of campaigns ask for. Each becomes an event on the account's timeline, told once until it is over and
happens again; `account.watched` remembers by the watch's key (and a contact's row, as its id may change) what has been told. All by whole
UTC days but dates, which are moments. What had happened more than three days before anybody looked is marked `too_old`, so that
publishing a campaign looks forward only.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from app.rules.book import DateWatch
from app.rules.conditions import counted, utilization
from app.rules.facts import TRIGGER_MAX_AGE, Contact, Scope, renew
from app.rules.timing import midnight
from app.rules.triggers import UsageTrigger
from app.rules.turn import Turn

NEW_FOR = timedelta(days=30)  # an account has to fill its seats first: it is not under-used before


def look_daily(turn: Turn) -> None:
    """What time passing brings."""
    _dates(turn)
    _usages(turn)
    _utilizations(turn)
    _silence(turn)
    _vacancies(turn)


def look_at_people(turn: Turn) -> None:
    """What a change of the account or of its people brings at once."""
    _utilizations(turn)
    _vacancies(turn)


def next_date(turn: Turn) -> datetime | None:
    """The next watched date that is still to be told. What has passed already is to be looked at at once, not in the past."""
    moments = []
    for watch, contact, value in _dated(turn):
        for offset, key, _ in watch.offsets:
            due = _moment(value, offset)
            if due is None:
                continue
            if due > turn.now:
                moments.append(due)
                break
            if turn.account.watched.get(_of(key, contact)) != due.isoformat():
                return turn.now
    return min(moments, default=None)


def _dated(turn: Turn) -> Iterator[tuple[DateWatch, Contact | None, datetime]]:
    """Every watched field that holds a date, with whose it is."""
    for watch in turn.book.watches.dates:
        for contact in _members(turn, None) if watch.of_contacts else (None,):
            value = watch.read(Scope(turn.account, turn.now, contact))
            if isinstance(value, datetime):
                yield watch, contact, value


def _moment(value: datetime, offset: timedelta) -> datetime | None:
    try:
        return value + offset
    except OverflowError:
        return None


def _of(key: str, contact: Contact | None) -> str:
    """What is remembered of a watch, by contact where it is of contacts: by its row, which an alias does not change."""
    return f"{key}@{contact.id}" if contact else key


def _named(key: str, contact: Contact | None) -> str:
    """What an event of a watch is called, the same in every database."""
    return f"{key}@{contact.key}" if contact else key


def _dates(turn: Turn) -> None:
    come = [
        (key, _of(key, contact), spec, due, contact)
        for watch, contact, value in _dated(turn)
        for offset, key, spec in watch.offsets
        if (due := _moment(value, offset)) is not None and due <= turn.now
    ]
    for key, remembered, spec, due, contact in come:
        if turn.account.watched.get(remembered) == due.isoformat():
            continue
        _remember(turn, remembered, due.isoformat())
        properties = {
            "watch": key,
            "field": spec.field,
            "offset_days": spec.offset / timedelta(days=1),
            "date": (due - spec.offset).isoformat(),
        }
        _tell(turn, "nurture.date_reached", f"{_named(key, contact)}:{due.isoformat()}", properties, due, contact)


def _usages(turn: Turn) -> None:
    windows: dict[tuple[str, timedelta], tuple[int, int]] = {}  # many watches look at the same few
    for key, spec in turn.book.watches.usages.items():
        place = spec.metric, spec.window
        if place not in windows:
            windows[place] = _windows(turn, spec)
        last, before = windows[place]
        change = (last - before) / before if before else None
        if spec.drop is not None:
            holds = before >= spec.at_least and change is not None and change <= -spec.drop
        else:
            holds = last >= spec.at_least and change is not None and change >= spec.rise
        if not holds:
            _forget(turn, key)
        elif key not in turn.account.watched:
            _remember(turn, key, _today(turn))
            properties = {"watch": key, "metric": spec.metric, "days": spec.window.days, "last": last, "previous": before, "change": change}
            _tell(turn, "nurture.usage_changed", f"{key}:{_today(turn)}", properties, turn.now, None)


def _windows(turn: Turn, spec: UsageTrigger) -> tuple[int, int]:
    """The counts of the last window of whole days, and of the one before it. Today does not count: it is not over."""
    usage = turn.account.usage.get(spec.metric)
    days = spec.window.days
    return (counted(usage, turn.now, days, 1), counted(usage, turn.now, days, 1 + days)) if usage else (0, 0)


def _utilizations(turn: Turn) -> None:
    if not turn.book.watches.utilizations:
        return
    share = utilization(turn.account, turn.now)
    if share is None:
        return
    for key, spec in turn.book.watches.utilizations.items():
        if spec.above is not None:
            holds = share > spec.above
        else:
            holds = share < spec.below and turn.account.created_at is not None and turn.now - turn.account.created_at >= NEW_FOR
        if not holds:
            _forget(turn, key)
        elif key not in turn.account.watched:
            _remember(turn, key, _today(turn))
            direction, level = ("up", spec.above) if spec.above is not None else ("down", spec.below)
            properties = {"watch": key, "share": share, "level": level, "direction": direction, "seats": turn.account.seats}
            _tell(turn, "nurture.utilization_crossed", f"{key}:{_today(turn)}", properties, turn.now, None)


def _silence(turn: Turn) -> None:
    if not turn.book.watches.inactives:
        return
    today = turn.now.astimezone(UTC).date()
    lasts = [(one, (one.last_seen_at or one.joined_at).astimezone(UTC).date()) for one in _members(turn, None)]
    quiet = [(one, last, (today - last).days) for one, last in lasts]
    for key, spec in turn.book.watches.inactives.items():
        for contact, last, days in quiet:
            if spec.role is not None and spec.role not in contact.roles:
                continue
            remembered = _of(key, contact)
            if days < spec.days:
                _forget(turn, remembered)
            elif turn.account.watched.get(remembered) != last.isoformat():
                _remember(turn, remembered, last.isoformat())
                properties = {"watch": key, "role": spec.role, "days": spec.days, "last_seen": last.isoformat()}
                due = min(midnight(last + timedelta(days=spec.days)), turn.now)
                _tell(turn, "nurture.contact_inactive", f"{_named(key, contact)}:{last.isoformat()}", properties, due, contact)


def _vacancies(turn: Turn) -> None:
    for key, role in turn.book.watches.vacancies.items():
        if any(True for _ in _members(turn, role)):
            _remember(turn, key, "filled")
        elif turn.account.watched.get(key) == "filled":
            _remember(turn, key, f"vacant since {turn.now.isoformat()}")
            _tell(turn, "nurture.role_vacant", f"{key}:{turn.now.isoformat()}", {"watch": key, "role": role}, turn.now, None)


def _members(turn: Turn, role: str | None) -> Iterator[Contact]:
    for contact in turn.account.contacts.values():
        if contact.joined_at is not None and (role is None or role in contact.roles):
            yield contact


def _tell(turn: Turn, name: str, message_id: str, properties: dict[str, Any], at: datetime, contact: Contact | None) -> None:
    turn.derive(
        name,
        f"{turn.account.key}:{message_id}",
        properties,
        at=at,
        mark="too_old" if turn.now - at > TRIGGER_MAX_AGE else None,
        contact=contact.key if contact else None,
    )


def _remember(turn: Turn, key: str, value: str) -> None:
    if turn.account.watched.get(key) != value:
        turn.account = renew(turn.account, watched={**turn.account.watched, key: value})


def _forget(turn: Turn, key: str) -> None:
    if key in turn.account.watched:
        turn.account = renew(turn.account, watched={name: value for name, value in turn.account.watched.items() if name != key})


def _today(turn: Turn) -> str:
    return turn.now.astimezone(UTC).date().isoformat()
