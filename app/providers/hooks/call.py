"""What a provider's call is, what is made of it, and how its JSON is read: nothing in it is trusted, nothing in it raises."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from app.errors import Refused
from app.rules.delivery import enhanced
from app.rules.reports import Report, classify

TOKEN_HEADER = "x-nurture-send"
LONG = 2_000
SHORT = 300

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_CODE = re.compile(r"^\s*(?:smtp\s*;\s*)?([245]\d\d)(?=\D|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came: its header names are in lower case, its body is not parsed."""

    body: bytes
    headers: Mapping[str, str]
    at: datetime


@dataclass(frozen=True, slots=True)
class Item:
    """One event of a call: what makes it one, the provider's word for what happened, and its JSON."""

    key: str
    kind: str
    raw: str


def parse(body: bytes | str, status: int = 400) -> Any:
    """The JSON of `body`. Raises Refused with that status for anything else: other encodings, more than 200 levels, huge numbers."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(status, f"is not JSON: {str(error)[:200]}") from error


def digest(*parts: Any) -> str:
    """A key of what names an event: of one length, whatever a provider writes, and without anybody's address in it."""
    joined = "\x1f".join("" if part is None else str(part) for part in parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def dig(value: Any, *path: str) -> Any:
    """What is at `path` in nested objects; None where there is nothing, or something else than an object on the way."""
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def text(value: Any, *path: str, limit: int = SHORT) -> str:
    """The text at `path`, cut at `limit` characters and without what PostgreSQL cannot hold; numbers as text, all else empty."""
    found = dig(value, *path)
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        return ""
    return str(found)[:limit].replace("\x00", "").strip()


def objects(value: Any, *path: str) -> list[Mapping[str, Any]]:
    """The objects of the list at `path`, the first 1,000 of them."""
    found = dig(value, *path)
    return [one for one in found[:1000] if isinstance(one, Mapping)] if isinstance(found, list) else []


def when(value: Any, received: datetime) -> datetime:
    """An event's own time (W-03), from ISO 8601 or seconds since 1970. Unreadable or before 2000 it is when the event was received,
    and never later than that."""
    try:
        if isinstance(value, str) and not value.replace(".", "", 1).isdecimal():
            found = datetime.fromisoformat(value)
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
        else:
            found = datetime.fromtimestamp(float(value), UTC)
        return min(found.astimezone(UTC), received) if found >= _EARLIEST else received
    except (ValueError, TypeError, OverflowError, OSError):
        return received


def codes(said: str, status: str = "") -> dict[str, Any]:
    """The basic code, the enhanced code and the text of a server's answer, as a Report has them."""
    basic = _CODE.match(said)
    return {"code": int(basic[1]) if basic else None, "status": enhanced(status) or enhanced(said), "text": said[:LONG]}


def hard_at_least(report: Report) -> Report:
    """A bounce that the provider calls final: hard, unless its codes or words say that it is about something else than the address.

    A provider's word alone does not make a bad reputation of ours the contact's fault (3.2).
    """
    return replace(report, sort="hard") if classify(report) == "soft" else report


def bracketed(message_id: str) -> str | None:
    """A Message-ID with its brackets, which some providers take off."""
    bare = message_id.strip().removeprefix("<").removesuffix(">")
    return f"<{bare}>" if bare else None


def small(**values: Any) -> dict[str, Any]:
    """A report's detail: what is there of `values`."""
    return {name: value for name, value in values.items() if value not in (None, "", [], {})}
