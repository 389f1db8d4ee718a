"""How the console writes things: times, numbers, names, states. Registered as template filters."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, tzinfo
from math import floor
from typing import Any
from zoneinfo import ZoneInfo

from flask import Flask, g, request, url_for
from markupsafe import Markup, escape

from app.rules import reasons, signals
from app.web.console import charts
from app.web.context import here

# state → (label, tone). Tones: good, warn, bad, calm, quiet; the label says it too, so colour is never the only signal.
STATES: dict[str, tuple[str, str]] = {
    "due": ("Waiting", "calm"),
    "frozen": ("Frozen", "warn"),
    "claimed": ("Being sent", "calm"),
    "in_dot": ("Being sent", "calm"),
    "on_wire": ("Being sent", "calm"),
    "sent": ("Sent", "good"),
    "unknown": ("Unknown", "bad"),
    "skipped": ("Skipped", "warn"),
    "ghosted": ("Held out", "quiet"),
    "shadow": ("Shadow", "quiet"),
    "active": ("Active", "calm"),
    "finished": ("Finished", "good"),
    "exited": ("Exited", "quiet"),
    "draft": ("Draft", "quiet"),
    "live": ("Live", "good"),
    "paused": ("Paused", "warn"),
    "archived": ("Archived", "quiet"),
    "green": ("Green", "good"),
    "yellow": ("Yellow", "warn"),
    "red": ("Red", "bad"),
    "yes": ("Yes", "good"),
    "no": ("No", "bad"),
    "wait": ("Not yet", "warn"),
    "not asked": ("Not asked", "quiet"),
    "human": ("Human", "good"),
    "suspected": ("Suspected scanner", "warn"),
    "scanner": ("Scanner", "quiet"),
    "machine": ("Machine", "quiet"),
    "proxy": ("Proxy", "quiet"),
    "reached": ("Reached", "good"),
    "late": ("Reached late", "warn"),
    "overdue": ("Overdue", "bad"),
    "expected": ("Expected", "calm"),
    "open": ("Not yet", "quiet"),
    "waiting": ("Waiting", "calm"),
    "failed": ("Failed", "bad"),
}
_SPANS = ((365 * 86400, "year"), (30 * 86400, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def register(app: Flask) -> None:
    app.jinja_env.filters.update(
        ago=ago,
        moment=moment,
        reason=reasons.sentence,
        gate=reasons.gate_name,
        signal=lambda name: signals.SENTENCES.get(name, name),
        number=number,
        score=score,
        label=label,
        tone=tone,
        words=words,
        person=person,
        pretty=pretty,
    )
    app.jinja_env.globals.update(page_url=page_url, base_url=base_url, outbox_here=outbox_here, share=charts.share)


def ago(value: datetime | None) -> Markup:
    """`3 hours ago` or `in 2 days`, with the full time as title."""
    if value is None:
        return Markup("—")
    return _time(value, relative(value, g.now))


def moment(value: datetime | date | None) -> Markup:
    """The full time with its zone; the distance from now as title."""
    if value is None:
        return Markup("—")
    if not isinstance(value, datetime):
        return Markup(escape(f"{value:%a %d %b}"))
    return _time(value, absolute(value))


def relative(value: datetime, now: datetime) -> str:
    seconds = (value - now).total_seconds()
    size = abs(seconds)
    if size < 45:
        return "now"
    for length, name in _SPANS:
        count = int(size / length + (0.5 if length == 60 else 0))
        if count:
            span = f"{count} {name}{'s' if count != 1 else ''}"
            return f"in {span}" if seconds > 0 else f"{span} ago"
    return "in a minute" if seconds > 0 else "a minute ago"


def absolute(value: datetime) -> str:
    local = value.astimezone(_zone())
    return f"{local:%d %b %Y, %H:%M} {local.tzname()}"


def number(value: float | int | None) -> str:
    if value is None:
        return "—"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def score(value: float | None) -> str:
    """A score in whole points, rounded down: 79.6 is not yet 80, where the next band begins."""
    return "—" if value is None else str(floor(value))


def label(state: str | None) -> str:
    return STATES.get(state or "", (words(state), "quiet"))[0]


def tone(state: str | None) -> str:
    return STATES.get(state or "", ("", "quiet"))[1]


def words(name: str | None) -> str:
    """`setup_completed` as `Setup completed`; an empty one as a dash."""
    text = (name or "").removeprefix("nurture.").replace("_", " ").replace("-", " ").strip()
    return text[:1].upper() + text[1:] if text else "—"


def person(one: dict[str, Any]) -> str:
    """A contact's name, else address, else id."""
    name = " ".join(part for part in (one.get("first_name"), one.get("last_name")) if part) or one.get("contact_name")
    return name or one.get("email") or one.get("contact") or one.get("id") or "—"


def pretty(value: Any) -> str:
    """Any JSON on one line, cut at 400 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 400 else text[:399] + "…"


def page_url(**changes: Any) -> str:
    """The present page with its query changed; None takes a parameter away."""
    values = {**request.args.to_dict(), **changes}
    return url_for(request.endpoint, **(request.view_args or {}), **{name: value for name, value in values.items() if value})


def base_url() -> str:
    return here().settings.base_url


def outbox_here() -> bool:
    """Whether this installation keeps its mail in the local outbox, which is read at /dev/outbox."""
    settings = here().settings
    return settings.smtp_url is None and settings.base_is_loopback


def _time(value: datetime, text: str) -> Markup:
    stamp = value.astimezone(UTC).isoformat(timespec="seconds")
    title = f"{absolute(value)} ({relative(value, g.now)})"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(stamp, title, text)


def _zone() -> tzinfo:
    return getattr(g, "zone", None) or UTC


def set_zone(name: str) -> None:
    """From here on this request shows times in that zone."""
    g.zone = UTC if name == "UTC" else ZoneInfo(name)
