"""When things happen: durations, wall-clock times in a zone, send windows, jitter. Pure arithmetic over given moments.

A wall-clock time that a change to summer time skips happens at the next valid instant; one that it repeats happens the first
time (DESIGN.md 6). Everything comes in and goes out as aware UTC datetimes.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from app.rules.facts import Account, Contact, hash_share

_DURATION = re.compile(r"(?P<sign>-?)(?:(?P<w>\d{1,4})w)?(?:(?P<d>\d{1,5})d)?(?:(?P<h>\d{1,5})h)?(?:(?P<m>\d{1,6})m)?(?:(?P<s>\d{1,7})s)?")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)")


def duration(text: object) -> timedelta:
    """`"3d"`, `"2h30m"`, `"90m"`, `"-90d"` as a timedelta. Raises ValueError that shows the form."""
    if isinstance(text, timedelta):
        return text
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if not match or not any(match.group(unit) for unit in "wdhms"):
        raise ValueError(f"{text!r} is not a duration; write it like 3d, 36h, 90m or 2d12h")
    parts = {unit: int(match.group(unit) or 0) for unit in "wdhms"}
    span = timedelta(weeks=parts["w"], days=parts["d"], hours=parts["h"], minutes=parts["m"], seconds=parts["s"])
    return -span if match.group("sign") else span


def clock_time(text: object) -> time:
    """`"09:00"` as a time of day; `"24:00"` is the end of the day. Raises ValueError."""
    match = _CLOCK.fullmatch(text) if isinstance(text, str) else None
    if not match or (match.group(1) == "24" and match.group(2) != "00"):
        raise ValueError(f'{text!r} is not a time of day; write it in quotes like "09:00"')
    return time.max if match.group(1) == "24" else time(int(match.group(1)), int(match.group(2)))


def week_days(text: object) -> frozenset[int]:
    """`"mon-fri"` or `"mon,wed,sat-sun"` as weekday numbers, Monday 0. Raises ValueError."""
    found: set[int] = set()
    try:
        for part in str(text).lower().replace(" ", "").split(","):
            first, _, last = part.partition("-")
            start, end = _DAYS.index(first[:3]), _DAYS.index((last or first)[:3])
            found.update((start + offset) % 7 for offset in range((end - start) % 7 + 1))
    except ValueError as error:
        raise ValueError(f"{text!r} names no weekdays; write them like mon-fri or mon,wed") from error
    return frozenset(found)


@lru_cache(maxsize=1024)
def zone(name: str | None) -> ZoneInfo | None:
    """The zone called `name`, or None where there is none of that name."""
    if not name or len(name) > 64 or ".." in name or name.startswith("/"):
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


def zone_for(account: Account, contact: Contact | None, installation: str) -> tuple[ZoneInfo, str]:
    """Whose clock counts: contact → account → owner → installation. Returns the zone and which of them gave it."""
    names = (("contact", contact.timezone if contact else None), ("account", account.timezone), ("owner", account.owner_timezone))
    for whose, name in names:
        if found := zone(name):
            return found, whose
    return zone(installation) or ZoneInfo("UTC"), "installation"


def at_wall_clock(day: date, at: time, where: ZoneInfo) -> datetime:
    """The moment, in UTC, when the clocks of `where` show `at` on `day`; skipped times move to the next valid instant."""
    local = datetime.combine(day, at, where)
    moment = local.astimezone(UTC)
    if moment.astimezone(where).replace(tzinfo=None, fold=0) == local.replace(tzinfo=None):
        return moment
    # The clocks jump over `at`: read with the offset before the jump it lies just after it, with the one after, just before.
    before, after = local.replace(fold=1).astimezone(UTC), moment
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) / 2
        if middle.astimezone(where).utcoffset() == after.astimezone(where).utcoffset():
            after = middle
        else:
            before = middle
    return after.replace(microsecond=0)


def midnight(day: date) -> datetime:
    """When the UTC day begins."""
    return datetime.combine(day, time(0), UTC)


def days_later(since: datetime, days: int, at: time | None, where: ZoneInfo) -> datetime:
    """`days` calendar days after `since` in the zone, at the clock time `at` (or the same clock time)."""
    local = since.astimezone(where)
    moment = at_wall_clock(local.date() + timedelta(days=days), at or local.time().replace(tzinfo=None), where)
    # With 0 days the hour may have passed already: then the next day's is meant.
    return moment if moment >= since else at_wall_clock(local.date() + timedelta(days=days + 1), at or local.time(), where)


def next_open(
    moment: datetime, days: frozenset[int], opens: time, closes: time, where: ZoneInfo, spread: timedelta, *jitter: object
) -> datetime:
    """`moment` if the window is open then, else when it opens next, within its first `spread` by a hash of `jitter`.

    `closes` before `opens` means a window over midnight.
    """
    local = moment.astimezone(where)
    for offset in range(-1, 9):
        day = local.date() + timedelta(days=offset)
        if day.weekday() not in days:
            continue
        start = at_wall_clock(day, opens, where)
        end = at_wall_clock(day if closes > opens else day + timedelta(days=1), closes, where)
        if start <= moment < end:
            return moment
        if moment < start:
            return start + timedelta(seconds=int(min(spread, end - start).total_seconds() * hash_share("jitter", *jitter)))
    return moment
